"""Masks: which patches of an image a network sees.

An image is a grid of N = h·w patches, numbered row by row. A mask splits the numbers into V visible
and N − V hidden ones. V depends on the kind, the grid and the rate alone, never on the image, so
that the shapes of a whole stage are static.

    patch   ⌊rN⌋ single patches are hidden, each set equally likely
    block   b×b groups of patches are hidden together: ⌊⌊rN⌋/b²⌋·b² patches where b divides the
            grid; elsewhere ⌊rN⌋ along a random order of blocks, the last perhaps hidden in part
    crop    all but one rectangle is hidden: its sides are ⌊√(1−r)·h⌋ and ⌊√(1−r)·w⌋, its place is
            uniform
    none    nothing is hidden

Patches, blocks and crops as in MaskDM (Lei et al. 2023, arXiv 2306.11363), whose rounding this is.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from underpaint.errors import UserError

__all__ = [
    "KINDS",
    "Mask",
    "draw",
    "gather",
    "rate_levels",
    "realised_rate",
    "see",
    "visible_count",
    "whole",
]

KINDS = ("none", "patch", "block", "crop")
MAX_LEVELS = 8  # distinct V in a stage: each is one more shape to compile and to hold in memory


class Mask(NamedTuple):
    """The visible and the hidden patches of each image of a batch; V is the same for all."""

    grid: tuple[int, int]  # patches: rows, columns
    visible: Tensor | None = None  # [B, V] int64 ascending; None: the whole image
    hidden: Tensor | None = None  # [B, N − V] int64 ascending
    window: Tensor | None = None  # [B, 4] top, left, height, width in patches; crop masks only


def whole(grid: tuple[int, int]) -> Mask:
    """The mask that hides nothing."""
    return Mask(grid)


def draw(
    kind: str,
    grid: tuple[int, int],
    batch: int,
    rate: float,
    *,
    block: int = 2,
    generator: torch.Generator | None,
    device: torch.device | str = "cpu",
) -> Mask:
    """Random masks for `batch` images, on `device`.

    The numbers are drawn where `generator` lives, so that a CPU generator gives the same masks on
    every device. Raises UserError as `visible_count`.
    """
    N, V = grid[0] * grid[1], visible_count(kind, grid, rate, block=block)
    if V == N:
        return whole(grid)
    source = generator.device if generator is not None else torch.device(device)
    window = None
    if kind == "crop":
        window = _random_windows(grid, _crop_sides(grid, rate), batch, generator, source)
        hidden = ~_inside(window, grid)
    else:
        if kind == "patch":
            key = torch.rand(batch, N, generator=generator, device=source)
        else:
            key = _block_keys(grid, block, batch, generator, source)
        first = key.topk(N - V, dim=1, largest=False, sorted=False).indices
        hidden = torch.zeros(batch, N, dtype=torch.bool, device=source).scatter_(1, first, True)
    # nonzero walks row by row, which is the ascending order: no sort of ids is needed
    return Mask(
        grid,
        visible=(~hidden).nonzero()[:, 1].view(batch, V).to(device),
        hidden=hidden.nonzero()[:, 1].view(batch, N - V).to(device),
        window=None if window is None else window.to(device),
    )


def visible_count(kind: str, grid: tuple[int, int], rate: float, *, block: int = 2) -> int:
    """V, the number of visible patches an image.

    Raises UserError for an unknown kind, a rate outside [0, 1), a rate that leaves no patch, and a
    grid smaller than a block.
    """
    h, w = grid
    N = h * w
    if kind not in KINDS:
        raise UserError(f"mask '{kind}' does not exist; use one of {', '.join(KINDS)}")
    if not 0 <= rate < 1:  # also refuses nan
        raise UserError(f"mask rate {rate:g}: give the hidden share, from 0 to below 1")
    if kind == "none":
        return N
    if kind == "crop":
        height, width = _crop_sides(grid, rate)
        return height * width
    H = _floor(rate * N)
    if kind == "block":
        if block < 1 or block > min(h, w):
            raise UserError(
                f"a grid of {h}×{w} patches holds no block of {block}×{block}; give a block from 1 "
                f"to {min(h, w)}, smaller patches or larger images"
            )
        if h % block == 0 and w % block == 0:
            H = H // block**2 * block**2
    if H >= N:
        raise _nothing_left(kind, grid, rate)
    return N - H


def realised_rate(kind: str, grid: tuple[int, int], rate: float, *, block: int = 2) -> float:
    """The share of patches that is really hidden, after rounding: 1 − V/N."""
    return 1 - visible_count(kind, grid, rate, block=block) / (grid[0] * grid[1])


def rate_levels(
    kind: str,
    grid: tuple[int, int],
    rate: float,
    rate_end: float = 0.0,
    rate_schedule: str = "constant",
    *,
    block: int = 2,
) -> list[tuple[float, float]]:
    """The steps in which a stage goes from `rate` to `rate_end`: [(progress at its start, rate)].

    `linear`: rate + (rate_end − rate)·progress. `cos4`: rate_end + (rate − rate_end)·cos⁴(π/2 ·
    progress), MaskDiT's way down (Zheng et al. 2024, arXiv 2306.09305). The stage is cut into eight
    equal parts, the first at `rate` and the last at `rate_end`; parts with equal V are joined.
    """
    if kind == "none" or rate_schedule == "constant":
        visible_count(kind, grid, rate, block=block)  # raises for a rate that cannot be
        return [(0.0, 0.0 if kind == "none" else rate)]
    if rate_schedule not in ("linear", "cos4"):
        raise UserError(f"rate_schedule '{rate_schedule}': use constant, linear or cos4")
    levels: list[tuple[float, float]] = []
    previous = None
    for i in range(MAX_LEVELS):
        progress = i / (MAX_LEVELS - 1)
        fall = progress if rate_schedule == "linear" else 1 - math.cos(math.pi / 2 * progress) ** 4
        level = (1 - fall) * rate + fall * rate_end
        V = visible_count(kind, grid, level, block=block)
        if previous != V:
            levels.append((i / MAX_LEVELS, level))
        previous = V
    return levels


def gather(x: Tensor, ids: Tensor | None) -> Tensor:
    """Rows of `x` [B, N, ...] at `ids` [B, V] → [B, V, ...]; None → `x` itself."""
    if ids is None:
        return x
    B, N = x.shape[:2]
    # one index_select over all images' rows: two to three times faster on CPU than gather
    rows = ids + torch.arange(0, B * N, N, device=ids.device)[:, None]  # [B, V]
    return x.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, ids.shape)


def see(patches: Tensor, mask: Mask, sees: str) -> Tensor:
    """What a network gets of `patches` [B, N, P]: those visible if it `sees` only them, or all."""
    return gather(patches, mask.visible) if sees == "visible" else patches


# --- how the kinds are drawn -------------------------------------------------------------------


def _floor(x: float) -> int:
    return math.floor(x + 1e-9)  # 0.29 · 100 is 28.999999999999996 in floating point


def _nothing_left(kind: str, grid: tuple[int, int], rate: float) -> UserError:
    return UserError(
        f"mask '{kind}' at rate {rate:g} leaves no visible patch of a grid of "
        f"{grid[0]}×{grid[1]}; lower the rate"
    )


def _crop_sides(grid: tuple[int, int], rate: float) -> tuple[int, int]:
    """Height and width of the visible rectangle, in patches, of the grid's own aspect."""
    if _floor((1 - rate) * grid[0] * grid[1]) < 1:
        raise _nothing_left("crop", grid, rate)
    share = math.sqrt(1 - rate)
    height, width = _floor(share * grid[0]), _floor(share * grid[1])
    return max(1, height), max(1, width)  # a long thin grid keeps at least one row


