"""Small models of every kind, with weights that are not what they start as."""

from typing import Any

import torch

from underpaint import config, model

NETWORKS: dict[str, dict[str, Any]] = {
    "dit": {},
    "uvit": {},
    "hourglass": {"options": {"levels": 1}},
    "maskdit": {"options": {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}},
    "unet": {"depth": 1, "options": {"multipliers": [1, 2]}},
}


def small(
    kind: str = "dit",
    *,
    labels: tuple[str, ...] = ("red", "green", "blue"),
    size: tuple[int, int] = (8, 8),
    channels: int = 3,
    space: dict[str, Any] | None = None,
    noise: dict[str, Any] | None = None,
    sampling: dict[str, Any] | None = None,
    seed: int = 0,
    **network: Any,
) -> model.Model:
    """A model of random weights for pictures of 8×8."""
    spec = config.ModelSpec(
        size=size,
        channels=channels,
        label_names=labels,
        space=config.Space(**{"patch": 2, **(space or {})}),
        network=config.Network(
            kind=kind,
            **{"width": 16, "depth": 2, "heads": 2, **NETWORKS.get(kind, {}), **network},
        ),
        noise=config.Noise(**(noise or {})),
        sampling=config.Sampling(**{"steps": 4, **(sampling or {})}),
    )
    torch.manual_seed(seed)
    made = model.build(spec)
    with torch.no_grad():
        for parameter in made.backbone.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    made.denoiser.eval()
    return made
