"""Membership inference: scores of single images that are lower for images trained on.

The attacker may ask the model to denoise what he likes (grey box). In the frame x = x0 + sigma n,
with e(x, sigma) the model's noise (`Denoiser.eps`), every error a mean over the visible patches:

    loss    (n − e(x0 + sigma n, sigma))², over fixed n        Matsumoto et al. 2023, 2302.03262
    secmi   (e(x, sigma) − e(x', sigma'))², x reached from x0 by deterministic DDIM, x' one step
            further: the step out and back ends (sigma' − sigma) times this from where it began
                                                               Duan et al. 2023, 2302.01316
    pia     |e0 − e(x0 + sigma e0, sigma)|^4, e0 = e(x0, sigma_min)   Kong et al. 2024, 2305.18355
    sima    |e(x0/alpha, sigma)|²: x0 as it is, fed as x_t     Rao et al. 2025
    masks   the loss under many random masks: do models trained on parts betray their parts? (ours)

A mask makes it an attack with parts of images: what is hidden is never read. The same noises and
the same masks are used for every image, so that a score is a function of the image and the seed
alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from underpaint.core.denoiser import Denoiser
from underpaint.core.masks import Mask, MaskSpec, draw, gather, visible_count, whole
from underpaint.core.schedules import Process
from underpaint.errors import UserError
from underpaint.model import evaluating
from underpaint.training.seeding import seed_from

__all__ = ["ATTACKS", "Ensemble", "Query", "check", "levels", "rows", "scores"]

ATTACKS = {
    "loss": "error of the noise the model sees in a noised image",
    "secmi": "error of one deterministic step away and back",
    "pia": "error on noise that the model itself sees in the clean image",
    "sima": "length of the noise that the model sees in the clean image",
    "masks": "the error of `loss` under many random masks",
}
LOG_SNR = (-3.0, 5.0)  # from sigma 4.5 to 0.08: beyond, every image looks alike or is plain to see
INNER = 2  # DDIM steps between two levels, to reach one from the other


class Ensemble(NamedTuple):
    """The random masks of the attack `masks`."""

    kind: str = "patch"
    rate: float = 0.5
    block: int = 2
    masks: int = 8


class Query:
    """A model asked about images of which `mask` shows a part: x is [B, V, P] throughout."""

    def __init__(self, denoiser: Denoiser, labels: Tensor | None, mask: Mask) -> None:
        self.denoiser = denoiser
        self.labels = labels
        self.mask = mask

    def eps(self, x: Tensor, sigma: float) -> Tensor:
        """The noise the model sees at the visible patches, [B, V, P]."""
        return self.denoiser.eps(x, sigma, self.labels, self.mask)


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
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Scores [n, levels] of each attack in `names`, low for members.

    `patches` [n, N, P] as a space gives them; `sigmas` rising; `labels` int64 [n]; `mask` of the n
    images, None for whole ones. `noises`: how many each of `loss` and `masks` is averaged over.
    Raises UserError for an unknown attack.
    """
    names = check(names)
    n, N, P = patches.shape
    mask = whole(denoiser.backbone.grid) if mask is None else mask  # type: ignore[arg-type]
    ensemble = Ensemble() if ensemble is None else ensemble
    device = next((p.device for p in denoiser.parameters()), patches.device)
    generator = torch.Generator().manual_seed(seed_from(seed, "attack", "noise"))
    fixed = torch.randn(noises, 1, N, P, generator=generator).to(device)  # the same for all images
    parts = _parts(mask, ensemble, denoiser, seed)
    result = {name: np.empty((n, len(sigmas))) for name in names}
    with evaluating(denoiser):
        for start in range(0, n, batch):
            part = slice(start, min(start + batch, n))
            shown = rows(mask, part, device)
            condition = None if labels is None else labels[part].to(device)
            x0 = gather(patches[part].to(device).float(), shown.visible)  # [B, V, P]
            ask = Query(denoiser, condition, shown)
            for name in names:
                if name == "loss":
                    values = [_loss(ask, x0, _at(fixed, shown, len(x0)), s) for s in sigmas]
                elif name == "secmi":
                    values = _secmi(ask, x0, sigmas)
                elif name == "pia":
                    values = _pia(ask, x0, sigmas)
                elif name == "sima":
                    values = [_sima(ask, x0, s) for s in sigmas]
                else:
                    values = _masks(denoiser, condition, x0, shown, parts, fixed, sigmas)
                result[name][part] = torch.stack(values, 1).double().cpu().numpy()
            if progress:
                progress(part.stop, n)
    return result


