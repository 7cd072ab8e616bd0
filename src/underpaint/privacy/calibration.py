"""Scores of one model against those of others: how hard is this image for any model?

A reference model that saw neither members nor non-members gives each image's difficulty, which is
subtracted from its score (Watson et al. 2022, arXiv 2111.08440); it also is a null control, for
attacks that succeed on it see something else than training. Shadow models are `shadows`.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from underpaint import model, model_folder
from underpaint.core.masks import Mask
from underpaint.data import digests
from underpaint.errors import UserError
from underpaint.privacy import attacks, shadows
from underpaint.privacy.membership import Subset
from underpaint.training import identities

Scores = dict[str, NDArray[np.float64]]  # of each attack, [n, levels]


class AttackSetup(NamedTuple):
    """The audited model, and how every model is attacked: on which images, what is seen of them."""

    loaded: model.Model
    subsets: tuple[Subset, Subset]  # members, non-members
    patches: list[Tensor]  # [n, N, P] of members, of non-members
    masks: list[Mask]
    names: list[str]  # of the attacks
    sigmas: list[float]
    ensemble: attacks.Ensemble
    noises: int  # of each image, in `loss` and `masks`
    seed: int
    batch: int

    def scores(self, attacked: model.Model, what: str) -> list[Scores]:
        """The scores of members and of non-members by a model, whose label numbers may differ."""
        return [
            attacks.scores(
                attacked.denoiser,
                self.patches[i],
                self.names,
                self.sigmas,
                labels=subset.labels(attacked),
                mask=self.masks[i],
                seed=self.seed,
                ensemble=self.ensemble,
                noises=self.noises,
                batch=self.batch,
                what=f"{what}, {('members', 'non-members')[i]}",
            )
            for i, subset in enumerate(self.subsets)
        ]


def load_reference(source: str | Path, setup: AttackSetup) -> model.Model:
    """The reference model. Raises UserError if it is of another space, or has seen the images."""
    other = _load_like(setup.loaded, source)
    shapes = [
        (m.spec.size, m.spec.channels, m.spec.space, m.space.grid, m.space.patch_dim)
        for m in (other, setup.loaded)
    ]
    if shapes[0] != shapes[1]:
        raise UserError(
            f"reference {source}: its images, patches or space are others; give a model of the "
            "same size and space"
        )
    place = next(
        (p for p in model_folder.find(source).parents if (p / "images.json").is_file()), None
    )
    if place:
        seen = identities.read(place).trained
        if any(digests.among(s.images.identities(s.ids).files, seen).any() for s in setup.subsets):
            raise UserError(
                f"reference {source}: was trained on images of this audit; give one that saw "
                "neither members nor non-members"
            )
    return other


def calibrate_by_shadows(
    scores: list[Scores], trained: list[shadows.Shadow], setup: AttackSetup
) -> tuple[dict[str, list[NDArray[np.float64]]], dict[str, Any]]:
    """The scores calibrated by the shadow models, and how well these models are attacked."""
    each = [
        setup.scores(_load_like(setup.loaded, shadow.folder), f"shadow model {i} of {len(trained)}")
        for i, shadow in enumerate(trained, 1)
    ]
    inside = [
        np.stack([shadow.trained_on(subset) for shadow in trained]) for subset in setup.subsets
    ]
    calibrated, expected = {}, {}
    for name in setup.names:
        stacked = [np.stack([by_shadow[i][name] for by_shadow in each]) for i in (0, 1)]
        calibrated[f"{name}, shadows"] = [
            shadows.calibrate(scores[i][name], stacked[i], inside[i]) for i in (0, 1)
        ]
        expected[name] = shadows.expected_auc(np.concatenate(stacked, 1), np.concatenate(inside, 1))
    return calibrated, {
        "models": len(trained),
        "rule": shadows.rule(len(trained)),
        "images_each": int(np.mean([len(shadow.inside) for shadow in trained])),
        "auc_on_themselves": expected,
    }


def _load_like(loaded: model.Model, source: str | Path) -> model.Model:
    """Another model, on the same device and in the same precision."""
    return model.load(source, device=str(loaded.device), precision=loaded.precision)
