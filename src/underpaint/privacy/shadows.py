"""Shadow models: how would this image score if it had, or had not, been trained on?

An image that is hard for every model looks like a non-member, an easy one like a member. So a few
models are trained by the audited run's recipe, each on a random half of the pool of members
and non-members; every second one takes the half that the one before it left, so that each image
is inside half of them. An image's score is then compared with what the models gave that did (in)
and did not (out) train on it: the likelihood-ratio attack (Carlini et al. 2022, arXiv 2112.03570),

    Λ = log N(s; out) − log N(s; in)      s = log of the score, near to normal

low for members, as every score here. What can be estimated depends on the number K of models:

    K < 8         s − mean of the out-models' s (difficulty calibration, Watson et al. 2022,
                  arXiv 2111.08440, with a few models)
    8 ≤ K < 64    Λ with one variance for all images, in and out
    K ≥ 64        Λ with one variance for each image

This needs the images themselves and K trainings (`docs/audit.md` has the cost): an attacker has
that if he knows the kind of data, the audit has it in any case. Models are kept in the cache by all
that they depend on; what was interrupted goes on from its checkpoint.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from underpaint import config, cores, model_folder
from underpaint.compare.pool import gather
from underpaint.data import cache
from underpaint.errors import Interrupted, UserError
from underpaint.evaluation.as_seen import as_seen
from underpaint.hardware import pick_device
from underpaint.io import numbered, replace_text
from underpaint.privacy.membership import MembershipData, Subset
from underpaint.privacy.statistics import auc_by_level
from underpaint.progress import doing
from underpaint.sealed import format as sealed
from underpaint.training import provenance, train
from underpaint.training.seeding import seed_from

LEAST = 2  # models: every image is outside one of them
ENOUGH, PER_IMAGE = 8, 64  # models from which a variance, and one for each image, can be estimated

Scores = NDArray[np.float64]


class Shadow(NamedTuple):
    """A trained model, and the sha256 of the files it was trained on."""

    folder: Path
    inside: frozenset[str]

    def trained_on(self, subset: Subset) -> NDArray[np.bool_]:
        """Which images of a subset it was trained on, [n]."""
        return np.array([sha in self.inside for sha in subset.files()])


class Task(NamedTuple):
    """One shadow model to train."""

    number: int
    recipe: config.Run
    inside: list[str]  # sha256 of the files it is trained on
    start: str | None

    @property
    def folder(self) -> Path:
        """Named by all that the model depends on."""
        begun_with = (
            model_folder.read_card(model_folder.find(self.start))["sha256"] if self.start else None
        )
        inputs = json.dumps([config.to_dict(self.recipe), self.inside, begun_with], sort_keys=True)
        name = hashlib.sha256(inputs.encode()).hexdigest()[:32]
        return cache.root() / "audit" / "shadows" / name


def train_all(
    data: MembershipData,
    count: int,
    *,
    images: int = 0,
    seed: int = 0,
) -> list[Shadow]:
    """`count` shadow models of the run, as long as the run was or `images` images in all.

    As many are trained at once as the run's threads leave room for. Raises UserError where the
    recipe is not known or cannot be followed, Interrupted after Ctrl-C.
    """
    if count < LEAST:
        raise UserError(f"{count} shadow models: give at least {LEAST}, so that each image is out")
    recipe = _recipe(data, images)
    start = _start(data)
    workers = _workers(recipe, count)
    subsets = (data.members.different(), data.non_members.different())
    pool = sorted({sha for part in subsets for sha in part.files()})
    tasks = []
    for i in range(count):
        order = np.random.default_rng(seed_from(seed, "shadow", i // 2)).permutation(len(pool))
        half = order[: len(pool) // 2] if i % 2 == 0 else order[len(pool) // 2 :]
        inside = sorted(pool[j] for j in half.tolist())
        train_seed = seed_from(seed, "shadow", "seed", i) % (1 << 31)
        seeded = dataclasses.replace(recipe.train, seed=train_seed)
        run = dataclasses.replace(recipe, train=seeded)
        tasks.append(Task(i, run, inside, start))
    trained: dict[int, Shadow] = {}

    def done(task: Task, folder: Path) -> None:
        trained[task.number] = Shadow(folder, frozenset(task.inside))
        at(len(trained))

    try:
        with doing("shadow models", count) as at:
            gather(tasks, _train, workers, _name, done)
    except Interrupted:
        raise Interrupted("the same command goes on with the shadow models") from None
    return [trained[i] for i in range(count)]


def calibrate(scores: Scores, shadow: Scores, inside: NDArray[np.bool_]) -> Scores:
    """The scores [n, levels] against those of the shadow models [K, n, levels]; `inside` [K, n].

    Low for members. Raises ValueError for an image that is outside no model.
    """
    # errors are positive, differ by factors between images, and may vanish for a perfect copy
    s, k = (np.log(np.maximum(values, 1e-12)) for values in (scores, shadow))
    out = ~inside[:, :, None]
    outside = out.sum(0)
    if (outside == 0).any():
        raise ValueError("an image is inside every shadow model")
    mean_out = np.where(out, k, 0).sum(0) / outside
    if len(shadow) < ENOUGH:
        return np.asarray(s - mean_out)
    mean_in = np.where(out, 0, k).sum(0) / (len(shadow) - outside)
    likelihoods = []
    for which, mean in ((out, mean_out), (~out, mean_in)):
        squares = np.where(which, (k - mean) ** 2, 0).sum(0)  # [n, levels]
        freedom = which.sum(0) - 1
        if len(shadow) < PER_IMAGE:
            squares, freedom = squares.sum(0, keepdims=True), freedom.sum(0, keepdims=True)
        variance = squares / freedom + 1e-12
        likelihoods.append(-((s - mean) ** 2) / (2 * variance) - 0.5 * np.log(variance))
    return np.asarray(likelihoods[0] - likelihoods[1])


def rule(count: int) -> str:
    """How that many shadow models calibrate, in words."""
    if count < ENOUGH:
        return "difference to the mean of the models that did not see the image"
    each = "each image's own variance" if count >= PER_IMAGE else "one variance for all images"
    return f"likelihood ratio of having and not having seen the image, with {each}"


def expected_auc(shadow: Scores, inside: NDArray[np.bool_]) -> dict[str, float]:
    """How well the score finds the shadows' members: mean and least AUC of its best level.

    Scores [K, n, levels]: these models were trained by the same recipe, so this is what to expect.
    """
    best = [
        max(auc_by_level(k[member], k[~member]))
        for k, member in zip(shadow, inside, strict=True)
        if min(member.sum(), (~member).sum()) >= 2
    ]
    return {"mean": float(np.mean(best)), "least": float(np.min(best))}


# --- training them -------------------------------------------------------------------------------


def _recipe(data: MembershipData, images: int) -> config.Run:
    """The run's recipe on the pool, without what only its reader needs."""
    run = data.run
    if run is None or data.place is None:
        raise UserError("--against shadow needs the run's recipe; give the run, not a model alone")
    if not data.members.whole:
        raise UserError(
            "--against shadow trains on whole images, and these are sealed; give the images "
            "themselves by --members and --non-members, or a reference model"
        )
    run = as_seen(run, data.place)
    audited = run.data_of(run.last).source
    one, two = data.members.data, data.non_members.data
    pool = dataclasses.replace(one, audit_split=0.0, limit=0)
    if one.source != two.source:
        pool = dataclasses.replace(pool, held_out=two.source)
    elif not (pool.held_out.startswith("avatars:") or Path(pool.held_out).expanduser().exists()):
        pool = dataclasses.replace(pool, held_out="none")
    whole = sum(stage.images for stage in run.stages.values())
    share = min(1.0, images / whole) if images else 1.0
    stages = {}
    for name, stage in run.stages.items():
        data_of = stage.data or run.data
        if data_of.source == audited:
            data_of = dataclasses.replace(pool, size=data_of.size)
        elif sealed.is_sealed(data_of.source):
            raise UserError(f"--against shadow: stage {name} was trained on sealed images")
        length, warmup = max(stage.batch, round(share * stage.images)), round(share * stage.warmup)
        stages[name] = dataclasses.replace(
            stage, data=data_of, images=length, minutes=0.0, warmup=warmup
        )
    quiet = dataclasses.replace(
        run.train, check_every=-1, sample_every=-1, snapshots=0, keep=1, track="none"
    )
    return dataclasses.replace(run, stages=stages, train=quiet)


