"""`--to torch-export`: the denoiser as one graph, which torch runs without any code of ours.

    denoiser.pt2    torch.export.load("denoiser.pt2").module()(x, sigma, labels) → x0

x [B, C, H, W] = x0 + sigma·n are noisy images in [-1, 1], as `Model.denoise` takes them; sigma [B]
are their levels, labels [B] int64 (−1: none; a model without labels takes x and sigma alone). B is
any number, of a U-Net at most 63. `model.json` says the rest: the labels' names, the noise, how the
model draws.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from underpaint import config
from underpaint.core.denoiser import Denoiser
from underpaint.core.spaces import Space
from underpaint.errors import UserError
from underpaint.model import Model, evaluating

FILE = "denoiser.pt2"
LARGEST = {"unet": 63}  # batch: diffusers' layers take another path from 64 on


class Graph(nn.Module):
    """x, sigma, labels → x0."""

    def __init__(self, denoiser: Denoiser, space: Space) -> None:
        super().__init__()
        self.denoiser, self.space = denoiser, space

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images [B, C, H, W], levels [B], labels [B] → [B, C, H, W]."""
        return self.space.decode(self.denoiser.denoise(self.space.encode(x), sigma, labels))


def check(model: Model) -> None:
    """Every network can be exported."""


def write(model: Model, folder: Path, half: bool) -> dict[str, Any]:
    """Fill `folder`. Raises UserError for `half`."""
    if half:
        raise UserError("--half: torch-export keeps weights in float32; leave --half out")
    program = graph(model)
    torch.export.save(program, folder / FILE)
    process = model.denoiser.process
    card = {
        "file": FILE,
        "inputs": ["x", "sigma", "labels"] if model.label_names else ["x", "sigma"],
        "shape": model.space.planes,
        "largest_batch": LARGEST.get(model.spec.network.kind),
        "sigma": [process.sigma_min, process.sigma_max],
        "model": config.to_dict(model.spec),
    }
    (folder / "model.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    return {"file": FILE, "inputs": card["inputs"]}


def graph(model: Model) -> torch.export.ExportedProgram:
    """The denoiser's graph for a batch of any size."""
    # two examples: of one the exporter makes a constant
    given: tuple[Tensor, ...] = (torch.zeros(2, *model.space.planes), torch.ones(2))
    if model.label_names:
        given += (torch.zeros(2, dtype=torch.long),)
    batch = torch.export.Dim("batch", min=1, max=LARGEST.get(model.spec.network.kind))
    module = Graph(model.denoiser, model.space)
    with evaluating(model.denoiser), torch.no_grad():
        module(*given)  # or a noise schedule would keep a table that is traced, not computed
        program = torch.export.export(
            module,
            given,
            dynamic_shapes=tuple({0: batch} for _ in given),
        )
    for node in program.graph.nodes:  # where our code lies on this machine
        node.meta.pop("stack_trace", None)
    return program
