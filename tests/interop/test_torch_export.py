"""One graph that computes what the denoiser does, for a batch of any size."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.interop.models import small
from underpaint.cli import main
from underpaint.interop import torch_export
from underpaint.model import Model

torch.set_num_threads(1)

CASES: dict[str, dict[str, Any]] = {
    "dit": {"noise": {"process": "vp-cosine", "prediction": "v", "time": "uniform"}},
    "uvit": {"labels": ()},
    "hourglass": {"noise": {"prediction": "x0"}, "space": {"kind": "wavelets", "patch": 1}},
    "maskdit": {"noise": {"process": "edm", "prediction": "edm", "time": "log-normal"}},
    "unet": {
        "noise": {
            "process": "vp-linear",
            "prediction": "eps",
            "steps": 1000,
            "time": "uniform",
        }
    },
}


def test_the_command(tmp_path: Path, wrong: Callable[..., str]) -> None:
    model = small("uvit", depth=1, augment=True)
    folder, out = model.save(tmp_path / "model"), tmp_path / "out"
    given = ["export", folder, "--to", "torch-export", "--out", out]
    assert "--half" in wrong(*given, "--half")
    assert not out.exists()
    assert main([*map(str, given)]) == 0
    assert_is_the_denoiser(out, model)
    assert json.loads((out / "model.json").read_text())["inputs"] == ["x", "sigma", "labels"]
    with zipfile.ZipFile(out / "denoiser.pt2") as archive:
        for name in archive.namelist():
            assert str(Path(torch.__file__).parent).encode() not in archive.read(name), name


@pytest.mark.long
@pytest.mark.parametrize("kind", CASES)
def test_every_network(kind: str, tmp_path: Path) -> None:
    model = small(kind, **CASES[kind])
    torch_export.write(model, tmp_path, half=False)
    assert_is_the_denoiser(tmp_path, model)


def assert_is_the_denoiser(folder: Path, model: Model) -> None:
    """At batches of 1, 2 and 7."""
    graph = torch.export.load(folder / "denoiser.pt2").module()
    generator = torch.Generator().manual_seed(0)
    for B in (1, 2, 7):
        sigma = torch.logspace(-1, 1.5, 7)[:B]
        x = torch.randn(B, 3, 8, 8, generator=generator) * (1 + sigma.view(-1, 1, 1, 1))
        labels = (torch.arange(B) % 4 - 1,) if model.label_names else ()
        names = None if not labels else labels[0].tolist()
        wanted = model.denoise(x, sigma, names)
        assert (graph(x, sigma, *labels) - wanted).abs().max() <= 2e-5 * wanted.abs().max()
