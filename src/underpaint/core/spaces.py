"""Spaces: how an image becomes patches at positions, and back.

A space maps images [B, C, H, W] in [-1, 1] to `patches [B, N, P]` on a grid of h × w patches,
N = h·w, numbered row by row, and is exactly invertible:

    patches[:, i·w + j] = images[:, :, i·p : (i+1)·p, j·p : (j+1)·p],   P = C·p²

with the numbers of a patch in the order channel, row, column (that of a convolution's kernel).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from underpaint import config as configuration
from underpaint.errors import UserError

__all__ = ["Pixels", "Space", "build", "from_uint8", "to_uint8"]


class Space(Protocol):
    """Where the diffusion runs."""

    size: tuple[int, int]  # H, W in pixels
    channels: int
    grid: tuple[int, int]  # h, w in patches
    patch_dim: int  # P

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] in [-1, 1] → patches [B, N, P]."""

    def decode(self, patches: Tensor) -> Tensor:
        """Patches [B, N, P] → images [B, C, H, W]."""


class Pixels:
    """Square patches of p × p pixels as they are."""

    def __init__(self, size: tuple[int, int], channels: int, patch: int) -> None:
        """Raises UserError if `patch` does not divide the height and the width of `size`."""
        if patch < 1 or size[0] % patch or size[1] % patch:
            raise UserError(
                f"size {size[0]}×{size[1]} is not divisible by patch {patch}; give a patch that "
                f"divides both sides, or another size"
            )
        self.size, self.channels, self.patch = size, channels, patch
        self.grid = (size[0] // patch, size[1] // patch)
        self.patch_dim = channels * patch * patch

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] → patches [B, N, P]."""
        (h, w), p = self.grid, self.patch
        split = images.reshape(-1, self.channels, h, p, w, p)
        return split.permute(0, 2, 4, 1, 3, 5).reshape(-1, h * w, self.patch_dim)

    def decode(self, patches: Tensor) -> Tensor:
        """Patches [B, N, P] → images [B, C, H, W]."""
        (h, w), p = self.grid, self.patch
        split = patches.reshape(-1, h, w, self.channels, p, p)
        return split.permute(0, 3, 1, 4, 2, 5).reshape(-1, self.channels, *self.size)


def build(config: configuration.Space, size: tuple[int, int], channels: int) -> Space:
    """The space of a run for images of `size` (height, width) in pixels."""
    if config.kind != "pixels":
        raise UserError(f"space.kind '{config.kind}' does not exist; use pixels")
    return Pixels(size, channels, config.patch)


def from_uint8(images: Tensor | np.ndarray) -> Tensor:
    """Decoded images uint8 [B, H, W, C] → float32 [B, C, H, W] in [-1, 1]."""
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(np.require(images, requirements=["C", "W"]))
    planes = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    return planes.div_(127.5).sub_(1)


def to_uint8(images: Tensor) -> Tensor:
    """Images [B, C, H, W] → uint8 [B, H, W, C]; what lies outside [-1, 1] is clipped."""
    levels = (images.float() + 1).mul_(127.5).round_().clamp_(0, 255)
    return levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous()
