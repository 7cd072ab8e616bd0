"""Salient masks: patches of high contrast are visible more often, by chances known exactly.

Of the N patches of an image V are drawn, patch i with the chance

    π_i = min(1, c·(1 + v_i/v)^(1/T))          c such that Σ π_i = V

where v_i is its local variance, v their mean over the image and T the temperature. An image without
contrast has equal chances. They hold exactly by systematic sampling (Madow 1949): with the patches
in a random order and one u, uniform in [0, 1), a patch is drawn if its stretch of the running sum
of π holds one of u, u + 1, …, u + V − 1.

Weights V/(N π_i) make the mean of errors over visible patches that over all patches, in expectation
(Horvitz and Thompson 1952), where a patch's error does not depend on which others are visible. A
network's does: there they take away the preference for some patches, and no more is claimed.
"""

import torch
from torch import Tensor


def local_variance(images: Tensor, grid: tuple[int, int]) -> Tensor:
    """Variance of each patch [B, N] of `images` [B, C, H, W]: within a channel, mean over them."""
    B, C, H, W = images.shape
    h, w = grid
    cells = images.reshape(B, C, h, H // h, w, W // w)
    return cells.float().var(dim=(3, 5), correction=0).mean(1).flatten(1)


def chances(contrast: Tensor, visible: int, temperature: float = 1.0) -> Tensor:
    """The chances π [B, N] float64 of being visible, from the contrast [B, N] ≥ 0; V = `visible`.

    With scores s in falling order, patch k has the chance 1 where (V − k)·s_k > s_k + s_(k+1) + …
    """
    v = contrast.double()
    score = (1 + v / v.mean(1, keepdim=True).clamp(min=1e-12)).log() / temperature
    # at most 1, and above 0, at any temperature
    score = (score - score.amax(1, keepdim=True)).exp().clamp(min=1e-30)
    falling = score.sort(dim=1, descending=True).values
    rest = falling.flip(1).cumsum(1).flip(1)  # [B, N] the sums from k on
    k = torch.arange(v.shape[1], device=v.device)
    certain = ((visible - k) * falling > rest).sum(1, keepdim=True)  # [B, 1]
    certain = certain.clamp(max=visible - 1)  # a rounded sum may claim the last one as well
    c = (visible - certain) / rest.gather(1, certain)
    return (c * score).clamp(max=1)


def systematic(chance: Tensor, order: Tensor, start: Tensor, visible: int) -> Tensor:
    """Which patches are drawn: bool [B, N], `visible` of them in each image.

    `chance` [B, N] sums to `visible`, `order` [B, N] is a permutation, `start` [B] is u in [0, 1).
    """
    ends = chance.gather(1, order).cumsum(1)  # [B, N]
    ends[:, -1] = visible  # which it is but for rounding
    marks = (ends - start.to(ends)[:, None]).ceil()  # how many of u, u + 1, … lie before each end
    held = marks.diff(dim=1, prepend=torch.zeros_like(marks[:, :1]))  # 1 if drawn
    # the topmost, not those above 0: their number is V also where a chance of 1 was rounded up
    drawn = order.gather(1, held.topk(visible, dim=1).indices)
    return torch.zeros_like(chance, dtype=torch.bool).scatter_(1, drawn, True)
