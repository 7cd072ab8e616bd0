"""U-Net: DDPM's convolutional network, which takes a crop as a smaller image.

Ho et al. 2020 (arXiv 2006.11239), as diffusers' `UNet2DModel`. A crop mask's rectangle is an image
of its own: the network runs on its hh·p × ww·p pixels alone (cf. Patch Diffusion, Wang et al. 2023,
arXiv 2304.12526). Other masks fill hidden patches with zeros and run on the whole image, which
saves nothing. Every pixel comes with three channels beside its colours:

    visible   1 where the pixel is seen, 0 where zeros stand for a hidden one
    row       2 (i + 1/2)/H − 1, its place in the whole image, also inside a crop
    column    2 (j + 1/2)/W − 1

- `width` is that of the first level, `depth` the residual blocks per level (DDPM: 2), `heads` those
  of the narrowest attention (DDPM: 1). `mlp_ratio` has no meaning here.
- `multipliers`: each level's width over the first one's; between levels the sides are halved, so
  the sides of images and crops are multiples of 2^(levels − 1) pixels (`stride`).
- `attention`: the levels, counted from 0, with attention; the middle always has it.
- What follows differs between published networks, so that an imported one is computed exactly:
  `groups` of the norms (0: 32, fewer where that leaves less than 4 channels), `head_width` (0: by
  `heads`), `norm_eps`, `padding` when halving (0: at the far side), and of the time's sinusoid
  `freq_shift` and `cosines_first`. The defaults are DDPM's.
- The label's row (the last is null) and the embedding of augmentation are added to the
  time embedding. Each residual branch and the last convolution start from zero, as in DDPM.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from underpaint.backbones.base import Backbone, Prediction, position_ids, register
from underpaint.backbones.layers import add_augmentation, augment_embedding, label_rows
from underpaint.core.masks import Mask, crop_sides, gather
from underpaint.core.spaces import to_patches, to_planes
from underpaint.errors import UserError

EXTRA = 3  # channels beside the colours: visible, row, column


@register("unet", "convolutions with long skips (DDPM); crops are smaller images")
class UNet(Backbone):
    """U-Net on images whose patches are `patch` pixels a side; `classes` 0 is unconditional."""

    def __init__(
        self,
        grid: tuple[int, int],
        patch_dim: int,
        classes: int = 0,
        *,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        augment: bool = False,
        multipliers: tuple[int, ...] = (1, 2, 2, 2),
        attention: tuple[int, ...] = (1,),
        groups: int = 0,
        head_width: int = 0,
        norm_eps: float = 1e-6,
        padding: int = 0,
        freq_shift: int = 1,
        cosines_first: bool = False,
    ) -> None:
        super().__init__(grid, patch_dim, classes)
        self.patch, self.channels = patch, patch_dim // patch**2
        halved = _checked_stride((grid[0] * patch, grid[1] * patch), multipliers)
        self.stride = halved // math.gcd(halved, patch)
        self.settings = _settings(
            width, depth, heads, dropout, multipliers, attention, groups, head_width
        ) | {
            "in_channels": self.channels + EXTRA,
            "out_channels": self.channels,
            # rows as wide as the time embedding, which are added to it
            "class_embed_type": "identity" if classes or augment else None,
            "norm_eps": norm_eps,
            "downsample_padding": padding,
            # the time's frequencies: over w/2 − freq_shift, sines first
            "freq_shift": freq_shift,
            "flip_sin_to_cos": cosines_first,
        }
        self.labels = nn.Embedding(classes + 1, 4 * width) if classes else None  # the last is null
        self.unet = _unet(self.settings)
        self._initialise()
        self.augment_embedding = augment_embedding(4 * width) if augment else None

    def forward(
        self,
        patches: Tensor,
        c_noise: Tensor,
        labels: Tensor | None,
        mask: Mask,
        condition: Tensor | None = None,
    ) -> Prediction:
        """`patches` [B, V, P], `c_noise` [B], `labels` [B] → F at the visible patches."""
        B, V = patches.shape[:2]
        ids = position_ids(mask, B, self.grid, patches.device)
        sides, corner, scattered = self.grid, None, False
        if mask.window is not None:
            sides, corner = crop_sides(self.grid, V, self.stride), mask.window[:, :2]
        elif mask.visible is not None:
            scattered = True
        shown = patches.new_ones(B, V, self.patch**2)
        if scattered:
            patches, shown = self._scattered(patches, ids), self._scattered(shown, ids)
        planes = [to_planes(x, sides, self.patch) for x in (patches, shown)]
        pixels = torch.cat([*planes, self._places(sides, corner, patches)], dim=1)
        rows = self._rows(c_noise, labels, condition)
        image = self.unet(pixels, c_noise.float(), rows, return_dict=False)[0]
        F = to_patches(image, self.patch)
        return Prediction(gather(F, ids) if scattered else F)

    def _rows(
        self, c_noise: Tensor, labels: Tensor | None, condition: Tensor | None
    ) -> Tensor | None:
        """What is added to the time embedding [B, 4·width], if anything ever is."""
        if self.labels is None:
            rows = c_noise.new_zeros(c_noise.shape[0], self.settings["block_out_channels"][0] * 4)
        else:
            rows = label_rows(self.labels, labels)
        rows = add_augmentation(self.augment_embedding, rows, condition)
        return None if self.settings["class_embed_type"] is None else rows

    def _scattered(self, visible: Tensor, ids: Tensor) -> Tensor:
        """Visible patches [B, V, ...] in their places among zeros [B, N, ...]."""
        N = self.grid[0] * self.grid[1]
        zeros = visible.new_zeros(visible.shape[0], N, visible.shape[2])
        return zeros.scatter(1, ids[:, :, None].expand_as(visible), visible)

    def _places(self, sides: tuple[int, int], corner: Tensor | None, like: Tensor) -> Tensor:
        """Rows and columns in the whole image [B, 2, hh·p, ww·p]; `corner` [B, 2] in patches."""
        axes = []
        for axis in (0, 1):
            place = torch.arange(sides[axis] * self.patch, device=like.device) + 0.5
            place = place.expand(like.shape[0], -1)
            if corner is not None:
                place = place + corner[:, axis, None] * self.patch
            axes.append((2 * place / (self.grid[axis] * self.patch) - 1).to(like.dtype))
        height, width = axes[0].shape[1], axes[1].shape[1]
        rows = axes[0][:, :, None].expand(-1, -1, width)
        columns = axes[1][:, None, :].expand(-1, height, -1)
        return torch.stack([rows, columns], dim=1)

    def _initialise(self) -> None:
        for name, module in self.unet.named_modules():
            # the last layers: of the network, a residual block (so the identity), an attention
            if name.endswith(("conv_out", ".conv2", ".to_out.0")):
                for parameter in module.parameters():
                    nn.init.zeros_(parameter)
        if self.labels is not None:
            nn.init.normal_(self.labels.weight, std=0.02)

    @property
    def features(self) -> int:
        """The first level's channels, at each pixel: long skips lead past the levels below."""
        return int(self.settings["block_out_channels"][0]) * self.patch**2


