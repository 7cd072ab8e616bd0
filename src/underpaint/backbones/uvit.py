"""U-ViT: a transformer over patches whose early blocks are wired to its late ones.

MaskDM's network (Lei et al. 2023, arXiv 2306.11363), after Bao et al. 2023 (arXiv 2209.12152):

    tokens = [time, (label,) patch 1 … patch V],   time and patches with learned positions
    depth//2 blocks ─┬─ one block ─┬─ depth//2 blocks, each after linear(concat(x, its partner's x))
                     └── skips ────┘
    norm → linear head on the patch tokens

- The time token is the sinusoid of c_noise itself (cosines first, ω_i = 10000^(−2i/width)), no MLP;
  of `time_scale` times c_noise, which is 0.999 in Bao's models of pixels.
- Blocks are pre-norm, with the erf GELU, no bias on q, k and v. The patch projection is linear, and
  no convolution follows the head; `final_conv` adds Bao's, 3×3 on the image whose hidden patches
  are zeros. It starts as the identity.
- The label token is ours (MaskDM is unconditional): a learned row a class and one for null.
- Weights start from a normal law of deviation 0.02, biases from zero.
- `depth` 13 and 12 both give 6 + 1 + 6 blocks, as in MaskDM's S and B.
"""

import torch
from torch import Tensor, nn

from underpaint.backbones.base import Backbone, Prediction, position_ids, register
from underpaint.backbones.layers import (
    MLP,
    Attention,
    add_augmentation,
    augment_embedding,
    label_rows,
    sinusoid,
)
from underpaint.core.masks import Mask, gather
from underpaint.core.spaces import to_patches, to_planes
from underpaint.errors import UserError


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, qk_norm: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, qkv_bias=False, qk_norm=qk_norm)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width, hidden, "none")
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, T, width] → [B, T, width]."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.mlp(self.norm2(x)))


@register("uvit", "transformer with long skips, time and label as tokens (MaskDM)")
class UViT(Backbone):
    """U-ViT on a grid of patches; `classes` 0 is unconditional."""

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
        qk_norm: bool = False,
        augment: bool = False,
        patch: int = 1,
        time_scale: float = 1.0,
        final_conv: bool = False,
    ) -> None:
        super().__init__(grid, patch_dim, classes)
        self.patch, self.time_scale = patch, time_scale
        if width % 2:
            raise UserError(f"network.width {width}: a uvit needs an even width")
        self.width, hidden, side = width, int(width * mlp_ratio), depth // 2
        self.embed = nn.Linear(patch_dim, width)
        self.positions = nn.Embedding(grid[0] * grid[1], width)
        self.time_position = nn.Embedding(1, width)
        self.labels = nn.Embedding(classes + 1, width) if classes else None  # the last is null

        def block() -> Block:
            return Block(width, heads, hidden, dropout, qk_norm)

        self.early = nn.ModuleList(block() for _ in range(side))
        self.middle = block()
        self.skips = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(side))
        self.late = nn.ModuleList(block() for _ in range(side))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, patch_dim)
        self.apply(_initialise)
        channels = patch_dim // patch**2
        self.conv_out = nn.Conv2d(channels, channels, 3, padding=1) if final_conv else None
        if self.conv_out is not None:
            nn.init.dirac_(self.conv_out.weight)
            nn.init.zeros_(self.conv_out.bias)  # type: ignore[arg-type]
        self.augment_embedding = augment_embedding(width) if augment else None

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
        x = self.embed(patches) + self.positions(ids)  # [B, V, width]
        x = torch.cat([self._tokens(c_noise, labels, condition), x], dim=1)  # [B, T, width]
        kept = []
        for block in self.early:
            x = block(x)
            kept.append(x)
        x = self.middle(x)
        for skip, block in zip(self.skips, self.late, strict=True):
            x = block(skip(torch.cat([x, kept.pop()], dim=2)))
        output = self.head(self.norm(x[:, -V:]))
        if self.conv_out is None:
            return Prediction(output)
        if mask.visible is not None:  # into their places among zeros
            zeros = output.new_zeros(B, self.grid[0] * self.grid[1], self.patch_dim)
            output = zeros.scatter(1, ids[:, :, None].expand_as(output), output)
        image = self.conv_out(to_planes(output, self.grid, self.patch))
        return Prediction(gather(to_patches(image, self.patch), mask.visible))

    def _tokens(
        self, c_noise: Tensor, labels: Tensor | None, condition: Tensor | None = None
    ) -> Tensor:
        """The tokens in front of the patches [B, 1 or 2, width]."""
        zero = torch.zeros_like(c_noise, dtype=torch.long)
        time = sinusoid(self.time_scale * c_noise, self.width) + self.time_position(zero)
        tokens = [add_augmentation(self.augment_embedding, time, condition)]
        if self.labels is not None:
            tokens.append(label_rows(self.labels, labels))
        return torch.stack(tokens, dim=1)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
