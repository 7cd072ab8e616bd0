"""Networks: one file each, all behind the contract of `base`."""

from underpaint.backbones import dit, uvit  # importing a network registers it
from underpaint.backbones.base import (
    Backbone,
    Prediction,
    build,
    interpolate_positions,
    is_label_table,
    kinds,
    register,
)
from underpaint.backbones.dit import DiT
from underpaint.backbones.uvit import UViT

__all__ = [
    "Backbone",
    "DiT",
    "Prediction",
    "UViT",
    "build",
    "dit",
    "interpolate_positions",
    "is_label_table",
    "kinds",
    "register",
    "uvit",
]