def _checked_stride(size: tuple[int, int], multipliers: tuple[int, ...]) -> int:
    """Pixels that one cell of the last level stands for. Raises UserError if it does not fit."""
    if not multipliers or min(multipliers) < 1:
        raise UserError(
            f"network.options.multipliers {list(multipliers)}: give a width for each level, such "
            "as 1 2 2 2"
        )
    stride = 2 ** (len(multipliers) - 1)
    if size[0] % stride or size[1] % stride:
        below, above = (
            [s // stride * stride for s in size],
            [-(-s // stride) * stride for s in size],
        )
        near = [f"{a}×{b}" for a, b in (below, above) if a and b]
        raise UserError(
            f"a unet of {len(multipliers)} levels halves the sides {len(multipliers) - 1} times, "
            f"but {size[0]}×{size[1]} is not divisible by {stride}; give size {' or '.join(near)}, "
            "or fewer network.options.multipliers"
        )
    return stride


def _settings(
    width: int,
    depth: int,
    heads: int,
    dropout: float,
    multipliers: tuple[int, ...],
    attention: tuple[int, ...],
    groups: int,
    head_width: int,
) -> dict[str, Any]:
    """Arguments of `UNet2DModel`, with DDPM's choices. Raises UserError where they do not fit."""
    last = len(multipliers) - 1
    if width % 4:
        raise UserError(f"network.width {width}: a unet needs a width divisible by 4")
    if any(not 0 <= level <= last for level in attention):
        raise UserError(
            f"network.options.attention {list(attention)}: give levels from 0 to {last}, or none"
        )
    widths = [width * multiplier for multiplier in multipliers]
    attending = {widths[level] for level in (*attention, last)}  # the middle is the last's width
    head, rest = (head_width, 0) if head_width else divmod(min(attending), heads)
    if groups < 0 or any(groups and w % groups for w in widths):
        raise UserError(f"network.options.groups {groups}: give a number that divides {widths}")
    if rest or head < 1 or any(w % head for w in attending):
        shown = ", ".join(str(w) for w in sorted(attending))
        given = f"options.head_width {head_width}" if head_width else f"heads {heads}"
        raise UserError(
            f"network.{given}: heads of equal width do not fit attention of width {shown}; "
            "give another number of heads or other multipliers"
        )
    down = ["AttnDownBlock2D" if i in attention else "DownBlock2D" for i in range(last + 1)]
    up = ["AttnUpBlock2D" if i in attention else "UpBlock2D" for i in reversed(range(last + 1))]
    return {
        "block_out_channels": tuple(widths),
        "down_block_types": tuple(down),
        "up_block_types": tuple(up),
        "layers_per_block": depth,
        "attention_head_dim": head,
        "norm_num_groups": groups or math.gcd(32, width // 4),  # at least 4 channels a group
        "dropout": dropout,
    }


def _unet(settings: dict[str, Any]) -> nn.Module:
    try:
        from diffusers.models.unets.unet_2d import UNet2DModel
    except ImportError:
        raise UserError(
            "network.kind unet needs diffusers; type pip install 'underpaint[diffusers]'"
        ) from None
    return UNet2DModel(**settings)
