"""The layers that the transformers share: sinusoids, attention and the MLP.

    sinusoid(c)[i] = cos(c ω_i), sin(c ω_i),   ω_i = 10000^(−i / (w/2 − shift)),   i < w/2

Attention is softmax(q kᵀ/√d) v over the tokens that are there (Vaswani et al. 2017, arXiv
1706.03762). With `qk_norm`, q and k of each head are divided by their root mean square over its d
numbers and multiplied by learned scales (from one, shared by the heads), so that q·k/√d is at most
√d times these and the softmax cannot collapse to single tokens (Dehghani et al. 2023, arXiv
2302.05442).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from underpaint.core.augmentation import CONDITION

Turn = tuple[Tensor, Tensor]  # cosines and sines of angles, each [B or 1, 1, T, d/2]


def sinusoid(c_noise: Tensor, width: int, *, shift: int = 0) -> Tensor:
    """c_noise [B] → [B, width] float32 (bfloat16 cannot tell 999 from 1000), cosines first."""
    half = width // 2
    i = torch.arange(half, dtype=torch.float32, device=c_noise.device)
    # in diffusers' order of rounding, which c_noise = 999 would multiply
    omega = torch.exp(-math.log(10000) * i / (half - shift))
    angle = c_noise.float()[:, None] * omega  # [B, w/2]
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class SinCosPositions(nn.Module):
    """Fixed positions: the first half of the width encodes the column, the second the row.

    Each half is sin, then cos of the coordinate times 10000^(−i/(width/4)), as in DiT. The h + w
    coordinates are kept, so that a checkpoint knows those it was trained with.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, grid: tuple[int, int], width: int) -> None:
        super().__init__()
        self.width = width
        # on the CPU: on the meta device this would import torch._dynamo, which takes seconds
        rows, columns = (torch.arange(side, dtype=torch.float32, device="cpu") for side in grid)
        self.register_buffer("rows", rows)
        self.register_buffer("columns", columns)

    def forward(self, ids: Tensor) -> Tensor:
        """Patch numbers [B, V] → [B, V, width] float32."""
        w = len(self.columns)
        column = self._waves(self.columns)  # [w, width/2]
        row = self._waves(self.rows)  # [h, width/2]
        row, column = row[:, None].expand(-1, w, -1), column[None].expand(len(row), -1, -1)
        return F.embedding(ids, torch.cat([column, row], dim=-1).flatten(0, 1))

    def _waves(self, coordinate: Tensor) -> Tensor:
        quarter = self.width // 4
        i = torch.arange(quarter, dtype=torch.float32, device=coordinate.device)
        angle = coordinate.float()[:, None] * torch.exp(i * (-math.log(10000) / quarter))
        return torch.cat([angle.sin(), angle.cos()], dim=1)


class Attention(nn.Module):
    """Multi-head self-attention; one linear layer makes q, k and v, in this order."""

    def __init__(self, width: int, heads: int, *, qkv_bias: bool, qk_norm: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.out = nn.Linear(width, width)
        self.norm_q = nn.RMSNorm(width // heads, eps=1e-6) if qk_norm else None
        self.norm_k = nn.RMSNorm(width // heads, eps=1e-6) if qk_norm else None

    def forward(self, x: Tensor, turn: Turn | None = None) -> Tensor:
        """Tokens [B, T, width] → [B, T, width]; `turn`: q and k are turned by these angles."""
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1))  # [B, T, 3, heads, d]
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, heads, T, d]
        # norms and angles in float32 also under autocast: lengths are what is being tamed
        if self.norm_q is not None and self.norm_k is not None:
            q, k = self.norm_q(q.float()), self.norm_k(k.float())
        if turn is not None:
            q, k = rotate(q.float(), turn), rotate(k.float(), turn)
        mixed = attend(q.to(v.dtype), k.to(v.dtype), v)
        return self.out(mixed.transpose(1, 2).flatten(2))


def rotate(x: Tensor, turn: Turn) -> Tensor:
    """Turn the pairs (x[i], x[i + d/2]) of x [B, heads, T, d] by angles with this cos and sin."""
    cos, sin = turn
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention, each [B, heads, T, d].

    On a CPU in float32 also under autocast: torch's backward in bf16 takes three times as long.
    """
    if v.device.type != "cpu" or v.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q, k, v)
    with torch.autocast("cpu", enabled=False):
        found = F.scaled_dot_product_attention(q.float(), k.float(), v.float())
    return found.to(v.dtype)


class MLP(nn.Module):
    """Linear, GELU ("none": with the error function; "tanh": its approximation), linear.

    On a CPU torch computes the approximation in 2.5 to 4 times the seconds.
    """

    def __init__(self, width: int, hidden: int, gelu: str) -> None:
        super().__init__()
        self.rise = nn.Linear(width, hidden)
        self.gelu = nn.GELU(gelu)
        self.fall = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, T, width] → [B, T, width]."""
        return self.fall(self.gelu(self.rise(x)))


def label_rows(table: nn.Embedding, labels: Tensor | None) -> Tensor:
    """The rows [B, width] of `labels` [B] in a table whose last row is that of null."""
    if labels is None:
        raise ValueError("a network with classes needs labels; -1 is the null label")
    return table(torch.where(labels < 0, table.num_embeddings - 1, labels))


def augment_embedding(width: int) -> nn.Linear:
    """From what an image's augmentation was to the time's embedding; starts at zero, no bias."""
    layer = nn.Linear(CONDITION, width, bias=False)
    nn.init.zeros_(layer.weight)
    return layer


def add_augmentation(
    layer: nn.Linear | None, embedding: Tensor, condition: Tensor | None
) -> Tensor:
    """The time's embedding [B, width], with the `condition` [B, D] or its None added."""
    if layer is None:
        if condition is not None:
            raise ValueError("a network without network.augment takes no condition")
        return embedding
    if condition is None:  # computed all the same: the layer gets a gradient, of zero
        condition = embedding.new_zeros(embedding.shape[0], CONDITION)
    return embedding + layer(condition)
