"""Denoisers in closed form: one remembers its images, one knows the distribution."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from underpaint.core import schedules
from underpaint.core.denoiser import Denoiser
from underpaint.core.masks import Mask, gather

__all__ = ["GRID", "Constant", "Memoriser", "Normal", "draws"]

GRID = (3, 3)


def draws(count: int, seed: int) -> Tensor:
    """Patches [count, 9, 4] of the distribution, N(0, 1/4)."""
    g = torch.Generator().manual_seed(seed)
    return 0.5 * torch.randn(count, GRID[0] * GRID[1], 4, generator=g)


class Known(Denoiser):
    """A Denoiser without a network; takes nothing but the visible patches."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.process = schedules.build("edm", time="log-normal")
        self.stride = self.unit = 1
        self.anchor = nn.Parameter(torch.zeros(1))
        self.backbone = nn.Identity()
        self.backbone.grid = GRID  # type: ignore[assignment]

    def x0(self, x: Tensor, sigma: float, mask: Mask) -> Tensor:
        raise NotImplementedError

    def denoise(
        self,
        x: Tensor,
        sigma: float | Tensor,
        labels: Tensor | None = None,
        mask: Mask | None = None,
    ) -> Tensor:
        mask = Mask(GRID) if mask is None else mask
        level = float(sigma if not isinstance(sigma, Tensor) else sigma.flatten()[0])
        assert x.shape[1] == (math.prod(GRID) if mask.visible is None else mask.visible.shape[1])
        return self.x0(x.double(), level, mask).to(x.dtype)

    def eps(
        self,
        x: Tensor,
        sigma: float | Tensor,
        labels: Tensor | None = None,
        mask: Mask | None = None,
    ) -> Tensor:
        level = float(sigma if not isinstance(sigma, Tensor) else sigma.flatten()[0])
        return (x - self.denoise(x, sigma, labels, mask)) / level


class Memoriser(Known):
    """The posterior mean of the empirical distribution: D = Σ_i softmax(−‖x − x_i‖²/2σ²) x_i."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.images = images.double()

    def x0(self, x: Tensor, sigma: float, mask: Mask) -> Tensor:
        B = len(x)
        if mask.visible is None:
            own = self.images.expand(B, -1, -1, -1)
        else:
            own = torch.stack([self.images[:, ids] for ids in mask.visible])  # [B, M, V, P]
        squares = (x[:, None] - own).square().sum((2, 3))
        weights = torch.softmax(-squares / (2 * sigma**2), 1)
        return torch.einsum("bm,bmvp->bvp", weights, own)


class Normal(Known):
    """The posterior mean of N(0, 1/4), from which members and others are drawn alike."""

    def x0(self, x: Tensor, sigma: float, mask: Mask) -> Tensor:
        return x * 0.25 / (0.25 + sigma**2)


class Constant(Known):
    """Knows nothing: always the mean."""

    def x0(self, x: Tensor, sigma: float, mask: Mask) -> Tensor:
        return torch.zeros_like(x)


def shared_mask(visible: Sequence[int], count: int) -> Mask:
    """The same visible patches for `count` images."""
    hidden = [i for i in range(math.prod(GRID)) if i not in visible]
    both = (torch.tensor(list(ids)).expand(count, -1) for ids in (visible, hidden))
    return Mask(GRID, *both)


def nan_hidden(patches: Tensor, mask: Mask) -> Tensor:
    """The patches with NaN wherever the mask hides them."""
    assert mask.visible is not None
    result = torch.full_like(patches, float("nan"))
    ids = mask.visible[:, :, None].expand(-1, -1, patches.shape[2])
    return result.scatter(1, ids, gather(patches, mask.visible))
