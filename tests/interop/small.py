"""Small models for the tests of exports."""

from typing import Any

import torch
from torch import nn

from underpaint import config
from underpaint import model as models
from underpaint.model import Model

NOISE = {
    "flow": {},
    "vp-linear": {"process": "vp-linear", "time": "uniform", "prediction": "eps"},
    "vp-cosine": {"process": "vp-cosine", "time": "uniform", "prediction": "v"},
    "ddpm": {"process": "vp-linear", "time": "uniform", "prediction": "eps", "steps": 1000},
    "edm": {"process": "edm", "time": "log-normal", "prediction": "edm"},
    "ncsn": {"process": "ve", "time": "log-uniform", "prediction": "score", "steps": 20},
}


def build(
    kind: str = "dit",
    noise: str = "flow",
    *,
    channels: int = 3,
    labels: tuple[str, ...] = ("dark", "light"),
    space: dict[str, Any] | None = None,
    sampling: dict[str, Any] | None = None,
    **network: Any,
) -> Model:
    """A small model of 8 × 16 pixels; no weight is zero."""
    torch.manual_seed(0)
    values = {
        "size": [8, 16],
        "channels": channels,
        "label_names": list(labels),
        "space": {"kind": "pixels", "patch": 2, **(space or {})},
        "network": {"kind": kind, "width": 16, "depth": 1, "heads": 2, "labels": bool(labels)}
        | network,
        "noise": NOISE[noise],
        "sampling": {"steps": 5, **(sampling or {})},
    }
    model = models.build(config.from_dict(config.ModelSpec, values, ""))
    for parameter in model.denoiser.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return model
