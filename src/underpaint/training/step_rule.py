"""How the steps of a stage are made, and what may be said of them.

Ordinary stages here; differentially private ones have a rule of their own (`underpaint.dp.stage`),
under which no loss is shown and no check is made.
"""

import time
from collections.abc import Callable
from typing import Any

from underpaint import config
from underpaint.registry import wing
from underpaint.training.checkpointing import Progress, RunFolder
from underpaint.training.log import Log
from underpaint.training.stages import PreparedStage
from underpaint.training.step import compute, step
from underpaint.training.train_state import TrainState


class StepRule:
    """Steps on batches, losses shown."""

    public: bool = True  # whether losses, checks and times may be shown

    def __init__(self, stage: PreparedStage) -> None:
        self.stage = stage  # as long as it has become: an early cool-down shortens it

    def begin(self, folder: RunFolder, progress: Progress, say: Callable[[str], None]) -> None:
        """Bring `stage` and `progress` to where the stage goes on from."""

    def step(
        self, run: config.Run, state: TrainState, progress: Progress, folder: RunFolder
    ) -> None:
        """One step, counted in `progress`."""
        step(self.stage, run, state, progress)

    def log(self, progress: Progress, log: Log, state: TrainState) -> None:
        """A line of metrics on the steps since the last one, if there were any."""
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
        """What the records of the stage's start and end have besides."""
        return {}

    def describe(self) -> str:
        """A sentence at the stage's start, if there is one."""
        return ""

    def saved(self, progress: Progress) -> str:
        """A sentence at a checkpoint, if there is one."""
        return ""


def rule_of(stage: PreparedStage) -> StepRule:
    """The rule that a stage is trained by."""
    found: StepRule = (StepRule if stage.guarantee is None else wing("dp").Private)(stage)
    return found
