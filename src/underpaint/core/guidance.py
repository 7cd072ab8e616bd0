"""Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def guided(
    denoise: Callable[[Tensor, Any, Any], Tensor],
    labels: Tensor | None,
    null_labels: Tensor | None,
    scale: float,
) -> Callable[[Tensor, float | Tensor], Tensor]:
    """Classifier-free guidance: x0 = x0(null) + scale·(x0(labels) − x0(null)).

    `denoise(x, sigma, labels)` gives x0; the result is a function of x [B, …] and sigma alone. Both
    are asked in one batch; at scale 1 (no guidance) only x0(labels) is computed.
    """
    if scale == 1 or labels is None or null_labels is None:
        return lambda x, sigma: denoise(x, sigma, labels)
    both = torch.cat([null_labels, labels])

    def combined(x: Tensor, sigma: float | Tensor) -> Tensor:
        if isinstance(sigma, Tensor) and sigma.ndim:
            sigma = torch.cat([sigma, sigma])
        null, asked = denoise(torch.cat([x, x]), sigma, both).chunk(2)
        return null + scale * (asked - null)

    return combined
