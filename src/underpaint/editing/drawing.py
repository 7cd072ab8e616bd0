"""What a model gives to draw with, and what it is given to edit."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from underpaint.core import spaces
from underpaint.core.samplers import Denoise, Sampling, SeededNoise
from underpaint.errors import UserError
from underpaint.progress import At
from underpaint.vae import VAE

Pictures = NDArray[np.uint8]  # [n, H, W, C]


@dataclass(frozen=True)
class Drawing:
    """All that a model needs to draw n images; `Model` makes it."""

    seeds: Sequence[int]  # [n]
    space: spaces.Space
    vae: VAE | None
    sampling: Sampling
    sigmas: Tensor  # [steps + 1]
    denoise: Callable[[range], Denoise]  # of some of the images, with their labels
    images: Callable[[Tensor], Tensor]  # patches → [B, C, H, W], through the autoencoder
    device: torch.device
    batch: int
    at: At  # how far it is

    def parts(self) -> Iterator[tuple[range, SeededNoise, Tensor]]:
        """Batches: which images, their noise, and its first draw [B, N, P]."""
        n, shape = len(self.seeds), (math.prod(self.space.grid), self.space.patch_dim)
        for start in range(0, n, self.batch):
            part = range(start, min(start + self.batch, n))
            source = SeededNoise([self.seeds[i] for i in part])
            yield part, source, source.initial(shape).to(self.device)

    def counter(self, steps: int) -> Callable[[], None]:
        """To be called after each step; `steps`: of one batch. `at` hears of all of them."""
        total, done = steps * -(-len(self.seeds) // self.batch), 0

        def step() -> None:
            nonlocal done
            done += 1
            self.at(done, total)

        return step


def checked(drawing: Drawing, images: Pictures, any_size: bool = False) -> Pictures:
    """The images, if they are the model's."""
    (H, W), C = drawing.space.size, drawing.space.channels
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != C:
        size = "H, W" if any_size else f"{H}, {W}"
        raise UserError(
            f"images {images.dtype} {list(images.shape)} were given; this model takes uint8 "
            f"[n, {size}, {C}]"
        )
    if not any_size and images.shape[1:3] != (H, W):
        raise UserError(
            f"images of {images.shape[1]}×{images.shape[2]} pixels were given; this model takes "
            f"{H}×{W}"
        )
    return images