def _start(data: MembershipData) -> str | None:
    """What the run began with, which its shadows begin with too."""
    start = provenance.start_of(data.place) if data.place else None
    if start and not start.startswith("pretrained:") and not Path(start).exists():
        raise UserError(
            f"--against shadow: the run began with the weights of {start}, which is not there; "
            "put it back, or use a reference model"
        )
    return start or None


def _workers(recipe: config.Run, count: int) -> int:
    """How many models are trained at once: what their threads leave room for, on a CPU."""
    if not recipe.train.threads or pick_device(recipe.train.device).type != "cpu":
        return 1
    return max(1, min(count, cores.available() // recipe.train.threads))


def _name(task: Task) -> str:
    return f"shadow model {task.number + 1} (log: {task.folder / 'run' / 'log.txt'})"


def _train(task: Task) -> Path:
    """The run's folder of one shadow model, which may be finished, begun or not there."""
    folder, recipe = task.folder, task.recipe
    if (folder / "done").is_file():
        return folder / "run"
    listed = folder / "images.txt"
    with cache.locked(folder.with_suffix(".lock")), cache.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        replace_text(listed, "\n".join(task.inside) + "\n")
    last, stages = recipe.last, dict(recipe.stages)
    for name, stage in stages.items():  # of the pool the listed images alone, of others all
        if stage.data and last.data and stage.data.source == last.data.source:
            only = dataclasses.replace(stage.data, only=str(listed))
            stages[name] = dataclasses.replace(stage, data=only)
    run = dataclasses.replace(recipe, stages=stages, data=config.Data())
    begun = bool(numbered(folder / "run" / "checkpoints"))
    train(
        None if begun else run,
        folder / "run",
        start=None if begun else task.start,
        resume=begun,
        overwrite=not begun,
        quiet=True,
    )
    replace_text(folder / "done", "")
    for checkpoint in numbered(folder / "run" / "checkpoints"):
        (checkpoint / "optimizer.pt").unlink(missing_ok=True)  # has served, and is the larger half
    return folder / "run"