def _random_windows(
    grid: tuple[int, int],
    sides: tuple[int, int],
    batch: int,
    generator: torch.Generator | None,
    device: torch.device,
) -> Tensor:
    """Uniform places of a rectangle of `sides` in the grid → [B, 4] top, left, height, width."""
    places = [
        torch.randint(0, length - side + 1, (batch,), generator=generator, device=device)
        for length, side in zip(grid, sides, strict=True)
    ]
    return torch.stack([*places, *(torch.full_like(places[0], side) for side in sides)], dim=1)


def _inside(window: Tensor, grid: tuple[int, int]) -> Tensor:
    """Which patches lie in each window [B, 4] → bool [B, N]."""
    top, left, height, width = window[:, :, None].unbind(1)  # each [B, 1]
    row = torch.arange(grid[0], device=window.device)
    column = torch.arange(grid[1], device=window.device)
    rows = (row >= top) & (row < top + height)  # [B, h]
    columns = (column >= left) & (column < left + width)  # [B, w]
    return (rows[:, :, None] & columns[:, None, :]).flatten(1)


def _block_keys(
    grid: tuple[int, int],
    block: int,
    batch: int,
    generator: torch.Generator | None,
    device: torch.device,
) -> Tensor:
    """Keys [B, N] whose smallest come block by block: rank of the block + a random half.

    The random half orders the patches within a block; it matters only in a block that is hidden in
    part. A half, not a whole: 4095 + 0.9999999 rounds to 4096 in float32, the next block's key.
    """
    h, w = grid
    columns = -(-w // block)
    row = torch.arange(h, device=device) // block
    column = torch.arange(w, device=device) // block
    of_patch = (row[:, None] * columns + column).flatten()  # [N] the block that holds the patch
    blocks = -(-h // block) * columns
    rank = torch.rand(batch, blocks, generator=generator, device=device).argsort(1).argsort(1)
    within = torch.rand(batch, h * w, generator=generator, device=device)
    return rank[:, of_patch] + 0.5 * within
