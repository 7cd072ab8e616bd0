"""Membership inference: scores of single images that are lower for images trained on.

The attacker may ask the model to denoise what he likes (grey box). In the frame x = x0 + sigma n,
with e(x, sigma) the model's noise (`Denoiser.eps`), every error a mean over the visible patches:

    loss    (n − e(x0 + sigma n, sigma))², over fixed n        Matsumoto et al. 2023, 2302.03262
    secmi   (e(x, sigma) − e(x', sigma'))², x reached from x0 by deterministic DDIM, x' one step
            further on it: the step out and back ends (sigma' − sigma) times this from where it
            began                                              Duan et al. 2023, 2302.01316
    pia     |e0 − e(x0 + sigma e0, sigma)|^4, e0 = e(x0, sigma_min)   Kong et al. 2024, 2305.18355
    sima    |e(x0/alpha, sigma)|²: x0 as it is, fed as x_t     Rao et al. 2025
    masks   the loss under many random masks: do models trained on parts betray their parts? (ours)

A mask makes it an attack with parts of images: what is hidden is never read. The same noises and
the same masks are used for every image, so that a score is a function of the image and the seed
alone.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from underpaint.core.denoiser import Denoiser
from underpaint.core.masks import Mask, MaskSpec, draw, from_visible, gather
from underpaint.core.schedules import Process
from underpaint.errors import UserError
from underpaint.model import evaluating
from underpaint.progress import counted, doing
from underpaint.training.seeding import seed_from

ATTACKS = {
    "loss": "error of the noise the model sees in a noised image",
    "secmi": "error of one deterministic step away and back",
    "pia": "error on noise that the model itself sees in the clean image",
    "sima": "length of the noise that the model sees in the clean image",
    "masks": "the error of `loss` under many random masks",
}
LOG_SNR = (-3.0, 5.0)  # from sigma 4.5 to 0.08: beyond, every image looks alike or is plain to see
FURTHER = 1.15  # times the noise level: the step that is taken out and back

Eps = Callable[[Tensor, float], Tensor]


class Ensemble(NamedTuple):
    """The random masks of the attack `masks`."""

    kind: str = "patch"
    rate: float = 0.5
    block: int = 2
    masks: int = 8


def check(names: Sequence[str]) -> list[str]:
    """The attacks of these names. Raises UserError for one that does not exist."""
    for name in names:
        if name not in ATTACKS:
            raise UserError(f"attack '{name}' does not exist; use {', '.join(ATTACKS)}")
    if not names:
        raise UserError(f"no attack was named; use {', '.join(ATTACKS)}")
    return list(dict.fromkeys(names))


def levels(process: Process, count: int = 6) -> list[float]:
    """Noise levels to attack at, rising, equally spaced in log-SNR within the process's range."""
    low = max(LOG_SNR[0], -2 * math.log(process.sigma_max))
    high = min(LOG_SNR[1], -2 * math.log(process.sigma_min))
    return [math.exp(-value / 2) for value in np.linspace(high, low, count)]


