"""Pure tensor mathematics: masks, spaces, noise schedules, the denoiser, the loss, samplers."""

from underpaint.core import (  # noqa: F401  so that `underpaint.core.masks` is there at once
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
