"""Networks: one file each, all behind the contract of `base`. Importing one registers it."""

from underpaint.backbones.base import (
    Backbone,
    Prediction,
    build,
    check_features,
    check_hidden,
    hidden_matrices,
    interpolate_positions,
    is_augment_embedding,
    is_label_table,
    kinds,
    position_ids,
    register,
)
from underpaint.backbones.dit import DiT
from underpaint.backbones.hourglass import Hourglass
from underpaint.backbones.maskdit import MaskDiT
from underpaint.backbones.unet import UNet
from underpaint.backbones.uvit import UViT

__all__ = [
    "Backbone",
    "DiT",
    "Hourglass",
    "MaskDiT",
    "Prediction",
    "UNet",
    "UViT",
    "build",
    "check_features",
    "check_hidden",
    "hidden_matrices",
    "interpolate_positions",
    "is_augment_embedding",
    "is_label_table",
    "kinds",
    "position_ids",
    "register",
]