def _loss(ask: Query, x0: Tensor, noises: list[Tensor], sigma: float) -> Tensor:
    errors = [(n - ask.eps(x0 + sigma * n, sigma)).square().mean((1, 2)) for n in noises]
    return torch.stack(errors).mean(0)  # [B]


def _secmi(ask: Query, x0: Tensor, sigmas: Sequence[float]) -> list[Tensor]:
    """One DDIM trajectory up through all levels: dx/dsigma = e(x, sigma), by Euler steps.

    With x' = x + (s' − s) e(x, s), the way back ends at x' + (s − s') e(x', s'): the error is
    (s' − s)(e(x, s) − e(x', s')). The factor is the same for every image and left out.
    """
    sigma, x = ask.denoiser.process.sigma_min, x0
    here, values = ask.eps(x, sigma), []
    for end in sigmas:
        for between in np.geomspace(sigma, end, INNER + 1)[1:].tolist():
            x, sigma = x + (between - sigma) * here, between
            here = ask.eps(x, sigma)
        further = min(sigma * 1.15, ask.denoiser.process.sigma_max)
        there = ask.eps(x + (further - sigma) * here, further)
        values.append((here - there).square().mean((1, 2)))
    return values


def _pia(ask: Query, x0: Tensor, sigmas: Sequence[float], p: int = 4) -> list[Tensor]:
    noise = ask.eps(x0, ask.denoiser.process.sigma_min)
    return [(noise - ask.eps(x0 + s * noise, s)).abs().pow(p).mean((1, 2)) for s in sigmas]


def _sima(ask: Query, x0: Tensor, sigma: float) -> Tensor:
    alpha = float(ask.denoiser.process.alpha(torch.tensor(sigma, dtype=torch.float64)))
    return ask.eps(x0 / alpha, sigma).square().mean((1, 2))  # x_t = x0 is x0/alpha in our frame


def _masks(
    denoiser: Denoiser,
    labels: Tensor | None,
    x0: Tensor,
    seen: Mask,
    parts: Mask | None,
    fixed: Tensor,
    sigmas: Sequence[float],
) -> list[Tensor]:
    """The loss under each of the masks `parts`, which number the visible patches x0 [B, V, P]."""
    B = len(x0)
    if parts is None or parts.visible is None:
        return [_loss(Query(denoiser, labels, seen), x0, _at(fixed, seen, B), s) for s in sigmas]
    totals = [x0.new_zeros(B) for _ in sigmas]
    count = len(parts.visible)
    for i in range(count):
        chosen = parts.visible[i].to(x0.device).expand(B, -1)  # [B, V'] places among the visible
        shown = chosen if seen.visible is None else seen.visible.gather(1, chosen)
        window = None if parts.window is None else parts.window[i].to(x0.device).expand(B, -1)
        mask = Mask(seen.grid, shown, _hidden(shown, seen.grid), window)
        ask = Query(denoiser, labels, mask)
        part = gather(x0, chosen)
        noise = _at(fixed[i % len(fixed)][None], mask, B)
        for total, s in zip(totals, sigmas, strict=True):
            total += _loss(ask, part, noise, s) / count
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
    if mask.visible is None:
        kind = ensemble.kind if ensemble.kind in ("patch", "block", "crop") else "patch"
        multiple = denoiser.stride
        spec = MaskSpec(kind, ensemble.rate, block=ensemble.block, multiple=multiple, unit=unit)
        return draw(spec, mask.grid, ensemble.masks, generator)
    V = mask.visible.shape[1]
    spec = MaskSpec("patch", ensemble.rate)
    if visible_count(spec, (1, V)) == V:
        return None
    return draw(spec, (1, V), ensemble.masks, generator)


def _hidden(visible: Tensor, grid: tuple[int, int]) -> Tensor:
    """The patches that are not visible, ascending."""
    hidden = torch.ones(len(visible), math.prod(grid), dtype=torch.bool, device=visible.device)
    hidden.scatter_(1, visible, False)
    return hidden.nonzero()[:, 1].view(len(visible), -1)


def _at(fixed: Tensor, mask: Mask, count: int) -> list[Tensor]:
    """Each of the fixed noises [K, 1, N, P] at the visible patches of `count` images."""
    return [gather(noise.expand(count, -1, -1), mask.visible) for noise in fixed]


def rows(mask: Mask, ids: slice | Tensor, device: torch.device | str = "cpu") -> Mask:
    """The mask of the images `ids` alone."""
    fields = (None if field is None else field[ids].to(device) for field in mask[1:])
    return Mask(mask.grid, *fields)
