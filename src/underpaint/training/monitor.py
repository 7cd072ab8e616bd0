"""What a run shows while it trains: metrics, overfit checks and sample grids."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from underpaint import config, pictures
from underpaint.core.masks import MaskSpec
from underpaint.io import replacing, writing
from underpaint.model import Model
from underpaint.progress import doing
from underpaint.training.checkpointing import Progress, RunFolder
from underpaint.training.log import Log
from underpaint.training.stages import PreparedStage
from underpaint.training.step_rule import StepRule
from underpaint.training.train_state import TrainState
from underpaint.training.training_set import TrainingSet

Images: TypeAlias = NDArray[np.uint8]
Answer = Literal["improving", "waiting", "stop", "copying", "unknown"]


class Finding(NamedTuple):
    """What a stage's checks say, in a sentence, and the numbers behind it."""

    answer: Answer
    sentence: str
    best: int | None  # images of the run at the last gain: the checkpoint to keep
    since: int  # images since then
    worse: bool  # the last check is believed to be worse than the best one
    evidence: dict[str, Any]


class Check(Protocol):
    """A measurement that the run makes on its averaged weights from time to time."""

    def run(self, model: Model, spec: MaskSpec) -> list[dict[str, Any]]:
        """Records for metrics.jsonl; the first is that of whole images, if there are any."""

    def scores(self, model: Model) -> dict[str, Any] | None:
        """A record of what `model` draws, if that is to be measured."""

    def health(self, samples: Images, progress: tuple[int, int]) -> dict[str, Any] | None:
        """What a sample grid looks like beside real images, if that can be judged.

        `samples` uint8 [n, H, W, C]; `progress`: images of the run so far, and in all. Has a
        `sentence`, None where all is well.
        """

    def finding(self, records: list[dict[str, Any]]) -> Finding:
        """What the checks among `records`, the run's metrics so far, say about going on."""


CHECKS = 16  # of a stage that may end early
EVALUATIONS = 8  # checks and grids of a run
SNAPSHOTS = 32  # of a run, enough for widths from 0.05 on (training/posthoc.py)

# Builds a stage's check: its images, the averaged model, the run's seed, images per side, samples.
MakeCheck: TypeAlias = Callable[[TrainingSet, Model, int, int, int], Check | None]


def run_check(
    check: Check, stage: PreparedStage, state: TrainState, progress: Progress, log: Log
) -> Finding:
    """Measure and record; what it says about going on."""
    level = stage.level(max(0, progress.stage_images - stage.batch))
    with doing("checking on held-out images"):
        records = check.run(state.averaged, stage.training_set.spec.at(level.rate))
    for record in records:
        log.metric("check", stage=stage.name, images=progress.images, **record)
    with doing("scoring samples"):
        scores = check.scores(state.averaged)
    if scores is not None:
        log.metric("scores", stage=stage.name, images=progress.images, **scores)
    return check.finding(log.records("check", "scores", "stop"))


def say_finding(found: Finding, log: Log) -> None:
    """Its sentence, in the log."""
    if found.answer != "unknown":
        log.say(found.sentence, style="yellow" if found.answer in ("stop", "copying") else None)


def draw_samples(
    folder: RunFolder,
    run: config.Run,
    state: TrainState,
    progress: Progress,
    log: Log,
    stage: PreparedStage,
    check: Check | None,
) -> None:
    """A grid of samples, and what `check` says of how they look."""
    name = f"images_{progress.images:012d}.png"
    names = state.averaged.label_names[: pictures.MOST_COLUMNS]
    columns, captions = 8, None
    if names:  # which repeat along a row where they are few
        captions = [*names] * max(1, round(math.sqrt(run.sampling.count) / len(names)))
        columns = len(captions)
    rows = max(1, run.sampling.count // columns)
    labels = None if captions is None else [i % len(names) for i in range(columns)]
    with doing("sample grid"):
        images = state.averaged.sample(rows * columns, seed=0, labels=labels)
        health = None if check is None else check.health(images, (progress.images, log.total))
    with writing(folder.samples, folder.advice), replacing(folder.samples / name) as temporary:
        pictures.grid(images, columns, captions).save(temporary, "PNG")
    log.metric(
        "sample",
        stage=stage.name,
        images=progress.images,
        file=f"samples/{name}",
        columns=columns,
        rows=rows,
        labels=captions,
        health=health,
    )
    if health and health["sentence"]:
        log.say(health["sentence"], style="yellow")


class Cadence(NamedTuple):
    """Images between two lines of metrics, checks, grids, checkpoints and snapshots; below 0: none.

    They are due at the ends of stages, too; where they are a run or more apart, at its end alone.
    """

    log: int
    check: int
    sample: int
    checkpoint: int
    snapshot: int

    @classmethod
    def of(cls, train: config.Train, total: int, stage: PreparedStage) -> Self:
        """In a run of `total` images; a stage that may end early has CHECKS of its own."""
        eighth, checked = -(-total // EVALUATIONS), max(1, stage.images // CHECKS)
        return cls(
            train.log_every or max(1, total // 400),
            train.check_every or (checked if train.stop == "auto" else eighth),
            train.sample_every or eighth,
            train.checkpoint_every or eighth,
            -(-total // SNAPSHOTS) if train.snapshots < 0 else train.snapshots,
        )


def stage_record(stage: PreparedStage, rule: StepRule, progress: Progress) -> dict[str, Any]:
    """What metrics.jsonl has of a stage's start and end."""
    level = stage.level(progress.stage_images if progress.stage_images < stage.images else 0)
    patches = stage.space.grid[0] * stage.space.grid[1]
    mask = stage.settings.mask
    return {
        "stage": stage.name,
        "index": stage.index,
        "images": progress.images,
        "mask": mask,
        "rate_asked": stage.settings.rate,
        "rate": level.realised,
        "visible": level.visible,
        "patches": patches,
        "unit": stage.training_set.spec.unit,
        "seconds": progress.seconds,
        "flops": progress.flops,
        **rule.record(progress),
    }


def say_stage(stage: PreparedStage, rule: StepRule, log: Log) -> None:
    """The stage in a line, at its start."""
    level, patches = stage.levels[0], stage.space.grid[0] * stage.space.grid[1]
    unit = stage.training_set.spec.unit
    mask: str = stage.settings.mask
    if unit > 1:  # rates and blocks are rounded to units
        mask = f"{mask} at {level.rate:g}, rounded to squares of {unit}×{unit} patches"
    hidden = (
        f"{level.realised:.1%} hidden ({mask}), {level.visible} of {patches} patches"
        if level.visible < patches
        else f"whole images of {patches} patches"
    )
    log.say(f"stage {stage.name}: {stage.images:,} images, {hidden}", style="bold")
    if sentence := rule.describe():
        log.say(sentence)
