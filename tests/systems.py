"""The lists of networks, spaces and processes, and small settings of each, for tests of all.

The lists are those of the package: what is registered there joins the tests by itself, with its
own defaults where nothing is said of it here.
"""

from pathlib import Path
from typing import Any

import torch

from underpaint import backbones, config
from underpaint.core import schedules, spaces

NETWORKS = (*backbones.kinds(), "toy")  # the last: tests/toy.py
SPACES = spaces.KINDS
PROCESSES = tuple(schedules.TIME_LAWS)

OPTIONS: dict[str, dict[str, Any]] = {
    "maskdit": {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2},
    "unet": {"multipliers": [1, 1], "attention": []},
}
PATCHES: dict[str, dict[str, Any]] = {  # of images of 16×16: grids of 8×8
    "pixels": {"patch": 2},
    "wavelets": {"patch": 1},
    "latents": {"patch": 1, "factor": 2},
}
OWN = {"flow": "flow", "edm": "edm", "ve": "score"}  # predictions; of other processes: eps


def network(kind: str, **changes: Any) -> config.Network:
    small = {"width": 16, "depth": 1, "heads": 2, "options": dict(OPTIONS.get(kind, {}))}
    return config.Network(kind=kind, **{**small, **changes})


def process(name: str, prediction: str | None = None) -> config.Noise:
    return config.Noise(
        process=name,  # type: ignore[arg-type]
        prediction=prediction or OWN.get(name, "eps"),  # type: ignore[arg-type]
        time=schedules.TIME_LAWS[name][0],  # type: ignore[arg-type]
    )


def spec(kind: str, space: str, name: str, vae: Path | str = "") -> config.ModelSpec:
    """Of images of 16×16 with two labels."""
    return config.ModelSpec(
        size=(16, 16),
        label_names=("a", "b"),
        space=config.Space(kind=space, vae=str(vae), **PATCHES.get(space, {})),
        network=network(kind),
        noise=process(name),
        sampling=config.Sampling(
            sampler="heun", steps=3, clip="none" if space == "latents" else "static"
        ),
    )


def save_autoencoder(path: Path) -> Path:
    """An AutoencoderKL of random weights: 1/2 of the side, 4 channels."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.5,
        shift_factor=0.25,
    ).save_pretrained(path)
    return path
