"""Weights and the optimiser's state carried over: into a run, between stages, from checkpoints."""

from __future__ import annotations

from pathlib import Path

from underpaint import config
from underpaint.errors import RunFailed
from underpaint.model import read_spec, read_weights
from underpaint.training import distributed
from underpaint.training import warm_start as starting
from underpaint.training.log import Log
from underpaint.training.posthoc import TRACKED
from underpaint.training.stages import Plan
from underpaint.training.state import Progress, RunFolder, read_optimizer, read_progress
from underpaint.training.train_state import Learner

__all__ = ["enter", "first", "go_back", "load", "restore"]

RETURNS = 3  # returns to a checkpoint in one stage before the run gives up


def enter(
    plan: Plan,
    run: config.Run,
    learner: Learner,
    progress: Progress,
    world: distributed.World,
    log: Log,
) -> Learner:
    """The learner for this stage: the same, or rebuilt where size or labels change."""
    if learner.spec != plan.spec:
        entered = Learner(plan.spec, run.train, world)
        weights, average = learner.weights()
        model, notes = starting.adapt(weights, learner.spec, entered.model, "the stage before")
        ema, _ = starting.adapt(average, learner.spec, entered.model, "the stage before")
        entered.load(model, ema, learner.ema.steps)
        if learner.power and entered.power:
            entered.power.load(
                {
                    name: starting.adapt(state, learner.spec, entered.model, "the stage before")[0]
                    for name, state in learner.power.state().items()
                }
            )
        entered.load_optimizer(learner.optimizer_state())
        for note in notes:
            log.say(f"stage {plan.name}: {note}")
        learner = entered
    if progress.stage_images == 0 and not plan.stage.keep_optimizer:
        learner.optimizer.state.clear()
    return learner


def first(
    run: config.Run, plans: list[Plan], start: str | None, world: distributed.World
) -> tuple[Learner, list[str]]:
    """The learner that a run begins with, from drawn weights or those of `start`, and notes."""
    learner = Learner(plans[0].spec, run.train, world)
    if start is None:
        return learner, []
    spec, state = starting.read(start)
    adapted, notes = starting.adapt(state, spec, learner.model, start)
    learner.load(adapted, adapted, 0)
    return learner, [f"weights from {start}", *notes]


def restore(
    folder: RunFolder, run: config.Run, world: distributed.World
) -> tuple[Learner, Progress]:
    """The learner and the progress of the latest checkpoint, see `RunFolder.latest`."""
    checkpoint = folder.latest().folder
    progress = read_progress(checkpoint)
    learner = Learner(read_spec(checkpoint), run.train, world)
    load(learner, checkpoint)
    return learner, progress


def load(learner: Learner, checkpoint: Path) -> None:
    """Weights, averages and the optimiser's state of a checkpoint of the same network."""
    steps = read_progress(checkpoint).ema_steps
    learner.load(read_weights(checkpoint, "model"), read_weights(checkpoint, "ema"), steps)
    if learner.power:
        learner.power.load({name: read_weights(checkpoint, name) for name in TRACKED})
    learner.load_optimizer(read_optimizer(checkpoint))


def go_back(
    folder: RunFolder,
    run: config.Run,
    progress: Progress,
    plan: Plan,
    world: distributed.World,
    log: Log,
    reason: str,
) -> tuple[Learner, Progress]:
    """Back to the last checkpoint with half the learning rate."""
    returns = progress.stage_returns + 1
    if returns > RETURNS:
        raise RunFailed(
            f"stage {plan.name}: {reason}, also after {RETURNS} returns with a lower learning "
            f"rate; lower --stages.{plan.name}.learning_rate or raise its warmup"
        )
    learner, restored = restore(folder, run, world)
    if world.first:
        folder.go_on(log.say)
    restored.attempt = progress.attempt + 1
    restored.rate_factor = progress.rate_factor / 2
    restored.stage_returns = returns
    log.cut(restored.metrics_bytes)
    log.metric(
        "rollback",
        images=progress.images,
        to=restored.images,
        learning_rate_factor=restored.rate_factor,
        reason=reason,
    )
    log.say(
        f"{reason}: back to {restored.images:,} images with {restored.rate_factor:g} of the "
        "learning rate",
        style="yellow",
    )
    return learner, restored
