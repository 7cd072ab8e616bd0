"""Extraction by completion: shown half of an image, does the model know the rest?

The image is completed as in inpainting (`core/inpainting.py`): the visible patches are put in at
each step, and each step is taken `repeats` times.

At the end the hidden patches are compared with the truth. A good model completes every image
somewhat; one that remembers an image completes that one better than images it never saw:

    advantage = mean over non-members of the hidden patches' squared error − mean over members

Masks and noises are the same for every image. The interval is Welch's.
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from underpaint.core import inpainting, samplers
from underpaint.core.denoiser import Denoiser
from underpaint.core.masks import Mask, MaskSpec, draw, gather
from underpaint.model import evaluating
from underpaint.privacy.statistics import auc
from underpaint.progress import doing
from underpaint.training.seeding import seed_from

DRAWS, STEPS, REPEATS = 2, 20, 2  # masks of each image, levels, how often each is stepped from
EULER = samplers.Sampling("euler", clip="none")


def masks(grid: tuple[int, int], count: int, seed: int) -> Mask:
    """`count` masks that hide half of the image in blocks of a quarter of its side."""
    generator = torch.Generator().manual_seed(seed_from(seed, "completion", "mask"))
    block = max(1, min(grid) // 4)
    return draw(MaskSpec("block", 0.5, block=block), grid, count, generator)


@torch.inference_mode()
def complete(
    denoiser: Denoiser,
    patches: Tensor,
    visible: Tensor,
    sigmas: Tensor,
    noise: Callable[[], Tensor],
    labels: Tensor | None = None,
    repeats: int = 1,
    seen: Callable[[], None] = lambda: None,
) -> Tensor:
    """Whole images [B, N, P] from the patches of `patches` [B, N, P] at `visible` [B, V].

    `noise` gives standard normal tensors [1 or B, N, P]; `sigmas` [steps + 1] falling to 0.
    Hidden patches are never read. `seen` is called after each step.
    """
    mask = Mask(denoiser.backbone.grid)  # type: ignore[arg-type]
    known = torch.zeros(patches.shape[:2], dtype=torch.bool, device=patches.device)
    known = known.scatter(1, visible, True)[:, :, None]  # [B, N, 1]

    def mix(x: Tensor, other: Tensor) -> Tensor:
        return torch.where(known, other, x)

    def sample_noise() -> Tensor:
        return noise().to(patches).expand_as(patches)

    found = inpainting.repaint(
        lambda x, sigma: denoiser.denoise(x, sigma, labels, mask),
        sample_noise() * float(sigmas[0]),
        sigmas,
        EULER,
        patches,
        mix,
        noise=sample_noise,
        resample=repeats,
        callback=seen,
    )
    return mix(found, patches)


def errors(
    denoiser: Denoiser,
    patches: Tensor,
    *,
    labels: Tensor | None = None,
    seed: int = 0,
    draws: int = DRAWS,
    steps: int = STEPS,
    repeats: int = REPEATS,
    batch: int = 64,
) -> NDArray[np.float64]:
    """Squared error of the hidden patches of each of `patches` [n, N, P], by mask: [draws, n].

    The same masks and noises for every image.
    """
    n, N, P = patches.shape
    device = next((p.device for p in denoiser.parameters()), patches.device)
    shown = masks(denoiser.backbone.grid, draws, seed)  # type: ignore[arg-type]
    if shown.visible is None or shown.hidden is None:
        raise ValueError("an image of one patch has no half")
    levels = samplers.sigmas(denoiser.process, steps, "karras")
    result = np.zeros((draws, n))
    asked, calls = itertools.count(1), -(-n // batch) * draws * calls_of(levels, repeats)
    with evaluating(denoiser), doing("completion", n) as at:

        def seen() -> None:
            at(n * min(1.0, next(asked) / calls))

        for start in range(0, n, batch):
            x0 = patches[start : start + batch].to(device).float()
            condition = None if labels is None else labels[start : start + batch].to(device)
            for i in range(draws):
                visible, hidden = (
                    part[i].to(device).expand(len(x0), *part[i].shape)
                    for part in (shown.visible, shown.hidden)
                )
                # begun anew for each batch, so that every image meets the same noises
                g = torch.Generator().manual_seed(seed_from(seed, "completion", "noise", i))
                noise = partial(torch.randn, 1, N, P, generator=g)
                completed = complete(denoiser, x0, visible, levels, noise, condition, repeats, seen)
                squares = (gather(completed, hidden) - gather(x0, hidden)).square().mean((1, 2))
                result[i, start : start + batch] = squares.double().cpu().numpy()
    return result


def calls_of(sigmas: Tensor, repeats: int) -> int:
    """How often the network is asked about each image that is completed."""
    return len(inpainting.steps(sigmas, repeats))


def advantage(members: NDArray[np.float64], non_members: NDArray[np.float64]) -> dict[str, Any]:
    """How much better members are completed: the difference with its 95 % interval, p, and AUC."""
    difference = float(non_members.mean() - members.mean())
    low, high, p_value = difference, difference, 1.0
    if members.std() + non_members.std() > 0:
        welch = partial(stats.ttest_ind, non_members, members, equal_var=False)
        low, high = welch().confidence_interval(0.95)
        p_value = welch(alternative="greater").pvalue
    return {
        "advantage": difference,
        "low": float(low),
        "high": float(high),
        "member_error": float(members.mean()),
        "non_member_error": float(non_members.mean()),
        "p_value": float(p_value),
        "auc": auc(members, non_members)._asdict(),
    }
