"""Scores of one model against those of others: how hard is this image for any model?

A reference model that saw neither members nor non-members gives each image's difficulty, which is
subtracted from its score (Watson et al. 2022, arXiv 2111.08440); it also is a null control, for
attacks that succeed on it see something else than training. Shadow models are `shadows`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from underpaint import model
from underpaint.core.masks import Mask
from underpaint.data import Dataset
from underpaint.errors import UserError
from underpaint.privacy import attacks, controls, shadows, statistics
from underpaint.privacy.membership import Subset

__all__ = [
    "AttackSetup",
    "Scores",
    "calibrate_by_shadows",
    "load_reference",
    "null_control",
    "phase_progress",
]

Progress = Callable[[str, int, int], None]
Scores = dict[str, NDArray[np.float64]]  # of each attack, [n, levels]


class AttackSetup(NamedTuple):
    """How every model is attacked: on which images, and what is seen of them."""

    subsets: tuple[Subset, Subset]  # members, non-members
    patches: list[Tensor]  # [n, N, P] of members, of non-members
    masks: list[Mask | None]
    names: list[str]  # of the attacks
    sigmas: list[float]
    ensemble: attacks.Ensemble
    seed: int
    batch: int

    def scores(self, loaded: model.Model, what: str, progress: Progress | None) -> list[Scores]:
        """The scores of members and of non-members by `loaded`, whose label numbers may differ."""
        return [
            attacks.scores(
                loaded.denoiser,
                self.patches[i],
                self.names,
                self.sigmas,
                labels=subset.labels(loaded),
                mask=self.masks[i],
                seed=self.seed,
                ensemble=self.ensemble,
                batch=self.batch,
                progress=phase_progress(progress, f"{what}, {('members', 'non-members')[i]}"),
            )
            for i, subset in enumerate(self.subsets)
        ]


def load_reference(source: str | Path, loaded: model.Model, setup: AttackSetup) -> model.Model:
    """The reference model. Raises UserError if it is of another space, or has seen the images."""
    other = _load_like(loaded, source)
    shapes = [
        (m.spec.size, m.spec.channels, m.spec.space, m.space.grid, m.space.patch_dim)
        for m in (other, loaded)
    ]
    if shapes[0] != shapes[1]:
        raise UserError(
            f"reference {source}: its images, patches or space are others; give a model of the "
            "same size and space"
        )
    place = next((p for p in model.find(source).parents if (p / "images.json").is_file()), None)
    if place:
        seen = set(json.loads((place / "images.json").read_text(encoding="utf-8"))["trained"])
        for subset in setup.subsets:
            if not isinstance(subset.dataset, Dataset):
                continue
            if any(subset.dataset.file_sha256[i] in seen for i in subset.ids.tolist()):
                raise UserError(
                    f"reference {source}: was trained on images of this audit; give one that saw "
                    "neither members nor non-members"
                )
    return other


def null_control(base: list[Scores], names: Sequence[str]) -> dict[str, Any]:
    """The attacks on the reference model, which saw none of the images."""
    confidence = 1 - (1 - controls.CONFIDENCE) / len(names)
    results = {
        name: statistics.evaluate(base[0][name], base[1][name], fpr=(), confidence=confidence)
        for name in names
    }
    passed = all(result["two_sided"] >= 1 - confidence for result in results.values())
    return {"auc": {name: result["auc"] for name, result in results.items()}, "passed": passed}


def calibrate_by_shadows(
    scores: list[Scores],
    trained: list[shadows.Shadow],
    setup: AttackSetup,
    loaded: model.Model,
    progress: Progress | None,
) -> tuple[dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]], dict[str, Any]]:
    """The scores calibrated by the shadow models, and how well these models are attacked."""
    each = []
    for i, shadow in enumerate(trained):
        other = _load_like(loaded, shadow.folder)
        each.append(setup.scores(other, f"shadow model {i + 1} of {len(trained)}", progress))
    inside = [
        np.stack([shadow.trained_on(subset) for shadow in trained]) for subset in setup.subsets
    ]
    calibrated, expected = {}, {}
    for name in setup.names:
        stacked = [np.stack([by_shadow[i][name] for by_shadow in each]) for i in (0, 1)]
        one, two = (shadows.calibrate(scores[i][name], stacked[i], inside[i]) for i in (0, 1))
        calibrated[f"{name}, shadows"] = (one, two)
        expected[name] = shadows.expected_auc(np.concatenate(stacked, 1), np.concatenate(inside, 1))
    return calibrated, {
        "models": len(trained),
        "rule": shadows.rule(len(trained)),
        "images_each": int(np.mean([len(shadow.inside) for shadow in trained])),
        "auc_on_themselves": expected,
    }


def phase_progress(progress: Progress | None, what: str) -> Callable[[int, int], None] | None:
    """`progress` for one phase."""
    return None if progress is None else lambda done, total: progress(what, done, total)


def _load_like(loaded: model.Model, source: str | Path) -> model.Model:
    """Another model, on the same device and in the same precision."""
    return model.load(source, device=str(loaded.device), precision=loaded.precision)
