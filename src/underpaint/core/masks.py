"""Masks: which patches of an image a network sees.

An image is a grid of N = h·w patches, numbered row by row. A mask splits the numbers into V visible
and N − V hidden ones. V depends on the kind, the grid and the rate alone, never on the image, so
that the shapes of a whole stage are static.

    patch   ⌊rN⌋ single patches are hidden, each set equally likely
    block   b×b groups of patches are hidden together: ⌊⌊rN⌋/b²⌋·b² patches where b divides the
            grid; elsewhere ⌊rN⌋ along a random order of blocks, the last perhaps hidden in part
    crop    all but one rectangle is hidden: its sides are ⌊√(1−r)·h⌋ and ⌊√(1−r)·w⌋, its place is
            uniform. Both are multiples of `multiple` (a U-Net's stride): ⌊…⌋ is rounded to one
    none    nothing is hidden
    salient ⌊rN⌋ patches as in patch, but those of high contrast are visible more often (`salient`)

With a `unit` u above 1 (a network whose coarse tokens stand for u×u patches) all of this is said of
units instead of patches: a block has ⌈b/u⌉×⌈b/u⌉ of them, and V is u² times that of the grid of
units. Crops stay as they are, in multiples of units.

Patches, blocks and crops as in MaskDM (Lei et al. 2023, arXiv 2306.11363), whose rounding this is.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from underpaint.core.salient import chances, systematic

KINDS = ("none", "patch", "block", "crop", "salient")
RATE_SCHEDULES = ("constant", "linear", "cos4")
MAX_LEVELS = 8  # distinct V in a stage: each is one more shape to hold in memory
COMPILED_LEVELS = 6  # where each is compiled as well

Generator = torch.Generator | Sequence[torch.Generator] | None


class Mask(NamedTuple):
    """The visible and the hidden patches of each image of a batch; V is the same for all."""

    grid: tuple[int, int]  # patches: rows, columns
    visible: Tensor | None = None  # [B, V] int64 ascending; None: the whole image
    hidden: Tensor | None = None  # [B, N − V] int64 ascending
    window: Tensor | None = None  # [B, 4] top, left, height, width in patches; crop masks only
    weights: Tensor | None = None  # [B, V] of the visible patches' errors; None: all are 1

    def to(self, device: torch.device | str) -> "Mask":
        """The same mask on another device."""
        return Mask(self.grid, *(None if x is None else x.to(device) for x in self[1:]))


@dataclass(frozen=True)
class MaskSpec:
    """How masks are drawn: all that a stage says of them, but the grid."""

    kind: str = "none"
    rate: float = 0.0  # the hidden share, from 0 to below 1
    block: int = 2  # patches a side of a block
    multiple: int = 1  # sides and corners of a crop are multiples of this many patches
    unit: int = 1  # patches are hidden and visible in squares of this many a side
    temperature: float = 1.0  # salient: above 1 nearer to chance
    reweight: bool = False  # salient: weight errors by how rarely a patch is shown

    def at(self, rate: float) -> "MaskSpec":
        """The same masks at another rate."""
        return dataclasses.replace(self, rate=rate)

    @property
    def crop_multiple(self) -> int:
        """What sides and corners of a crop are multiples of, whole units among it."""
        return math.lcm(self.multiple, self.unit)

    @property
    def block_units(self) -> int:
        """Units a side of a block."""
        return -(-self.block // self.unit)

    def in_units(self, unit: int, grid: tuple[int, int]) -> bool:
        """Whether masks of this `grid` hide and show whole squares of `unit` patches a side."""
        if self.kind == "none" or self.unit % unit == 0:
            return True
        if self.kind == "crop":
            return self.crop_multiple % unit == 0
        if self.kind != "block" or self.block % unit:
            return False
        return grid[0] % self.block == 0 and grid[1] % self.block == 0  # no block hidden in part


def draw(
    spec: MaskSpec,
    grid: tuple[int, int],
    batch: int,
    generator: Generator,
    *,
    device: torch.device | str = "cpu",
    contrast: Tensor | None = None,
) -> Mask:
    """Random masks for `batch` images, on `device`.

    The numbers are drawn where `generator` lives, so that a CPU generator gives the same masks on
    every device. With one generator for each image, a mask depends on that one alone; the same
    seeds then show at a lower rate what they show at a higher one, and more (patch masks).
    Salient masks need the `contrast` [B, N] of the patches; `spec.reweight` gives them weights.
    Raises ValueError as `visible_count`.
    """
    N, V = grid[0] * grid[1], visible_count(spec, grid)
    if V == N:
        return Mask(grid)
    draws = Draws(batch, generator, device)
    units, kept = _units(spec, grid), V // spec.unit**2
    window = chance = weights = None
    if spec.kind == "crop":
        sides = _crop_sides(grid, spec.rate, spec.crop_multiple)
        window = _random_windows(grid, sides, spec.crop_multiple, draws)
        hidden = ~_inside(window, grid)
    elif spec.kind == "salient":
        if contrast is None:
            raise ValueError("salient masks need the contrast of the patches: local_variance(…)")
        of_units = _mean_of_units(contrast.to(draws.device), grid, spec.unit)
        chance = chances(of_units, kept, spec.temperature)
        order = draws.uniform(math.prod(units)).argsort(1)
        hidden = ~systematic(chance, order, draws.uniform(1)[:, 0], kept)
        hidden, chance = (_patches_of_units(x, units, spec.unit) for x in (hidden, chance))
    else:
        patchwise = spec.kind == "patch"
        count = math.prod(units)
        key = draws.uniform(count) if patchwise else _block_keys(units, spec.block_units, draws)
        first = key.topk(count - kept, dim=1, largest=False, sorted=False).indices
        hidden = torch.zeros_like(key, dtype=torch.bool).scatter_(1, first, True)
        hidden = _patches_of_units(hidden, units, spec.unit)
    visible, behind = split_ids(hidden, V)
    if chance is not None and spec.reweight:
        weights = (V / N / chance.gather(1, visible)).float().to(device)
    return Mask(
        grid,
        visible=visible.to(device),
        hidden=behind.to(device),
        window=None if window is None else window.to(device),
        weights=weights,
    )


def visible_count(spec: MaskSpec, grid: tuple[int, int]) -> int:
    """V, the number of visible patches per image.

    Raises ValueError for an unknown kind, a rate outside [0, 1), a rate that leaves no patch, a
    grid smaller than a block, and one that is not of whole units, or of one.
    """
    kind, rate, block = spec.kind, spec.rate, spec.block_units
    h, w = _units(spec, grid)
    N = h * w  # units
    if kind not in KINDS:
        raise ValueError(f"mask '{kind}' does not exist; use one of {', '.join(KINDS)}")
    if not 0 <= rate < 1:  # also refuses nan
        raise ValueError(f"mask rate {rate:g}: give the hidden share, from 0 to below 1")
    if kind == "none":
        return grid[0] * grid[1]
    if kind == "crop":
        height, width = _crop_sides(grid, rate, spec.crop_multiple)
        return height * width
    if N == 1 and spec.unit > 1 and rate > 0:
        raise ValueError(
            f"mask '{kind}' hides squares of {spec.unit}×{spec.unit} patches, as the network needs "
            f"them, and the grid of {h * spec.unit}×{w * spec.unit} is only one; use mask none, "
            "smaller patches or larger images"
        )
    H = _floor(rate * N)
    if kind == "block":
        if block < 1 or block > min(h, w):
            raise ValueError(
                f"a grid of {grid[0]}×{grid[1]} patches holds no block of {spec.block}×"
                f"{spec.block}; give a block from 1 to {min(h, w) * spec.unit}, smaller patches or "
                "larger images"
            )
        if h % block == 0 and w % block == 0:
            H = H // block**2 * block**2
    if H >= N:
        raise _nothing_left(kind, grid, rate)
    return (N - H) * spec.unit**2


def most_levels(compiled: bool) -> int:
    """Into how many parts a stage is cut at most; `compiled`: whether each V is."""
    return COMPILED_LEVELS if compiled else MAX_LEVELS


def rate_levels(
    spec: MaskSpec,
    grid: tuple[int, int],
    rate_end: float = 0.0,
    rate_schedule: str = "constant",
    most: int = MAX_LEVELS,
) -> list[tuple[float, float]]:
    """The steps in which a stage goes from its rate to `rate_end`: [(progress at start, rate)].

    `linear`: rate + (rate_end − rate)·progress. `cos4`: rate_end + (rate − rate_end)·cos⁴(π/2 ·
    progress), MaskDiT's way down (Zheng et al. 2024, arXiv 2306.09305). It is cut into `most`
    equal parts, the first at `rate` and the last at `rate_end`; parts with equal V are joined.
    """
    rate = spec.rate
    if spec.kind == "none" or rate_schedule == "constant":
        visible_count(spec, grid)  # raises for a rate that cannot be
        return [(0.0, 0.0 if spec.kind == "none" else rate)]
    if rate_schedule not in RATE_SCHEDULES:
        raise ValueError(f"rate_schedule '{rate_schedule}': use constant, linear or cos4")
    levels: list[tuple[float, float]] = []
    previous = None
    for i in range(most):
        progress = i / (most - 1)
        fall = progress if rate_schedule == "linear" else 1 - math.cos(math.pi / 2 * progress) ** 4
        level = (1 - fall) * rate + fall * rate_end
        V = visible_count(spec.at(level), grid)
        if previous != V:
            levels.append((i / most, level))
        previous = V
    return levels


def crop_sides(grid: tuple[int, int], visible: int, multiple: int = 1) -> tuple[int, int]:
    """Height and width of the crop that shows `visible` patches.

    Both sides only grow as the rate falls, so that their product determines them. A function of
    numbers: a network knows its shapes without reading a mask's window from the device.
    """
    h, w = grid
    if visible == h * w:
        return grid
    for share in {*(i / h for i in range(1, h)), *(j / w for j in range(1, w))}:
        height, width = _sides(grid, share, multiple)
        if height * width == visible:
            return height, width
    raise ValueError(f"no crop of a {h}×{w} grid, in multiples of {multiple}, shows {visible}")


def gather(x: Tensor, ids: Tensor | None) -> Tensor:
    """Rows of `x` [B, N, ...] at `ids` [B, V] → [B, V, ...]; None → `x` itself."""
    if ids is None:
        return x
    B, N = x.shape[:2]
    # one index_select over all images' rows: two to three times faster on CPU than gather
    rows = ids + torch.arange(0, B * N, N, device=ids.device)[:, None]  # [B, V]
    return x.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, ids.shape)


def split_ids(hidden: Tensor, visible: int) -> tuple[Tensor, Tensor]:
    """The numbers of the visible and of the hidden patches, ascending: [B, V] and [B, N − V].

    `hidden` bool [B, N], with V = `visible` others in each image. In shapes that are known before:
    no device is waited for, as `nonzero` would.
    """
    B, N = hidden.shape
    ids = torch.arange(N, device=hidden.device)
    before = hidden.cumsum(1)  # hidden ones up to and with each patch
    place = torch.where(hidden, before + (visible - 1), ids - before)
    both = torch.empty_like(place).scatter_(1, place, ids.expand(B, N))
    return both[:, :visible].contiguous(), both[:, visible:].contiguous()


def from_visible(grid: tuple[int, int], visible: Tensor, kind: str, multiple: int = 1) -> Mask:
    """The mask of this kind that shows the patches `visible` [B, V], ascending, fewer than N."""
    (B, V), N = visible.shape, grid[0] * grid[1]
    hidden = torch.ones(B, N, dtype=torch.bool, device=visible.device).scatter_(1, visible, False)
    window = None
    if kind == "crop":
        sides = visible.new_tensor(crop_sides(grid, V, multiple)).expand(B, 2)
        corner = visible[:, :1]  # the least number is the upper left patch
        window = torch.cat([corner // grid[1], corner % grid[1], sides], dim=1)
    return Mask(grid, visible, split_ids(hidden, V)[1], window)


# --- how the kinds are drawn -------------------------------------------------------------------


class Draws:
    """Uniform numbers for a batch: from one generator, or from one for each image."""

    def __init__(self, batch: int, generator: Generator, device: torch.device | str) -> None:
        first = generator[0] if isinstance(generator, Sequence) else generator
        self.batch, self.generator = batch, generator
        self.device = first.device if first is not None else torch.device(device)

    def uniform(self, count: int) -> Tensor:
        """[B, count] float32 in [0, 1)."""
        if isinstance(self.generator, Sequence):
            each = [torch.rand(count, generator=g, device=self.device) for g in self.generator]
            return torch.stack(each)
        return torch.rand(self.batch, count, generator=self.generator, device=self.device)


def _units(spec: MaskSpec, grid: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of units. Raises ValueError if the grid is not made of whole ones."""
    u = spec.unit
    if grid[0] % u or grid[1] % u:
        raise ValueError(
            f"a grid of {grid[0]}×{grid[1]} patches does not consist of squares of {u}×{u}"
        )
    return grid[0] // u, grid[1] // u


