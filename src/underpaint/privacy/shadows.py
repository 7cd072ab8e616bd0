"""Shadow models: how would this image score if it had, or had not, been trained on?

An image that is hard for every model looks like a non-member, an easy one like a member. So a few
models are trained by the audited run's own recipe, each on a random half of the pool of members
and non-members; every second one takes the half that the one before it left, so that each image
is inside half of them. An image's score is then compared with what the models gave that did (in)
and did not (out) train on it: the likelihood-ratio attack (Carlini et al. 2022, arXiv 2112.03570),

    Λ = log N(s; out) − log N(s; in)      s = log of the score, near to normal

low for members, as every score here. What can be estimated depends on the number K of models:

    K < 8         s − mean of the out-models' s (difficulty calibration, Watson et al. 2022,
                  arXiv 2111.08440, with a few models)
    8 ≤ K < 64    Λ with one variance for all images on either side
    K ≥ 64        Λ with a variance of its own for each image

This asks for the images themselves and K trainings (`docs/audit.md` has the cost): an attacker has
that if he knows the kind of data, the audit has it in any case. Models are kept in the cache by all
that they depend on; what was interrupted goes on from its checkpoint.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from underpaint import config, model
from underpaint.data import Dataset, cache
from underpaint.errors import Interrupted, UserError
from underpaint.io import numbered, replace_text
from underpaint.privacy import memorisation
from underpaint.privacy.membership import Images, Sides
from underpaint.privacy.statistics import auc
from underpaint.sealed import format as sealed
from underpaint.training import train
from underpaint.training.seeding import key

__all__ = ["LEAST", "PAIRED", "Shadow", "calibrate", "ground", "rule", "train_all"]

LEAST = 2  # models: every image is outside one of them
ENOUGH, PAIRED = 8, 64  # models from which a variance, and one for each image, can be estimated

Progress = Callable[[int, int], None]
Scores = NDArray[np.float64]


class Shadow(NamedTuple):
    """A trained model, and the sha256 of the files it was trained on."""

    folder: Path
    inside: frozenset[str]

    def has(self, side: Images) -> NDArray[np.bool_]:
        """Which images of a side it was trained on, [n]."""
        if not isinstance(side.dataset, Dataset):
            raise TypeError("sealed images have no files")
        sha = side.dataset.file_sha256
        return np.array([sha[i] in self.inside for i in side.ids.tolist()])


def train_all(
    found: Sides, count: int, *, images: int = 0, seed: int = 0, progress: Progress | None = None
) -> list[Shadow]:
    """`count` shadow models of the run, as long as the run was or `images` images in all.

    `progress` is called with (models done, models in all), and its lack silences training.
    Raises UserError where the recipe is not known or cannot be followed, Interrupted after Ctrl-C.
    """
    if count < LEAST:
        raise UserError(f"{count} shadow models: give at least {LEAST}, so that each image is out")
    recipe = _recipe(found, images)
    start = _start(found)
    pool = sorted({sha for side in (found.members, found.non_members) for sha in _files(side)})
    shadows = []
    for i in range(count):
        if progress:
            progress(i, count)
        order = np.random.default_rng(key(seed, "shadow", i // 2)).permutation(len(pool))
        half = order[: len(pool) // 2] if i % 2 == 0 else order[len(pool) // 2 :]
        inside = sorted(pool[j] for j in half.tolist())
        shadows.append(
            Shadow(_train(recipe, inside, start, seed, i, progress is None), frozenset(inside))
        )
    if progress:
        progress(count, count)
    return shadows


def calibrate(scores: Scores, shadow: Scores, inside: NDArray[np.bool_]) -> Scores:
    """The scores [n, levels] against those of the shadow models [K, n, levels]; `inside` [K, n].

    Low for members. Raises ValueError for an image that is outside no model.
    """
    s, k = _log(scores), _log(shadow)
    out = ~inside[:, :, None]
    outside = out.sum(0)
    if (outside == 0).any():
        raise ValueError("an image is inside every shadow model")
    mean_out = np.where(out, k, 0).sum(0) / outside
    if len(shadow) < ENOUGH:
        return np.asarray(s - mean_out)
    mean_in = np.where(out, 0, k).sum(0) / (len(shadow) - outside)
    ways = []
    for which, mean in ((out, mean_out), (~out, mean_in)):
        squares = np.where(which, (k - mean) ** 2, 0).sum(0)  # [n, levels]
        freedom = which.sum(0) - 1
        if len(shadow) < PAIRED:
            squares, freedom = squares.sum(0, keepdims=True), freedom.sum(0, keepdims=True)
        variance = squares / freedom + 1e-12
        ways.append(-((s - mean) ** 2) / (2 * variance) - 0.5 * np.log(variance))
    return np.asarray(ways[0] - ways[1])


def rule(count: int) -> str:
    """How that many shadow models calibrate, in words."""
    if count < ENOUGH:
        return "difference to the mean of the models that did not see the image"
    each = "each image's own variance" if count >= PAIRED else "one variance for all images"
    return f"likelihood ratio of having and not having seen the image, with {each}"


def ground(shadow: Scores, inside: NDArray[np.bool_]) -> dict[str, float]:
    """How well the score finds the shadows' own members: mean and least AUC of its best level.

    Scores [K, n, levels]: these models were trained by the same recipe, so this is what to expect.
    """
    best = [
        max(auc(k[own, level], k[~own, level]).value for level in range(k.shape[1]))
        for k, own in zip(shadow, inside, strict=True)
        if min(own.sum(), (~own).sum()) >= 2
    ]
    return {"mean": float(np.mean(best)), "least": float(np.min(best))}


def _log(scores: Scores) -> Scores:
    """Errors are positive, differ by factors between images, and may vanish for a perfect copy."""
    return np.asarray(np.log(np.maximum(scores, 1e-12)))


# --- training them -------------------------------------------------------------------------------


def _recipe(found: Sides, images: int) -> config.Run:
    """The run's recipe on the pool, without what only its reader needs."""
    run = found.run
    if run is None or found.place is None:
        raise UserError("--against shadow needs the run's recipe; give the run, not a model alone")
    if not isinstance(found.members.dataset, Dataset):
        raise UserError(
            "--against shadow trains on whole images, and these are sealed; give the images "
            "themselves by --members and --non-members, or a reference model"
        )
    last = list(run.stages.values())[-1]
    audited = (last.data or run.data).source
    one, two = found.members.data, found.non_members.data
    pool = dataclasses.replace(one, audit_split=0.0, limit=0)
    if one.source != two.source:
        pool = dataclasses.replace(pool, held_out=two.source)
    elif not (pool.held_out.startswith("avatars:") or Path(pool.held_out).expanduser().exists()):
        pool = dataclasses.replace(pool, held_out="none")
    whole = sum(stage.images for stage in run.stages.values())
    share = min(1.0, images / whole) if images else 1.0
    stages = {}
    for name, stage in run.stages.items():
        own = stage.data or run.data
        if own.source == audited:
            own = dataclasses.replace(pool, size=own.size)
        elif sealed.is_sealed(own.source):
            raise UserError(f"--against shadow: stage {name} was trained on sealed images")
        length = max(stage.batch, round(share * stage.images))
        stages[name] = dataclasses.replace(
            stage, data=own, images=length, minutes=0.0, warmup=round(share * stage.warmup)
        )
    quiet = dataclasses.replace(
        run.train, check_every=-1, sample_every=-1, snapshots=0, keep=1, track="none"
    )
    return dataclasses.replace(run, stages=stages, train=quiet)


