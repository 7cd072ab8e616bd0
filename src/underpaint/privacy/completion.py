"""Extraction by completion: shown half of an image, does the model know the rest?

The replacement method (Song et al. 2021, arXiv 2011.13456): a sampler goes from noise to an image,
and before each step what is known is put where it would be at that level,

    x[visible] := x0[visible] + sigma n[visible]

At the end the hidden patches are compared with the truth. A good model completes every image
somewhat; one that remembers an image completes that one better than its like:

    advantage = mean over non-members of the hidden patches' squared error − mean over members

Masks and noises are the same for every image. The interval is Welch's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from underpaint.core import samplers
from underpaint.core.denoiser import Denoiser
from underpaint.core.masks import Mask, draw, gather, whole
from underpaint.model import evaluating
from underpaint.privacy.statistics import auc
from underpaint.training.draws import key

__all__ = ["advantage", "complete", "errors", "masks"]


def masks(grid: tuple[int, int], count: int, seed: int) -> Mask:
    """`count` masks that hide half of the image in blocks of a quarter of its side."""
    generator = torch.Generator().manual_seed(key(seed, "completion", "mask"))
    block = max(1, min(grid) // 4)
    return draw("block", grid, count, 0.5, block=block, generator=generator)


@torch.inference_mode()
def complete(
    denoiser: Denoiser,
    patches: Tensor,
    visible: Tensor,
    noise: Tensor,
    sigmas: Tensor,
    labels: Tensor | None = None,
) -> Tensor:
    """Whole images [B, N, P] from the patches of `patches` [B, N, P] at `visible` [B, V].

    `noise` [B, N, P]; `sigmas` [steps + 1] falling to 0. Hidden patches are never read.
    """
    ids = visible[:, :, None].expand(-1, -1, patches.shape[2])
    known, own = gather(patches, visible), gather(noise, visible)
    mask = whole(denoiser.backbone.grid)  # type: ignore[arg-type]

    def denoise(x: Tensor, sigma: float | Tensor) -> Tensor:
        level = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).flatten()[0]
        x0 = denoiser.denoise(x.scatter(1, ids, known + level * own), sigma, labels, mask)
        # so that the sampler itself leads the visible patches to the truth
        return x0.scatter(1, ids, known)

    return samplers.sample(denoise, noise * float(sigmas[0]), sigmas, "euler")


def errors(
    denoiser: Denoiser,
    patches: Tensor,
    *,
    labels: Tensor | None = None,
    seed: int = 0,
    draws: int = 2,
    steps: int = 20,
    grid: str = "karras",
    batch: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float64]:
    """Squared error of the hidden patches of each of `patches` [n, N, P], over `draws` masks: [n].

    The same masks and noises for every image. `grid`: of the noise levels, as in `samplers.sigmas`.
    """
    n, N, P = patches.shape
    device = next((p.device for p in denoiser.parameters()), patches.device)
    shown = masks(denoiser.backbone.grid, draws, seed)  # type: ignore[arg-type]
    if shown.visible is None or shown.hidden is None:
        raise ValueError("an image of one patch has no half")
    generator = torch.Generator().manual_seed(key(seed, "completion", "noise"))
    noises = torch.randn(draws, N, P, generator=generator)
    levels = samplers.sigmas(denoiser.process, steps, grid)
    result = np.zeros(n)
    with evaluating(denoiser):
        for start in range(0, n, batch):
            x0 = patches[start : start + batch].to(device).float()
            own = None if labels is None else labels[start : start + batch].to(device)
            for i in range(draws):
                visible, hidden, noise = (
                    part[i].to(device).expand(len(x0), *part[i].shape)
                    for part in (shown.visible, shown.hidden, noises)
                )
                found = complete(denoiser, x0, visible, noise, levels, own)
                squares = (gather(found, hidden) - gather(x0, hidden)).square().mean((1, 2))
                result[start : start + batch] += squares.double().cpu().numpy() / draws
            if progress:
                progress(min(start + batch, n), n)
    return result


def advantage(members: NDArray[np.float64], others: NDArray[np.float64]) -> dict[str, Any]:
    """How much better members are completed: the difference with its 95 % interval, p, and AUC."""
    difference = float(others.mean() - members.mean())
    test = stats.ttest_ind(others, members, equal_var=False, alternative="greater")
    m, n = len(members), len(others)
    one, two = members.var(ddof=1) / m, others.var(ddof=1) / n
    reach = 0.0
    if one + two > 0:
        freedom = (one + two) ** 2 / (one**2 / (m - 1) + two**2 / (n - 1))
        reach = float(stats.t.ppf(0.975, freedom)) * math.sqrt(one + two)
    return {
        "advantage": difference,
        "low": difference - reach,
        "high": difference + reach,
        "member_error": float(members.mean()),
        "non_member_error": float(others.mean()),
        "p_value": float(test.pvalue) if one + two > 0 else 1.0,
        "auc": auc(members, others)._asdict(),
    }