def _patches_of_units(x: Tensor, units: tuple[int, int], unit: int) -> Tensor:
    """Values of units [B, N/unit²], each for all of its patches [B, N]."""
    if unit == 1:
        return x
    rows = x.unflatten(1, units).repeat_interleave(unit, 1)
    return rows.repeat_interleave(unit, 2).flatten(1)


def _mean_of_units(x: Tensor, grid: tuple[int, int], unit: int) -> Tensor:
    """Values of patches [B, N] → their means over units [B, N/unit²]."""
    if unit == 1:
        return x
    cells = x.view(-1, grid[0] // unit, unit, grid[1] // unit, unit)
    return cells.mean((2, 4)).flatten(1)


def _floor(x: float) -> int:
    return math.floor(x + 1e-9)  # 0.29 · 100 is 28.999999999999996 in floating point


def _nothing_left(kind: str, grid: tuple[int, int], rate: float) -> ValueError:
    return ValueError(
        f"mask '{kind}' at rate {rate:g} leaves no visible patch of a grid of "
        f"{grid[0]}×{grid[1]}; lower the rate"
    )


def _crop_sides(grid: tuple[int, int], rate: float, multiple: int) -> tuple[int, int]:
    """Height and width of the visible rectangle, in patches, of the grid's own aspect."""
    if _floor((1 - rate) * grid[0] * grid[1]) < 1:
        raise _nothing_left("crop", grid, rate)
    return _sides(grid, math.sqrt(1 - rate), multiple)


def _sides(grid: tuple[int, int], share: float, multiple: int) -> tuple[int, int]:
    """The share of each side, rounded down, then to the nearest multiple that fits.

    At least one: a long thin grid keeps a row. What rounding may have taken is given back to the
    share, not to each side, so that sides grow together wherever their shares are equal.
    """
    share += 1e-9
    height, width = (
        max(1, min((2 * int(share * length) + multiple) // (2 * multiple), length // multiple))
        for length in grid
    )
    return height * multiple, width * multiple


def _random_windows(
    grid: tuple[int, int], sides: tuple[int, int], multiple: int, draws: Draws
) -> Tensor:
    """Places of a rectangle of `sides` in the grid → [B, 4] top, left, height, width.

    Uniform over the multiples.
    """
    places = [
        multiple * (draws.uniform(1)[:, 0] * ((length - side) // multiple + 1)).long()
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


def _block_keys(grid: tuple[int, int], block: int, draws: Draws) -> Tensor:
    """Keys [B, N] whose smallest come block by block: rank of the block + a random half.

    The random half orders the patches within a block; it matters only in a block that is hidden in
    part. A half, not a whole: 4095 + 0.9999999 rounds to 4096 in float32, the next block's key.
    """
    h, w = grid
    columns = -(-w // block)
    row = torch.arange(h, device=draws.device) // block
    column = torch.arange(w, device=draws.device) // block
    of_patch = (row[:, None] * columns + column).flatten()  # [N] the block that holds the patch
    blocks = -(-h // block) * columns
    rank = draws.uniform(blocks).argsort(1).argsort(1)
    within = draws.uniform(h * w)
    return rank[:, of_patch] + 0.5 * within
