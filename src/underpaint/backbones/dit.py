"""DiT: a transformer over patches that time and label modulate.

Peebles and Xie 2023 (arXiv 2212.09748):

    c = MLP(sinusoid(c_noise)) + label                              [B, width]
    (shift, scale, gate) × 2 = linear(silu(c))                      in every block
    x = x + gate · attention(norm(x)·(1 + scale) + shift), the same with the MLP
    F = linear(norm(x)·(1 + scale) + shift)

- Positions are fixed sinusoids of column and row, added to the linear patch projection.
- Norms have no weights (eps 1e-6); q, k and v have biases; the GELU is the tanh one.
- adaLN-zero: modulations and head start at zero, so that every block starts as the identity.
- 256 time frequencies, cosines first, ω_i = 10000^(−i/127).
- The null label is the zero vector: pad the label table by a zero row for diffusers' pipeline.
- With nothing hidden it computes what diffusers' `DiTTransformer2DModel` does (norm_eps 1e-6).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from underpaint.backbones.base import Backbone, Prediction, position_ids, register
from underpaint.backbones.layers import (
    MLP,
    Attention,
    SinCosPositions,
    Turn,
    add_augmentation,
    augment_embedding,
    sinusoid,
)
from underpaint.core.masks import Mask
from underpaint.errors import UserError

FREQUENCIES = 256


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """norm(x)·(1 + scale) + shift of tokens [B, T, width], shift and scale [B, width]."""
    normal = F.layer_norm(x, x.shape[-1:], eps=1e-6)
    return normal * (1 + scale[:, None]) + shift[:, None]


class Block(nn.Module):
    """Attention and MLP, each between a modulated norm and a gate.

    `condition` is the width of what modulates them; None: that of the tokens. `gelu` as in `MLP`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        dropout: float,
        qk_norm: bool,
        condition: int | None = None,
        gelu: str = "tanh",
    ) -> None:
        super().__init__()
        self.modulation = nn.Linear(condition or width, 6 * width)
        self.attention = Attention(width, heads, qkv_bias=True, qk_norm=qk_norm)
        self.mlp = MLP(width, hidden, gelu)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, c: Tensor, turn: Turn | None = None) -> Tensor:
        """Tokens [B, T, width], silu of the condition [B, condition] → [B, T, width].

        `turn` as in `Attention`.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).chunk(6, dim=1)
        mixed = self.attention(modulate(x, shift1, scale1), turn)
        x = x + gate1[:, None] * self.dropout(mixed)
        return x + gate2[:, None] * self.dropout(self.mlp(modulate(x, shift2, scale2)))


@register("dit", "transformer modulated by time and label (adaLN-zero)")
class DiT(Backbone):
    """DiT on a grid of patches; `classes` 0 is unconditional."""

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
    ) -> None:
        super().__init__(grid, patch_dim, classes)
        if width % 4:
            raise UserError(f"network.width {width}: a dit needs a width divisible by 4")
        hidden = int(width * mlp_ratio)
        self.embed = nn.Linear(patch_dim, width)
        self.positions = SinCosPositions(grid, width)
        self.time = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.labels = nn.Embedding(classes, width) if classes else None
        self.blocks = nn.ModuleList(
            Block(width, heads, hidden, dropout, qk_norm) for _ in range(depth)
        )
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
        """`patches` [B, V, P], `c_noise` [B], `labels` [B] → F at the visible patches."""
        ids = position_ids(mask, patches.shape[0], self.grid, patches.device)
        c = F.silu(self._condition(c_noise, labels, condition))  # [B, width]
        return Prediction(self._read(self._encode(patches, ids, c), c))

    def _encode(self, patches: Tensor, ids: Tensor, c: Tensor) -> Tensor:
        """Patches at `ids` through all blocks [B, V, width]."""
        x = self.embed(patches) + self.positions(ids)
        for block in self.blocks:
            x = block(x, c)
        return x

    def _read(self, x: Tensor, c: Tensor) -> Tensor:
        """F of the last block's tokens."""
        shift, scale = self.modulation(c).chunk(2, dim=1)
        return self.head(modulate(x, shift, scale))

    def _condition(
        self, c_noise: Tensor, labels: Tensor | None, condition: Tensor | None = None
    ) -> Tensor:
        time = add_augmentation(
            self.augment_embedding, self.time(sinusoid(c_noise, FREQUENCIES, shift=1)), condition
        )
        return add_label(self.labels, time, labels)


def add_label(table: nn.Embedding | None, embedding: Tensor, labels: Tensor | None) -> Tensor:
    """The time's embedding [B, width] with the rows of `labels` [B] added; null adds nothing."""
    if table is None:
        return embedding
    if labels is None:
        raise ValueError("a network with classes needs labels; -1 is the null label")
    # looked up and then zeroed, so that the table gets a gradient from a batch of nulls as well
    return embedding + table(labels.clamp(min=0)) * (labels >= 0)[:, None]


def initialise(network: nn.Module) -> None:
    """Fresh weights: Xavier in linear layers, and modulations that start at zero."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
    for name, module in network.named_modules():  # after the loop above, which has met them too
        if name.split(".")[-1] == "modulation":
            nn.init.zeros_(module.weight)
