"""What a run shows while it trains: metrics, overfit checks and sample grids."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

from underpaint import config, pictures
from underpaint.data import Dataset, Sealed
from underpaint.model import Model
from underpaint.training.log import Log
from underpaint.training.stages import Level, Plan
from underpaint.training.state import Progress, RunFolder, writing
from underpaint.training.step import training_flops
from underpaint.training.train_state import Learner

__all__ = [
    "Answer",
    "Check",
    "Finding",
    "MakeCheck",
    "cadence",
    "compute",
    "draw_samples",
    "log_step",
    "run_check",
    "say_spent",
    "say_stage",
    "stage_record",
]


Answer = Literal["improving", "stop", "copying", "unknown"]


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

    def run(self, model: Model, stage: config.Stage, rate: float) -> list[dict[str, Any]]:
        """Records for metrics.jsonl; the first is that of whole images, if there are any."""

    def scores(self, model: Model) -> dict[str, Any] | None:
        """A record of what `model` draws, if that is to be measured."""

    def finding(self, records: list[dict[str, Any]]) -> Finding:
        """What the checks among `records`, the run's metrics so far, say about going on."""


CHECKS = 16  # of a stage that may end early

# Builds a stage's check: its images, the averaged model, the run's seed, images a side, samples.
MakeCheck: TypeAlias = Callable[[Dataset | Sealed, Model, int, int, int], Check | None]


def log_step(plan: Plan, progress: Progress, log: Log, learner: Learner) -> None:
    """A line of metrics on the steps since the last one, if there were any."""
    if plan.guarantee:
        _log_private(plan, progress, log, learner)
        return
    sums, steps = progress.sums, progress.sums.get("steps", 0.0)
    if steps:
        level = plan.level(progress.stage_images - plan.stage.batch)
        spent = progress.seconds - sums.get("since", 0.0)
        speed = steps * plan.stage.batch / max(spent, 1e-9)
        log.metric(
            "step",
            stage=plan.name,
            images=progress.images,
            stage_images=progress.stage_images,
            loss=sums["loss"] / steps,
            x0_mse=sums["x0_mse"] / steps,
            grad_norm=sums["grad_norm"] / steps,
            lr=sums["rate"],
            rate=level.realised,
            visible=level.visible,
            skipped=progress.skipped,
            flops=progress.flops,
            **compute(plan, learner, level),
            seconds=progress.seconds,
            images_per_s=speed,
            time=time.time(),
        )
        log.step(plan.name, progress.images, speed, f"loss {sums['loss'] / steps:.4f}")
    progress.sums = {"since": progress.seconds}


def _log_private(plan: Plan, progress: Progress, log: Log, learner: Learner) -> None:
    """What a private stage may say of its steps: counts and the budget.

    No loss, no norm, and no time, which tells how many images a step has met.
    """
    own, sums = plan.guarantee, progress.sums
    assert own is not None
    if not sums.get("steps"):
        return  # already told
    level = plan.level(progress.stage_images - plan.stage.batch)
    spent = progress.privacy[plan.name]["spent_steps"]
    epsilon = own.spent(spent)
    log.metric(
        "step",
        stage=plan.name,
        images=progress.images,
        stage_images=progress.stage_images,
        epsilon=epsilon,
        delta=own.delta,
        spent_steps=spent,
        lr=sums["rate"],
        rate=level.realised,
        visible=level.visible,
        flops=progress.flops,
        **compute(plan, learner, level),
    )
    seconds = max(progress.seconds - sums.get("since", 0.0), 1e-9)
    speed = sums["steps"] * plan.stage.batch / seconds
    log.step(plan.name, progress.images, speed, f"epsilon {epsilon:.3g}")
    progress.sums = {"since": progress.seconds}


def say_spent(plan: Plan, progress: Progress, log: Log) -> None:
    """What a private stage has spent, for the log; nothing of other stages."""
    if plan.guarantee:
        steps = progress.privacy[plan.name]["spent_steps"]
        log.say(
            f"stage {plan.name}: epsilon {plan.guarantee.spent(steps):.4g} at delta "
            f"{plan.guarantee.delta:g} is spent, {steps:,} of {plan.guarantee.steps:,} steps"
        )


