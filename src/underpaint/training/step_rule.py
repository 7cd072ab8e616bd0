"""How the steps of a stage are made, and what may be said of them.

Ordinary stages here; differentially private ones have a rule of their own (`underpaint.dp.stage`),
under which no loss is shown and no check is made.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from underpaint import config
from underpaint.registry import wing
from underpaint.training.checkpointing import Progress, RunFolder
from underpaint.training.log import Log
from underpaint.training.stages import PreparedStage
from underpaint.training.step import compute, step
from underpaint.training.train_state import TrainState

__all__ = ["Ordinary", "StepRule", "rule_of"]


class StepRule(Protocol):
    """What the trainer asks of a stage's rule."""

    stage: PreparedStage  # as long as it has become: an early cool-down shortens it
    public: bool  # whether losses, checks and times may be shown
    draws: int  # forward and backward passes an image in a step

    def begin(self, folder: RunFolder, progress: Progress, say: Callable[[str], None]) -> None:
        """Bring `stage` and `progress` to where the stage goes on from."""

    def step(
        self, run: config.Run, state: TrainState, progress: Progress, folder: RunFolder
    ) -> None:
        """One step, counted in `progress`."""

    def log(self, progress: Progress, log: Log, state: TrainState) -> None:
        """A line of metrics on the steps since the last one, if there were any."""

    def record(self, progress: Progress) -> dict[str, Any]:
        """What the records of the stage's start and end have besides."""

    def describe(self) -> str | None:
        """A sentence at the stage's start."""

    def saved(self, progress: Progress) -> str | None:
        """A sentence at a checkpoint."""


def rule_of(stage: PreparedStage) -> StepRule:
    """The rule that a stage is trained by."""
    return Ordinary(stage) if stage.guarantee is None else wing("dp").Private(stage)


class Ordinary:
    """Steps on batches, losses shown."""

    public, draws = True, 1

    def __init__(self, stage: PreparedStage) -> None:
        self.stage = stage

    def begin(self, folder: RunFolder, progress: Progress, say: Callable[[str], None]) -> None:
        """Nothing."""

    def step(
        self, run: config.Run, state: TrainState, progress: Progress, folder: RunFolder
    ) -> None:
        """See `step.step`."""
        step(self.stage, run, state, progress)

    def log(self, progress: Progress, log: Log, state: TrainState) -> None:
        """Means over the steps since the last line."""
        stage, sums = self.stage, progress.sums
        steps = sums.get("steps", 0.0)
        if steps:
            level = stage.level(progress.stage_images - stage.batch)
            spent = progress.seconds - sums.get("since", 0.0)
            speed = steps * stage.batch / max(spent, 1e-9)
            log.metric(
                "step",
                stage=stage.name,
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
                **compute(stage, state, level),
                seconds=progress.seconds,
                images_per_s=speed,
                time=time.time(),
            )
            log.step(stage.name, progress.images, speed, f"loss {sums['loss'] / steps:.4f}")
        progress.sums = {"since": progress.seconds}

    def record(self, progress: Progress) -> dict[str, Any]:
        """Nothing."""
        return {}

    def describe(self) -> None:
        """Nothing."""

    def saved(self, progress: Progress) -> None:
        """Nothing."""
