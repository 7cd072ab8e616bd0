"""Controls: would these attacks have found a leak here, and do they find one where none can be?

Null. A classifier that never asks the model learns on half of the images to separate members from
non-members by their pixels. If it can, the two differ (another camera, another year), and an
attack's success would say nothing of the model (Duan et al. 2024, arXiv 2402.07841, found most
published successes to be of this kind).

Positive. A copy of the audited model is trained on some non-members until the attacks find them
among others. If even that cannot be seen, not seeing a leak means nothing. Every attack is
made on the copy, so that the result also shows which of them work on this model.
"""

import copy
import hashlib
import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from underpaint.core.alpha import premultiplied
from underpaint.core.loss import DenoisingLoss
from underpaint.data import cache
from underpaint.evaluation.results import kept
from underpaint.privacy import cdi
from underpaint.privacy.attacks import rows, scores
from underpaint.privacy.calibration import AttackSetup, Scores
from underpaint.privacy.statistics import auc, auc_by_level, evaluate, mann_whitney
from underpaint.progress import doing
from underpaint.training.seeding import seed_from

CONFIDENCE = 0.999  # of the null: an audit is refused once in a thousand for no reason
ENOUGH = 0.9  # AUC that the positive control must exceed
OTHERS = 4  # times as many non-members, among which they are looked for
VERSION = 3  # of what the cache keeps
CHECKS = (100, 200, 300, 400, 600, 800, 1200, 1600)  # steps after which the copy is attacked
BATCH, RATE = 16, 2e-3  # memorize in the fewest images
FIRST, SEEN = "loss", 100  # the attack that decides when to stop, and images of each for it


def blind(
    members: NDArray[np.uint8], non_members: NDArray[np.uint8], seed: int = 0
) -> dict[str, Any]:
    """The AUC of a classifier on images [n, H, W, C] alone, with its 99.9 % interval."""

    def scaled(features: NDArray[np.float64], base: NDArray[np.float64]) -> NDArray[np.float64]:
        spread = base.std(0)
        return np.asarray((features - base.mean(0)) / np.where(spread == 0, 1, spread))

    one, two = _summary(members), _summary(non_members)
    first, second = cdi.separate(one, two, seed, scaled, penalty=10.0)
    area = auc(-first, -second, CONFIDENCE)
    # the test of that interval, exact where the images are few
    passed = mann_whitney(-first, -second, "two-sided") >= 1 - CONFIDENCE
    return {"auc": area._asdict(), "passed": passed}


def reference(base: list[Scores], names: Sequence[str]) -> dict[str, Any]:
    """The attacks on a reference model, which saw none of the images: scores of both, by attack."""
    confidence = 1 - (1 - CONFIDENCE) / len(names)
    results = {
        name: evaluate(base[0][name], base[1][name], fpr=(), confidence=confidence)
        for name in names
    }
    passed = all(result["two_sided"] >= 1 - confidence for result in results.values())
    return {"auc": {name: result["auc"] for name, result in results.items()}, "passed": passed}


def positive(setup: AttackSetup, planted: int, identity: list[Any]) -> dict[str, Any]:
    """The planted leak: each attack's best AUC over the levels on a copy that has memorized images.

    `planted`: so many, or half of the non-members if these are few.

    Kept in the cache by all that it depends on: `identity` of the weights, the images, the attacks;
    `reused` says whether it was there.
    """
    mask = setup.masks[1]
    shown = b"" if mask.visible is None else mask.visible.numpy().tobytes()
    inputs = [*identity, setup.names, setup.sigmas, setup.ensemble, setup.noises]
    inputs += [setup.seed, planted, VERSION]
    name = hashlib.sha256(json.dumps(inputs).encode())
    name.update(setup.patches[1].numpy().tobytes() + shown)
    path = cache.root() / "audit" / f"{name.hexdigest()[:32]}.json"
    result, reused = kept(path, lambda: _overfit(setup, planted))
    return result | {"reused": reused}


def _overfit(setup: AttackSetup, planted: int) -> dict[str, Any]:
    """Train a copy on some non-members until an attack separates them from others."""
    began = time.monotonic()
    model = copy.deepcopy(setup.loaded.denoiser).eval().requires_grad_(True)
    denoising_loss = DenoisingLoss(model)
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed_from(setup.seed, "control"))
    optimiser = torch.optim.Adam(model.parameters(), lr=RATE)
    patches, labels = setup.patches[1], setup.subsets[1].labels(setup.loaded)
    # the images lie in the order of the data set, which may be one of classes
    order = torch.from_numpy(np.random.default_rng(setup.seed).permutation(len(patches)))
    count = min(planted, len(patches) // 2)
    parts = [  # what is memorized, and others
        (
            patches[ids].to(device),
            None if labels is None else labels[ids].to(device),
            rows(setup.masks[1], ids),
        )
        for ids in (order[:count], order[count : (1 + OTHERS) * count])
    ]

    def best_auc(names: Sequence[str], most: int | None, noises: int) -> dict[str, float]:
        """Each attack's best AUC over the levels, with at most so many images of each kind."""
        found = [
            scores(
                model,
                x[:most],
                names,
                setup.sigmas,
                labels=y,
                mask=mask,
                seed=setup.seed,
                noises=noises,
                ensemble=setup.ensemble,
            )
            for x, y, mask in parts
        ]
        return {name: max(auc_by_level(found[0][name], found[1][name])) for name in names}

    (images, classes, mask), done = parts[0], 0
    # one attack decides when it is enough; all are made once, at the end
    first, enough = [FIRST if FIRST in setup.names else setup.names[0]], (1 + ENOUGH) / 2
    with doing("positive control", CHECKS[-1]) as at:
        for until in CHECKS:
            while done < until:
                ids = torch.randint(count, (min(BATCH, count),), generator=generator)
                x0 = images[ids]
                t = model.process.draw_t(len(ids), generator, device)
                noise = torch.randn(x0.shape, generator=generator).to(device)
                condition = None if classes is None else classes[ids]
                loss = denoising_loss(x0, condition, rows(mask, ids, device), t, noise).mean
                optimiser.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimiser.step()
                done += 1
                at(done)
            if max(best_auc(first, SEEN, 1).values()) > enough:
                break
    areas = best_auc(setup.names, None, setup.noises)
    best = max(areas.values())
    return {
        "auc": areas,
        "best": best,
        "passed": best > ENOUGH,
        "steps": done,
        "learned": count,
        "others": len(parts[1][0]),
        "seconds": time.monotonic() - began,
    }


def _summary(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Images [n, H, W, C] as their means over an 8×8 grid, and mean and spread of each channel."""
    n, height, width = images.shape[:3]
    images = premultiplied(images)
    rows, columns = min(8, height), min(8, width)
    grey = images.mean(3, dtype=np.float64)
    cells = np.add.reduceat(grey, np.arange(rows) * height // rows, axis=1)
    cells = np.add.reduceat(cells, np.arange(columns) * width // columns, axis=2)
    means, spreads = images.mean((1, 2), dtype=np.float64), images.std((1, 2), dtype=np.float64)
    return np.concatenate([cells.reshape(n, -1), means, spreads], 1)
