"""Controls: would these attacks have found a leak here, and do they find one where none can be?

Null. A classifier that never asks the model learns on half of the images to separate members from
non-members by their pixels. If it can, the two differ (another camera, another year), and an
attack's success would say nothing of the model (Duan et al. 2024, arXiv 2402.07841, found most
published successes to be of this kind).

Positive. A copy of the audited model is trained on 64 non-members until the attacks find them among
the other non-members. If even that cannot be seen, not seeing a leak means nothing. Every attack is
made on the copy, so that the result also shows which of them work on this model.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from underpaint.core.denoiser import Denoiser
from underpaint.core.loss import DenoisingLoss
from underpaint.core.masks import Mask, whole
from underpaint.data import cache
from underpaint.io import replace_text
from underpaint.privacy import cdi
from underpaint.privacy.attacks import rows, scores
from underpaint.privacy.statistics import auc, calibration_split, mann_whitney
from underpaint.training.seeding import seed_from

__all__ = ["CONFIDENCE", "COPIED", "ENOUGH", "VERSION", "blind", "cached", "overfit"]

CONFIDENCE = 0.999  # of the null: an audit is refused once in a thousand for no reason
ENOUGH = 0.9  # AUC that the positive control must exceed
COPIED = 64  # non-members that the copy memorizes
VERSION = 2  # of what `cached` keeps
CHECKS = (100, 200, 400, 800, 1600)  # steps after which the copy is attacked
BATCH, RATE = 32, 1e-3
FIRST, SEEN = "loss", 200  # the attack that decides when to stop, and images of each for it


def blind(
    members: NDArray[np.uint8], non_members: NDArray[np.uint8], seed: int = 0
) -> dict[str, Any]:
    """The AUC of a classifier on images [n, H, W, C] alone, with its 99.9 % interval."""
    one, two = _summary(members), _summary(non_members)
    fit_m, test_m = calibration_split(len(one), seed)
    fit_n, test_n = calibration_split(len(two), seed + 1)
    known = np.concatenate([one[fit_m], two[fit_n]])
    centre, spread = known.mean(0), known.std(0)
    spread[spread == 0] = 1
    labels = np.arange(len(known)) < len(fit_m)
    weights = cdi.fit((known - centre) / spread, labels, penalty=10.0)
    low = [-cdi.predict(weights, (part - centre) / spread) for part in (one[test_m], two[test_n])]
    area = auc(low[0], low[1], CONFIDENCE)
    # the test of that interval, exact where the images are few
    passed = mann_whitney(low[0], low[1], "two-sided") >= 1 - CONFIDENCE
    return {"auc": area._asdict(), "passed": passed}


def overfit(
    denoiser: Denoiser,
    learned: Tensor,
    others: Tensor,
    names: Sequence[str],
    sigmas: Sequence[float],
    *,
    labels: tuple[Tensor, Tensor] | None = None,
    masks: tuple[Mask, Mask] | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Train a copy on `learned` [m, N, P] until an attack separates them from `others` [n, N, P].

    `labels` and `masks` of both, as the audited model is attacked with. The copy is attacked with
    everything in `names`; returns each one's best AUC over the levels.
    """
    began = time.monotonic()
    model = copy.deepcopy(denoiser).eval().requires_grad_(True)
    denoising_loss = DenoisingLoss(model)
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed_from(seed, "control"))
    optimiser = torch.optim.Adam(model.parameters(), lr=RATE)
    images = [learned.to(device), others.to(device)]
    conditions = [None, None] if labels is None else [part.to(device) for part in labels]
    grid: tuple[int, int] = denoiser.backbone.grid  # type: ignore[assignment]
    shown = (whole(grid), whole(grid)) if masks is None else masks

    def best_auc(attacks: Sequence[str], most: int | None) -> dict[str, float]:
        """Each attack's best AUC over the levels, against at most so many of the others."""
        members, rest = (
            scores(model, x[:most], attacks, sigmas, labels=y, mask=mask, seed=seed)
            for x, y, mask in zip(images, conditions, shown, strict=True)
        )
        return {
            name: max(auc(members[name][:, i], rest[name][:, i]).value for i in range(len(sigmas)))
            for name in attacks
        }

    done, enough = 0, (1 + ENOUGH) / 2
    for until in CHECKS:
        for _ in range(until - done):
            ids = torch.randint(len(learned), (min(BATCH, len(learned)),), generator=generator)
            x0 = images[0][ids]
            t = model.process.draw_t(len(ids), generator, device)
            noise = torch.randn(x0.shape, generator=generator).to(device)
            condition = None if conditions[0] is None else conditions[0][ids]
            mask = rows(shown[0], ids, device)
            loss = denoising_loss(x0, condition, mask, t, noise).mean
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
        done = until
        if progress:
            progress(done, CHECKS[-1])
        # one attack decides when it is enough; all are made once, at the end
        if max(best_auc([FIRST if FIRST in names else names[0]], SEEN).values()) > enough:
            break
    areas = best_auc(names, None)
    best = max(areas.values())
    return {
        "auc": areas,
        "best": best,
        "passed": best > ENOUGH,
        "steps": done,
        "learned": len(learned),
        "others": len(others),
        "seconds": time.monotonic() - began,
    }


def cached(name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` gives, kept in the cache under `name`; `reused` says which it was."""
    path = cache.root() / "audit" / f"{name}.json"
    if path.is_file():
        try:
            return {**json.loads(path.read_text(encoding="utf-8")), "reused": True}
        except ValueError:
            pass  # cut short: make it anew
    result = make()
    with cache.writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(Path(path), json.dumps(result))
    return {**result, "reused": False}


def _summary(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Images [n, H, W, C] as their means over an 8×8 grid, and mean and spread of each channel."""
    n, height, width = images.shape[:3]
    rows, columns = min(8, height), min(8, width)
    grey = images.mean(3, dtype=np.float64)
    cells = np.add.reduceat(grey, np.arange(rows) * height // rows, axis=1)
    cells = np.add.reduceat(cells, np.arange(columns) * width // columns, axis=2)
    means, spreads = images.mean((1, 2), dtype=np.float64), images.std((1, 2), dtype=np.float64)
    return np.concatenate([cells.reshape(n, -1), means, spreads], 1)