def _start(found: Sides) -> str | None:
    """What the run began with, which its shadows begin with too."""
    if found.place is None or not (found.place / "env.json").is_file():
        return None
    start = json.loads((found.place / "env.json").read_text(encoding="utf-8")).get("start")
    if start and not start.startswith("primer:") and not Path(start).exists():
        raise UserError(
            f"--against shadow: the run began with the weights of {start}, which is not there; "
            "put it back, or use a reference model"
        )
    return start or None


def _files(side: Images) -> list[str]:
    """sha256 of the files of all different images of a side."""
    if not isinstance(side.dataset, Dataset):
        raise TypeError("sealed images have no files")
    ids = memorisation.distinct(side.dataset, side.ids)
    return [side.dataset.file_sha256[i] for i in ids.tolist()]


def _train(
    recipe: config.Run, inside: list[str], start: str | None, seed: int, i: int, quiet: bool
) -> Path:
    """The run's folder of one shadow model, which may be finished, begun or not there."""
    own = key(seed, "shadow", "seed", i) % (1 << 31)
    recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, seed=own))
    begun_with = model.read_card(model.find(start))["sha256"] if start else None
    told = json.dumps([config.to_dict(recipe), inside, begun_with], sort_keys=True)
    folder = cache.root() / "audit" / "shadows" / hashlib.sha256(told.encode()).hexdigest()[:32]
    listed = folder / "images.txt"
    if (folder / "done").is_file():
        return folder / "run"
    with cache.locked(folder.with_suffix(".lock")), cache.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        replace_text(listed, "\n".join(inside) + "\n")
    stages = {
        name: dataclasses.replace(stage, data=_only(recipe, stage, listed))
        for name, stage in recipe.stages.items()
    }
    run = dataclasses.replace(recipe, stages=stages, data=config.Data())
    begun = bool(numbered(folder / "run" / "checkpoints"))
    try:
        train(
            None if begun else run,
            folder / "run",
            start=None if begun else start,
            resume=begun,
            overwrite=not begun,
            quiet=quiet,
        )
    except Interrupted:
        raise Interrupted("the same command goes on with the shadow models") from None
    replace_text(folder / "done", "")
    for checkpoint in numbered(folder / "run" / "checkpoints"):
        (checkpoint / "optimizer.pt").unlink(missing_ok=True)  # has served, and is the larger half
    return folder / "run"


def _only(recipe: config.Run, stage: config.Stage, listed: Path) -> config.Data | None:
    """The stage's data: of the pool the listed images alone, of others all."""
    last = list(recipe.stages.values())[-1]
    if stage.data is None or last.data is None or stage.data.source != last.data.source:
        return stage.data
    return dataclasses.replace(stage.data, only=str(listed))
