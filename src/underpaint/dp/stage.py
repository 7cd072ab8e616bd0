"""The rule of a differentially private stage: steps that cost privacy, and what is said of them.

No loss, no norm and no check, and no time either, which tells how many images per step has met.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

from underpaint import config
from underpaint.dp.accounting import Guarantee
from underpaint.dp.accounting import guarantee as guarantee
from underpaint.dp.accounting import library as library
from underpaint.dp.scope import check_scope as check_scope
from underpaint.dp.step import private_step
from underpaint.errors import UserError
from underpaint.io import writing
from underpaint.training.checkpointing import Progress, RunFolder
from underpaint.training.log import Log
from underpaint.training.step import compute
from underpaint.training.step_rule import StepRule
from underpaint.training.train_state import TrainState

LEDGER = "privacy.log"  # in a run's folder: the name of its stage for each step that was begun


class Private(StepRule):
    """Steps on batches drawn by chance, each counted as spent."""

    public = False

    @property
    def guarantee(self) -> Guarantee:
        found: Guarantee = self.stage.guarantee
        return found

    def begin(self, folder: RunFolder, progress: Progress, say: Callable[[str], None]) -> None:
        """The stage by the guarantee it began with; steps that were lost are spent.

        Whoever stopped the run may have seen something of the steps after its last checkpoint, or
        stopped it because of them: they cost what they cost, and are not taken again.
        """
        name, batch = self.stage.name, self.stage.batch
        if name in progress.privacy:
            begun_with = Guarantee.of(progress.privacy[name])
            self.stage = dataclasses.replace(self.stage, guarantee=begun_with)
        done, begun = progress.stage_images // batch, _begun(folder, name)
        if begun < done:
            raise UserError(
                f"{folder.path / LEDGER}: counts {begun:,} steps of stage {name}, the checkpoint "
                f"{done:,}; it is not this run's or was cut, so the budget is unknown: begin a "
                "new run"
            )
        if begun > done:
            lost = (begun - done) * batch
            progress.stage_images += lost
            progress.images += lost
            say(
                f"stage {name}: {begun - done:,} steps after the checkpoint are lost, but their "
                "privacy is spent; the stage goes on after them"
            )
        progress.privacy[name] = self.guarantee.record(begun)

    def step(
        self, run: config.Run, state: TrainState, progress: Progress, folder: RunFolder
    ) -> None:
        """One step, which is counted as spent before it looks at any image."""
        _spend(folder, self.stage.name)
        private_step(self.stage, run, state, progress)

    def log(self, progress: Progress, log: Log, state: TrainState) -> None:
        stage, sums = self.stage, progress.sums
        if not sums.get("steps"):
            return  # already said
        level = stage.level(progress.stage_images - stage.batch)
        steps = progress.privacy[stage.name]["spent_steps"]
        epsilon = self.guarantee.spent(steps)
        log.metric(
            "step",
            stage=stage.name,
            images=progress.images,
            stage_images=progress.stage_images,
            epsilon=epsilon,
            delta=self.guarantee.delta,
            spent_steps=steps,
            lr=sums["rate"],
            rate=level.realised,
            visible=level.visible,
            flops=progress.flops,
            **compute(stage, state, level, self.guarantee.multiplicity),
        )
        seconds = max(progress.seconds - sums.get("since", 0.0), 1e-9)
        speed = sums["steps"] * stage.batch / seconds
        log.step(stage.name, progress.images, speed, f"epsilon {epsilon:.3g}")
        progress.sums = {"since": progress.seconds}

    def record(self, progress: Progress) -> dict[str, Any]:
        spent = progress.privacy.get(self.stage.name, {}).get("spent_steps", 0)
        budget = self.guarantee
        return {"privacy": budget.record(spent) | {"spent": budget.spent(spent)}}

    def describe(self) -> str:
        budget = self.guarantee
        return (
            f"stage {self.stage.name}: differentially private, epsilon {budget.epsilon:.4g} at "
            f"delta {budget.delta:g}: {budget.steps:,} steps, each image in one with probability "
            f"{budget.sampling_rate:.4g}, noise multiplier {budget.noise_multiplier:.4g} by the "
            f"accountant {budget.accountant.upper()}; no losses are shown and no checks are made"
        )

    def saved(self, progress: Progress) -> str:
        steps = progress.privacy[self.stage.name]["spent_steps"]
        budget = self.guarantee
        return (
            f"stage {self.stage.name}: epsilon {budget.spent(steps):.4g} at delta "
            f"{budget.delta:g} is spent, {steps:,} of {budget.steps:,} steps"
        )


def _spend(folder: RunFolder, stage: str) -> None:
    """Count a step of a private stage, safely on the disk, before it looks at any image."""
    ledger = folder.path / LEDGER
    with writing(ledger, folder.advice), ledger.open("ab") as file:
        file.write(f"{stage}\n".encode())
        file.flush()
        os.fsync(file.fileno())


def _begun(folder: RunFolder, stage: str) -> int:
    """Steps of a private stage that were begun, whatever became of them."""
    ledger = folder.path / LEDGER
    if not ledger.is_file():
        return 0
    # a last line that was cut short counts for nothing: its step had to wait for it
    lines = ledger.read_bytes().split(b"\n")
    if lines[-1]:
        with writing(ledger, folder.advice):
            os.truncate(ledger, ledger.stat().st_size - len(lines[-1]))
    return lines[:-1].count(stage.encode())