@torch.inference_mode()
def scores(
    denoiser: Denoiser,
    patches: Tensor,
    names: Sequence[str],
    sigmas: Sequence[float],
    *,
    labels: Tensor | None = None,
    mask: Mask | None = None,
    seed: int = 0,
    noises: int = 4,
    ensemble: Ensemble | None = None,
    batch: int = 64,
    what: str = "attacks",
) -> dict[str, NDArray[np.float64]]:
    """Scores [n, levels] of each attack in `names`, low for members.

    `patches` [n, N, P] as a space gives them; `sigmas` rising; `labels` int64 [n]; `mask` of the n
    images, None for whole ones. `noises`: how many each of `loss` and `masks` is averaged over.
    `what` names it where progress is shown.
    Raises UserError for an unknown attack.
    """
    names = check(names)
    n, N, P = patches.shape
    mask = mask or Mask(denoiser.backbone.grid)  # type: ignore[arg-type]
    device = next((p.device for p in denoiser.parameters()), patches.device)
    generator = torch.Generator().manual_seed(seed_from(seed, "attack", "noise"))
    fixed = torch.randn(noises, 1, N, P, generator=generator).to(device)  # the same for all images
    parts = _parts(mask, ensemble or Ensemble(), denoiser, seed)
    result = {name: np.empty((n, len(sigmas))) for name in names}
    asked, calls = itertools.count(1), calls_of(names, len(sigmas), noises, parts)
    with evaluating(denoiser), doing(what, n) as at:

        def seen() -> None:
            at(n * min(1.0, next(asked) / (calls * -(-n // batch))))

        ask = counted(denoiser.eps, seen)
        for start in range(0, n, batch):
            part = slice(start, min(start + batch, n))
            shown = rows(mask, part, device)
            condition = None if labels is None else labels[part].to(device)
            x0 = gather(patches[part].to(device).float(), shown.visible)  # [B, V, P]
            eps = partial(ask, labels=condition, mask=shown)
            clean = eps(x0, denoiser.process.sigma_min) if {"secmi", "pia"} & {*names} else x0
            for name in names:
                if name == "secmi":
                    values = _secmi(eps, denoiser.process, x0, clean, sigmas)
                elif name == "pia":
                    values = _pia(eps, x0, clean, sigmas)
                elif name == "sima":
                    values = _sima(eps, denoiser.process, x0, sigmas)
                elif name == "masks" and parts is not None:
                    under = partial(ask, labels=condition)
                    values = _masks(under, x0, shown, parts, fixed, sigmas)
                else:
                    values = _loss(eps, x0, _at(fixed, shown, len(x0)), sigmas)
                result[name][part] = torch.stack(values, 1).double().cpu().numpy()
    return result


def calls_of(names: Sequence[str], levels: int, noises: int, parts: Mask | None) -> int:
    """How often the network is asked about each image."""
    masked = noises if parts is None or parts.visible is None else len(parts.visible)
    each = {"loss": levels * noises, "secmi": 1 + 2 * levels, "masks": levels * masked}
    return sum(each.get(name, levels) for name in names) + bool({"secmi", "pia"} & {*names})


# --- from x0 [B, V, P] and the noise eps(x, sigma) that is seen in it to scores [B] ---------------


def _loss(eps: Eps, x0: Tensor, noises: list[Tensor], sigmas: Sequence[float]) -> list[Tensor]:
    def error(sigma: float) -> Tensor:
        each = [(n - eps(x0 + sigma * n, sigma)).square().mean((1, 2)) for n in noises]
        return torch.stack(each).mean(0)

    return [error(sigma) for sigma in sigmas]


def _secmi(
    eps: Eps, process: Process, x0: Tensor, clean: Tensor, sigmas: Sequence[float]
) -> list[Tensor]:
    """One DDIM trajectory up through all levels: dx/dsigma = e(x, sigma), by Euler steps.

    With x' = x + (s' − s) e(x, s), the way back ends at x' + (s − s') e(x', s'): the error is
    (s' − s)(e(x, s) − e(x', s')). The factor is the same for every image and left out. The
    trajectory goes on from x'. `clean`: e(x0, sigma_min).
    """
    here, values, x, sigma = clean, [], x0, process.sigma_min

    def step(end: float) -> None:
        nonlocal here, x, sigma
        x, sigma = x + (end - sigma) * here, end
        here = eps(x, sigma)

    step(math.sqrt(sigma * sigmas[0]))  # the way to the first level is the longest
    for level in sigmas:
        step(level)
        before = here
        step(min(level * FURTHER, process.sigma_max))
        values.append((before - here).square().mean((1, 2)))
    return values


def _pia(eps: Eps, x0: Tensor, clean: Tensor, sigmas: Sequence[float]) -> list[Tensor]:
    """`clean`: e(x0, sigma_min)."""
    return [(clean - eps(x0 + s * clean, s)).abs().pow(4).mean((1, 2)) for s in sigmas]


def _sima(eps: Eps, process: Process, x0: Tensor, sigmas: Sequence[float]) -> list[Tensor]:
    alphas = process.alpha(torch.tensor(sigmas, dtype=torch.float64)).tolist()
    # x_t = x0 is x0/alpha in our frame
    return [
        eps(x0 / alpha, sigma).square().mean((1, 2))
        for sigma, alpha in zip(sigmas, alphas, strict=True)
    ]


def _masks(
    ask: Callable[..., Tensor],
    x0: Tensor,
    seen: Mask,
    parts: Mask,
    fixed: Tensor,
    sigmas: Sequence[float],
) -> list[Tensor]:
    """The loss under each of the masks `parts`, which number the patches that `seen` shows."""
    assert parts.visible is not None
    B, count = len(x0), len(parts.visible)
    totals = [x0.new_zeros(B) for _ in sigmas]
    for i in range(count):
        part = rows(parts, slice(i, i + 1), x0.device)
        chosen, window = (
            None if f is None else f.expand(B, -1) for f in (part.visible, part.window)
        )
        assert chosen is not None  # [B, V'] places among the visible
        shown = chosen if seen.visible is None else seen.visible.gather(1, chosen)
        mask = from_visible(seen.grid, shown, "patch")._replace(window=window)
        noise = _at(fixed[i % len(fixed)][None], mask, B)
        losses = _loss(partial(ask, mask=mask), gather(x0, chosen), noise, sigmas)
        for total, loss in zip(totals, losses, strict=True):
            total += loss / count
    return totals


def _parts(mask: Mask, ensemble: Ensemble, denoiser: Denoiser, seed: int) -> Mask | None:
    """The masks of the ensemble, over the patches that `mask` shows; None: there are no parts.

    None of a crop, of masks in units, or of an image of one unit.
    """
    generator = torch.Generator().manual_seed(seed_from(seed, "attack", "masks"))
    unit = denoiser.unit
    if mask.window is not None or (unit > 1 and mask.visible is not None):
        return None
    if mask.grid == (unit, unit):
        return None
    if mask.visible is not None:
        spec, grid = MaskSpec("patch", ensemble.rate), (1, mask.visible.shape[1])
    else:
        kind = ensemble.kind if ensemble.kind in ("patch", "block", "crop") else "patch"
        multiple = denoiser.stride
        spec = MaskSpec(kind, ensemble.rate, block=ensemble.block, multiple=multiple, unit=unit)
        grid = mask.grid
    drawn = draw(spec, grid, ensemble.masks, generator)
    return None if drawn.visible is None else drawn


def _at(fixed: Tensor, mask: Mask, count: int) -> list[Tensor]:
    """Each of the fixed noises [K, 1, N, P] at the visible patches of `count` images."""
    return [gather(noise.expand(count, -1, -1), mask.visible) for noise in fixed]


def rows(mask: Mask, ids: slice | Tensor, device: torch.device | str = "cpu") -> Mask:
    """The mask of the images `ids` alone."""
    fields = (None if field is None else field[ids].to(device) for field in mask[1:])
    return Mask(mask.grid, *fields)
