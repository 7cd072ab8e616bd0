"""MaskDiT: an encoder on the visible patches and a light decoder on all of them.

Zheng et al. 2024 (arXiv 2306.09305):

    encoder   DiT blocks on the V visible patches
    bridge    x = linear(norm(x)·(1 + scale) + shift), to the decoder's width
    decoder   DiT blocks on [x of the visible, mask token of the hidden] + positions, N tokens
    F         linear(norm(x)·(1 + scale) + shift), at visible and at hidden patches

- One condition c of time and label, as wide as the encoder, modulates encoder, bridge and decoder.
- The decoder is part of the network: it runs on whole images and in sampling as well.
- Positions of the decoder are fixed sinusoids too; the mask token is one learned vector.
- Bridge and head start at zero, as the modulations do.
- 512×8 is the decoder of XL/2: give a small encoder a smaller one (`decoder_width`, …).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from underpaint.backbones.base import Prediction, position_ids, register
from underpaint.backbones.dit import Block, DiT, initialise, modulate
from underpaint.backbones.layers import SinCosPositions
from underpaint.core.masks import Mask
from underpaint.errors import UserError


class Bridge(nn.Module):
    """From the encoder's tokens to the decoder's."""

    def __init__(self, width: int, decoder_width: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 2 * width)
        self.linear = nn.Linear(width, decoder_width)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Tokens [B, V, width], silu of the condition [B, width] → [B, V, decoder_width]."""
        shift, scale = self.modulation(c).chunk(2, dim=1)
        return self.linear(modulate(x, shift, scale))


class Decoder(nn.Module):
    """Mask tokens beside the visible ones, positions, and blocks on all N."""

    def __init__(
        self, grid: tuple[int, int], width: int, depth: int, block: Callable[[], Block]
    ) -> None:
        super().__init__()
        self.mask_token = nn.Embedding(1, width)
        self.positions = SinCosPositions(grid, width)
        self.blocks = nn.ModuleList(block() for _ in range(depth))

    def forward(self, x: Tensor, ids: Tensor, c: Tensor) -> Tensor:
        """Visible tokens [B, V, width], all patch numbers [B, N], visible first → [B, N, width]."""
        # also where nothing is hidden: every parameter gets a gradient, here of zero
        token = torch.zeros_like(ids[:, x.shape[1] :])
        x = torch.cat([x, self.mask_token(token).to(x.dtype)], dim=1) + self.positions(ids)
        for block in self.blocks:
            x = block(x, c)
        return x


@register("maskdit", "dit on the visible patches, then a light decoder on all (MaskDiT)")
class MaskDiT(DiT):
    """MaskDiT on a grid of patches; `classes` 0 is unconditional."""

    predicts_hidden = True

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
        decoder_width: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
    ) -> None:
        if decoder_depth < 1:
            raise UserError(f"network.options: decoder_depth {decoder_depth}: give at least 1")
        if decoder_heads < 1 or decoder_width < 1 or decoder_width % decoder_heads:
            raise UserError(
                f"network.options: decoder_width {decoder_width} is not divisible by "
                f"decoder_heads {decoder_heads}; give a width that is a multiple of heads"
            )
        if decoder_width % 4:
            raise UserError(
                f"network.options: decoder_width {decoder_width}: give a width divisible by 4"
            )
        super().__init__(
            grid,
            patch_dim,
            classes,
            width=width,
            depth=depth,
            heads=heads,
            mlp_ratio=mlp_ratio,
            dropout=dropout,
            qk_norm=qk_norm,
            augment=augment,
        )
        self.bridge = Bridge(width, decoder_width)
        hidden = int(decoder_width * mlp_ratio)

        def block() -> Block:
            return Block(decoder_width, decoder_heads, hidden, dropout, qk_norm, width)

        self.decoder = Decoder(grid, decoder_width, decoder_depth, block)
        self.modulation = nn.Linear(width, 2 * decoder_width)  # instead of the dit's own two
        self.head = nn.Linear(decoder_width, patch_dim)
        initialise(self.decoder)
        for layer in (self.bridge.modulation, self.bridge.linear, self.modulation, self.head):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        patches: Tensor,
        c_noise: Tensor,
        labels: Tensor | None,
        mask: Mask,
        condition: Tensor | None = None,
    ) -> Prediction:
        """`patches` [B, V, P], `c_noise` [B], `labels` [B] → F at visible and hidden patches."""
        V = patches.shape[1]
        ids = position_ids(mask, patches.shape[0], self.grid, patches.device)  # [B, V]
        c = F.silu(self._condition(c_noise, labels, condition))  # [B, width]
        x = self.bridge(self._encode(patches, ids, c), c)  # [B, V, decoder_width]
        everywhere = ids if mask.hidden is None else torch.cat([ids, mask.hidden], dim=1)  # [B, N]
        output = self._read(self.decoder(x, everywhere, c), c)  # [B, N, P]
        return Prediction(output[:, :V], output[:, V:] if output.shape[1] > V else None)
