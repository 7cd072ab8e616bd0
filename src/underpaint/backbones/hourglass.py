"""Hourglass: fine tokens that mix with their neighbours, coarse tokens that attend to all.

    x = linear(patches) + positions                                    [B, V, width]
    down, each level    local blocks, a skip; 2×2 tokens merged by a linear layer, twice as wide
    coarsest            x = x + gate · attention(m(x)), the same with the MLP: `depth` blocks
    up, each level      split by a linear layer, plus the skip; local blocks
    local block         x = x + gate · MLP(m(x) + convolution(m(x))),  depthwise, 3×3
    F = linear(m(x)),   m(x) = norm(x)·(1 + scale) + shift

Attention costs the square of its tokens, and what far parts of an image have to say to one another
is coarse: a merge leaves a quarter of the tokens, so that they can be few and wide (HDiT: Crowson
et al. 2024, arXiv 2401.11605; U-DiT: Tian et al. 2024, arXiv 2405.02730).

- One condition of time and label, as wide as the finest level, gives all shifts, scales and gates,
  which start at zero, as the head does (adaLN-zero; Peebles and Xie 2023, arXiv 2212.09748).
- Positions: fixed sinusoids where patches enter; in attention, q and k are turned by angles that
  grow with row and column (RoPE, Su et al. 2021, arXiv 2104.09864; by axis, frequencies from 1 to
  1/100: Heo et al. 2024, arXiv 2403.13298), so that q·k depends on the distance of two tokens.
- q and k are divided by their root mean square, always.
- Masks come in squares of 2^levels × 2^levels patches, a coarsest token each (`unit`). Local blocks
  see visible tokens alone: the convolution runs on the whole grid with zeros at hidden places, as
  beyond the edges. That part does not get cheaper with masks: 0.24 % of a whole image's FLOPs at
  16×16 patches, width 128 and depth 3.
- Tokens stand in nested order: unit by unit, in a unit square by square, so that four in a row are
  always those to be merged.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from underpaint.backbones.base import Backbone, Prediction, position_ids, register
from underpaint.backbones.dit import FREQUENCIES, Block, add_label, initialise, modulate
from underpaint.backbones.layers import (
    MLP,
    SinCosPositions,
    Turn,
    add_augmentation,
    augment_embedding,
    sinusoid,
)
from underpaint.core.masks import Mask, gather
from underpaint.errors import UserError

BASE = 100.0  # the slowest rotation is this many times slower than the fastest


def nest(x: Tensor, levels: int) -> Tensor:
    """A grid of tokens [B, h, w, C] → [B, units, 4^levels, C], nested squares of 2×2 in a unit."""
    twos = (2,) * levels
    split = x.unflatten(2, (-1, *twos)).unflatten(1, (-1, *twos))
    return split.permute(_nested_axes(levels)).flatten(3, -2).flatten(1, 2)


def unnest(x: Tensor, grid: tuple[int, int], levels: int) -> Tensor:
    """The inverse of `nest`, to the grid (h, w)."""
    twos = (2,) * (2 * levels)
    split = x.unflatten(2, twos).unflatten(1, (grid[0] >> levels, grid[1] >> levels))
    axes = _nested_axes(levels)
    split = split.permute([axes.index(axis) for axis in range(len(axes))])
    return split.flatten(levels + 2, -2).flatten(1, levels + 1)


def _nested_axes(levels: int) -> list[int]:
    """From [B, h, row bits, w, column bits, C] to [B, h, w, row bit, column bit, …, C]."""
    column = levels + 2
    pairs = [axis for bit in range(1, levels + 1) for axis in (1 + bit, column + bit)]
    return [0, 1, column, *pairs, 2 * levels + 3]


class LocalBlock(nn.Module):
    """A depthwise 3×3 convolution and an MLP, between a modulated norm and a gate.

    `levels`: how many merges are still to come.
    """

    def __init__(
        self, width: int, hidden: int, dropout: float, condition: int, levels: int
    ) -> None:
        super().__init__()
        self.levels = levels
        self.modulation = nn.Linear(condition, 3 * width)
        self.convolution = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.mlp = MLP(width, hidden, "none")
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, c: Tensor, units: tuple[int, int], shown: Tensor | None) -> Tensor:
        """Tokens [B, T, width] in nested order, silu of the condition [B, condition] → the same.

        `units`: rows and columns of coarsest tokens, of which those at `shown` [B, T/4^levels] are
        visible; None: all.
        """
        shift, scale, gate = self.modulation(c).chunk(3, dim=1)
        x_in = modulate(x, shift, scale)
        near = self._convolved(x_in.unflatten(1, (-1, 4**self.levels)), units, shown)
        return x + gate[:, None] * self.dropout(self.mlp(x_in + near.flatten(1, 2)))

    def _convolved(self, x: Tensor, units: tuple[int, int], shown: Tensor | None) -> Tensor:
        """Tokens [B, visible units, 4^levels, width] → the same."""
        if shown is not None:  # into their places among zeros
            zeros = x.new_zeros(x.shape[0], units[0] * units[1], *x.shape[2:])
            x = zeros.scatter(1, shown[:, :, None, None].expand_as(x), x)
        grid = units[0] << self.levels, units[1] << self.levels
        image = unnest(x, grid, self.levels).permute(0, 3, 1, 2)  # [B, width, h, w]
        x = nest(self.convolution(image).permute(0, 2, 3, 1), self.levels)
        return gather(x, shown)


@register("hourglass", "local blocks on fine tokens, attention on coarse ones")
class Hourglass(Backbone):
    """An hourglass on a grid of patches; `classes` 0 is unconditional.

    `width` is that of the finest level; it doubles with each of `levels` merges. `depth` and
    `heads` are of the attention at the coarsest; `local_depth` local blocks stand on each side of
    each finer level. `qk_norm` is taken and not needed: queries and keys are always normed.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        patch_dim: int,
        classes: int = 0,
        *,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        qk_norm: bool = True,
        augment: bool = False,
        levels: int = 1,
        local_depth: int = 1,
    ) -> None:
        super().__init__(grid, patch_dim, classes)
        self.unit = _checked_unit(grid, width, heads, levels, local_depth)
        self.levels = levels
        self.embed = nn.Linear(patch_dim, width)
        self.positions = SinCosPositions(grid, width)
        self.time = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.labels = nn.Embedding(classes, width) if classes else None

        def local(level: int) -> nn.ModuleList:
            w = width << level
            return nn.ModuleList(
                LocalBlock(w, int(w * mlp_ratio), dropout, width, levels - level)
                for _ in range(local_depth)
            )

        self.down = nn.ModuleList(local(level) for level in range(levels))
        self.merge = nn.ModuleList(
            nn.Linear(4 * (width << level), 2 * (width << level)) for level in range(levels)
        )
        coarse = width << levels
        self.head_width = coarse // heads
        self.blocks = nn.ModuleList(
            Block(coarse, heads, int(coarse * mlp_ratio), dropout, True, width, "none")
            for _ in range(depth)
        )
        self.split = nn.ModuleList(
            nn.Linear(2 * (width << level), 4 * (width << level)) for level in range(levels)
        )
        self.up = nn.ModuleList(local(level) for level in range(levels))
        self.modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, patch_dim)
        initialise(self)
        nn.init.zeros_(self.head.weight)
        self.augment_embedding = augment_embedding(width) if augment else None

    def forward(
        self,
        patches: Tensor,
        c_noise: Tensor,
        labels: Tensor | None,
        mask: Mask,
        condition: Tensor | None = None,
    ) -> Prediction:
        """`patches` [B, V, P], `c_noise` [B], `labels` [B] → F at the visible patches.

        Visible patches are whole units: V is a multiple of unit².
        """
        ids = position_ids(mask, patches.shape[0], self.grid, patches.device)
        time = self.time(sinusoid(c_noise, FREQUENCIES, shift=1))
        time = add_augmentation(self.augment_embedding, time, condition)
        c = F.silu(add_label(self.labels, time, labels))  # [B, width]
        x = self.embed(patches) + self.positions(ids)
        if mask.visible is None:
            x = nest(x.unflatten(1, self.grid), self.levels).flatten(1, 2)
            return Prediction(self._raster(self._read(self._nested(x, c, None), c)))
        if ids.shape[1] % self.unit**2:
            raise ValueError(
                f"{ids.shape[1]} visible patches are not whole squares of {self.unit}×{self.unit}"
            )
        keys = self._keys(ids)  # [B, V]
        order = keys.argsort(1)
        shown = keys.gather(1, order)[:, :: self.unit**2] // self.unit**2  # [B, visible units]
        x = self._nested(gather(x, order), c, shown)
        return Prediction(gather(self._read(x, c), order.argsort(1)))

    def _nested(self, x: Tensor, c: Tensor, shown: Tensor | None) -> Tensor:
        """Tokens [B, V, width] in nested order through all levels; units at `shown`, None: all."""
        units = self.grid[0] // self.unit, self.grid[1] // self.unit
        skips = []
        for blocks, merge in zip(self.down, self.merge, strict=True):
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, c, units, shown)
            skips.append(x)
            x = merge(x.unflatten(1, (-1, 4)).flatten(2))  # [B, T, C] → [B, T/4, 2C]
        turn = self._turn(shown)
        for block in self.blocks:
            x = block(x, c, turn)
        for blocks, split in zip(reversed(self.up), reversed(self.split), strict=True):
            x = split(x).unflatten(2, (4, -1)).flatten(1, 2) + skips.pop()
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, c, units, shown)
        return x

    def _read(self, x: Tensor, c: Tensor) -> Tensor:
        """F of the last block's tokens."""
        shift, scale = self.modulation(c).chunk(2, dim=1)
        return self.head(modulate(x, shift, scale))

    def _raster(self, x: Tensor) -> Tensor:
        """All tokens [B, N, C] in nested order → row by row."""
        return unnest(x.unflatten(1, (-1, self.unit**2)), self.grid, self.levels).flatten(1, 2)

    def _keys(self, ids: Tensor) -> Tensor:
        """Places of the patches `ids` in the nested order of the whole image: unit, then bits."""
        w = self.grid[1]
        row, column = ids // w, ids % w
        key = row // self.unit * (w // self.unit) + column // self.unit
        for bit in reversed(range(self.levels)):
            key = 4 * key + 2 * (row // 2**bit % 2) + column // 2**bit % 2
        return key

    def _turn(self, shown: Tensor | None) -> Turn:
        """The coarsest tokens' angles; rows first.

        Coordinates are those of the middles, in units: of another resolution those of the old one.
        """
        rows, columns = (
            axis.float().unflatten(0, (-1, self.unit)).mean(1) / self.unit
            for axis in (self.positions.rows, self.positions.columns)
        )
        quarter = self.head_width // 4
        i = torch.arange(quarter, dtype=torch.float32, device=rows.device)
        omega = torch.exp(i * (-math.log(BASE) / quarter))
        row = (rows[:, None] * omega)[:, None].expand(-1, len(columns), -1)
        column = (columns[:, None] * omega)[None].expand(len(rows), -1, -1)
        angles = torch.cat([row, column], dim=-1).flatten(0, 1)  # [units, d/2]
        angles = angles[None] if shown is None else F.embedding(shown, angles)
        return angles.cos()[:, None], angles.sin()[:, None]


def _checked_unit(
    grid: tuple[int, int], width: int, heads: int, levels: int, local_depth: int
) -> int:
    """Patches a side that a coarsest token stands for. Raises UserError for what does not fit."""
    if levels < 1 or local_depth < 1:
        name, value = ("levels", levels) if levels < 1 else ("local_depth", local_depth)
        raise UserError(f"network.options.{name} {value}: give 1 or more, or use network.kind dit")
    if width % 4:
        raise UserError(f"network.width {width}: an hourglass needs a width divisible by 4")
    unit = 2**levels
    if grid[0] % unit or grid[1] % unit:
        raise UserError(
            f"network.options.levels {levels}: a grid of {grid[0]}×{grid[1]} patches is not "
            f"divisible by {unit}; give fewer levels, another size or another patch"
        )
    if (width << levels) % (4 * heads):
        raise UserError(
            f"network.heads {heads}: {width << levels} features at the coarsest level do not make "
            f"heads of a width divisible by 4; give fewer heads or another width"
        )
    return unit