def run_check(check: Check, plan: Plan, learner: Learner, progress: Progress, log: Log) -> Finding:
    level = plan.level(max(0, progress.stage_images - plan.stage.batch))
    records = check.run(learner.averaged, plan.stage, level.rate)
    for record in records:
        log.metric("check", stage=plan.name, images=progress.images, **record)
    drawn = check.scores(learner.averaged)
    if drawn is not None:
        log.metric("scores", stage=plan.name, images=progress.images, **drawn)
    found = check.finding(log.records("check", "scores", "stop"))
    if found.answer != "unknown":
        style = None if found.answer == "improving" else "yellow"
        log.say(found.sentence, style=style)
    return found


def draw_samples(
    folder: RunFolder, run: config.Run, learner: Learner, progress: Progress, log: Log, plan: Plan
) -> None:
    name = f"images_{progress.images:012d}.png"
    names = learner.averaged.label_names
    columns = min(len(names), 10) or 8
    rows = max(1, run.preview.count // columns)
    labels = list(range(columns)) if names else None
    images = learner.averaged.sample(rows * columns, seed=0, labels=labels)
    captions = list(names[:columns]) if names else None
    with writing(folder.samples, folder.advice):
        pictures.grid(images, columns, captions).save(folder.samples / name)
    log.metric(
        "sample",
        stage=plan.name,
        images=progress.images,
        file=f"samples/{name}",
        columns=columns,
        rows=rows,
        labels=captions,
    )


def cadence(train: config.Train, total: int, plan: Plan) -> dict[str, int]:
    """Images between two lines, checks, grids and checkpoints, in a run of `total` images.

    A stage that may end early has CHECKS of its own, however short it is.
    """
    if train.stop == "auto" and train.check_every == 0:
        train = dataclasses.replace(train, check_every=max(1, plan.images // CHECKS))

    def of(setting: int, parts: int) -> int:
        return max(1, total // parts) if setting == 0 else setting

    return {
        "log": of(train.log_every, 400),
        "check": of(train.check_every, 8),
        "sample": of(train.sample_every, 8),
        "checkpoint": of(train.checkpoint_every, 8),
    }


def compute(plan: Plan, learner: Learner, level: Level) -> dict[str, float]:
    """FLOPs an image at this level, and of a whole one. Known after a step, which counts them."""
    draws = plan.guarantee.multiplicity if plan.guarantee else 1
    patches = plan.space.grid[0] * plan.space.grid[1]
    return {
        "flops_per_image": draws * training_flops(learner, level.visible, plan.stage.mask),
        "whole_flops_per_image": draws * training_flops(learner, patches, "none"),
    }


def stage_record(plan: Plan, progress: Progress) -> dict[str, Any]:
    level = plan.level(progress.stage_images if progress.stage_images < plan.images else 0)
    patches = plan.space.grid[0] * plan.space.grid[1]
    own, private = plan.guarantee, {}
    if own:
        spent = progress.privacy.get(plan.name, {}).get("spent_steps", 0)
        private = {"privacy": own.record(spent) | {"spent": own.spent(spent)}}
    return {
        "stage": plan.name,
        "index": plan.index,
        "images": progress.images,
        "mask": plan.stage.mask,
        "rate_asked": plan.stage.rate,
        "rate": level.realised,
        "visible": level.visible,
        "patches": patches,
        "seconds": progress.seconds,
        "flops": progress.flops,
        **private,
    }


def say_stage(plan: Plan, log: Log) -> None:
    level, patches = plan.levels[0], plan.space.grid[0] * plan.space.grid[1]
    hidden = (
        f"{level.realised:.1%} hidden ({plan.stage.mask}), {level.visible} of {patches} patches"
        if level.visible < patches
        else f"whole images of {patches} patches"
    )
    log.say(f"stage {plan.name}: {plan.images:,} images, {hidden}", style="bold")
    own = plan.guarantee
    if own:
        log.say(
            f"stage {plan.name}: differentially private, epsilon {own.epsilon:.4g} at "
            f"delta {own.delta:g}: {own.steps:,} steps, each image in one with probability "
            f"{own.sampling_rate:.4g}, noise multiplier {own.noise_multiplier:.4g} by the "
            f"accountant {own.accountant.upper()}; no losses are shown and no checks are made"
        )
