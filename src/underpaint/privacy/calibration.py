"""Scores of one model against those of others: how hard is this image for any model?

A reference model that saw neither side gives each image's difficulty, which is taken from its score
(Watson et al. 2022, arXiv 2111.08440); it also is a null control, for attacks that succeed on it
see something else than training. Shadow models are `shadows`.
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
from underpaint.privacy.membership import Images

__all__ = ["Asked", "Scores", "against_shadows", "named", "null_of", "the_reference"]

Progress = Callable[[str, int, int], None]
Scores = dict[str, NDArray[np.float64]]  # of each attack, [n, levels]


class Asked(NamedTuple):
    """What every model is asked: the images of both sides, and what of them is seen."""

    sides: tuple[Images, Images]
    patches: list[Tensor]  # [n, N, P] of members, of non-members
    masks: list[Mask | None]
    names: list[str]  # of the attacks
    sigmas: list[float]
    ensemble: attacks.Ensemble
    seed: int
    batch: int

    def scores(self, loaded: model.Model, what: str, progress: Progress | None) -> list[Scores]:
        """The scores of both sides by `loaded`, whose labels may be numbered in its own way."""
        return [
            attacks.scores(
                loaded.denoiser,
                self.patches[i],
                self.names,
                self.sigmas,
                labels=side.labels(loaded),
                mask=self.masks[i],
                seed=self.seed,
                ensemble=self.ensemble,
                batch=self.batch,
                progress=named(progress, f"{what}, {('members', 'non-members')[i]}"),
            )
            for i, side in enumerate(self.sides)
        ]


def the_reference(source: str | Path, loaded: model.Model, asked: Asked) -> model.Model:
    """The reference model. Raises UserError if it is of another space, or has seen a side."""
    other = _beside(loaded, source)
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
        for side in asked.sides:
            if not isinstance(side.dataset, Dataset):
                continue
            if any(side.dataset.file_sha256[i] in seen for i in side.ids.tolist()):
                raise UserError(
                    f"reference {source}: was trained on images of this audit; give one that saw "
                    "neither members nor non-members"
                )
    return other


def null_of(base: list[Scores], names: Sequence[str]) -> dict[str, Any]:
    """The attacks on the reference model, which saw neither side."""
    confidence = 1 - (1 - controls.CONFIDENCE) / len(names)
    found = {
        name: statistics.evaluate(base[0][name], base[1][name], fpr=(), confidence=confidence)
        for name in names
    }
    passed = all(own["two_sided"] >= 1 - confidence for own in found.values())
    return {"auc": {name: own["auc"] for name, own in found.items()}, "passed": passed}


def against_shadows(
    scores: list[Scores],
    trained: list[shadows.Shadow],
    asked: Asked,
    loaded: model.Model,
    progress: Progress | None,
) -> tuple[dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]], dict[str, Any]]:
    """The scores against those of the shadow models, and what these show of themselves."""
    each = []
    for i, shadow in enumerate(trained):
        other = _beside(loaded, shadow.folder)
        each.append(asked.scores(other, f"shadow model {i + 1} of {len(trained)}", progress))
    inside = [np.stack([shadow.has(side) for shadow in trained]) for side in asked.sides]
    better, ground = {}, {}
    for name in asked.names:
        stacked = [np.stack([own[i][name] for own in each]) for i in (0, 1)]
        calibrated = [shadows.calibrate(scores[i][name], stacked[i], inside[i]) for i in (0, 1)]
        better[f"{name}, shadows"] = (calibrated[0], calibrated[1])
        ground[name] = shadows.ground(np.concatenate(stacked, 1), np.concatenate(inside, 1))
    return better, {
        "models": len(trained),
        "rule": shadows.rule(len(trained)),
        "images_each": int(np.mean([len(shadow.inside) for shadow in trained])),
        "auc_on_themselves": ground,
    }


def named(progress: Progress | None, what: str) -> Callable[[int, int], None] | None:
    """`progress` for one phase."""
    return None if progress is None else lambda done, total: progress(what, done, total)


def _beside(loaded: model.Model, source: str | Path) -> model.Model:
    """Another model, on the same device and in the same precision."""
    return model.load(source, device=str(loaded.device), precision=loaded.precision)
