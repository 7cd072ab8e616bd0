"""Pure tensor mathematics: masks, spaces, noise schedules, the denoiser, the loss, samplers."""

from underpaint.core import (
    augmentation,
    denoiser,
    guidance,
    loss,
    loss_weighting,
    masks,
    preconditioning,
    salient,
    samplers,
    schedules,
    spaces,
)

__all__ = [
    "augmentation",
    "denoiser",
    "guidance",
    "loss",
    "loss_weighting",
    "masks",
    "preconditioning",
    "salient",
    "samplers",
    "schedules",
    "spaces",
]
