"""The trainer: one loop for all recipes, stages and devices.

`Trainer.fit` is the whole loop: steps (where the loss is: `step`, `core/loss`), metrics, checks,
grids and checkpoints as they are due, the end of a stage, and the way back to a checkpoint where
training diverges. What comes before it: `run`.
"""

import contextlib
import time
from dataclasses import InitVar, dataclass
from pathlib import Path

import torch

from underpaint import config
from underpaint.errors import Interrupted, RunFailed, UserError
from underpaint.model_folder import read_fitting_spec
from underpaint.training import (
    distributed,
    early,
    handover,
    monitor,
    signals,
)
from underpaint.training.batch import microbatch
from underpaint.training.checkpointing import Progress, RunFolder, read_progress
from underpaint.training.live_page import LivePage
from underpaint.training.log import Log
from underpaint.training.minutes import Deadline
from underpaint.training.monitor import Check, MakeCheck
from underpaint.training.stages import PreparedStage, left
from underpaint.training.step import Diverged, settle
from underpaint.training.step_rule import rule_of
from underpaint.training.train_state import TrainState, prepare_state

STEPS_UNREAD = 32  # at most, before the host waits for a GPU
RETURNS = 3  # returns to a checkpoint in one stage before the run gives up


@dataclass
class Trainer:
    """One process's part of a run: its stages, folder, state and log."""

    run: config.Run
    folder: RunFolder
    world: distributed.World
    stages: list[PreparedStage]
    begin: InitVar[TrainState | None]  # None: go on from the newest checkpoint in `folder`
    log: Log
    page: LivePage
    make_check: MakeCheck | None
    started: bool = False  # from weights of another run
    deadline: Deadline | None = None  # of a run of minutes, in the process that began it

    def __post_init__(self, begin: TrainState | None) -> None:
        self.resumed = begin is None
        # of one process: several would have to agree on it
        self._may_halve = self.run.train.microbatch < 0 and self.world.size == 1
        if begin is None:
            self.state, self.progress = self._restored()
        else:
            self.state, self.progress = begin, Progress(metrics_bytes=self.log.size())

    def fit(self) -> Path:
        """Train to the end, through all stages; returns the run's folder."""
        log = self.log
        if self.resumed and self.progress.stage == len(self.stages):
            log.say(f"{self.folder.path}: this run is finished ({self.progress.images:,} images)")
            return self.folder.path
        if self.resumed:
            log.say(f"going on after {self.progress.images:,} images")
        else:
            self._save()
        with contextlib.ExitStack() as closing:
            received = closing.enter_context(signals.caught(self.world.first))
            closing.callback(lambda: self.state.leave())
            closing.callback(lambda: self.state.feed.close())
            while self.progress.stage < len(self.stages):
                try:
                    ends, entered = self._enter_stage(), True
                    while not ends:
                        before, began = self.progress.images, time.perf_counter()
                        self._step()
                        if reads := self._reads(before):
                            settle(self.state, self.progress)
                            self.state.finish(wait=False)
                        self.progress.seconds += time.perf_counter() - began
                        ends, changed = self._report(before)
                        if ends:
                            self._finish_stage()
                        # several processes agree on it, each time with a look at their devices
                        asked = reads or self.world.size == 1
                        stopping = asked and self.world.sums([float(len(received))])[0] > 0
                        if ends or changed or stopping or self._due(self.every.checkpoint, before):
                            self._save()
                            if sentence := self.rule.saved(self.progress):
                                log.say(sentence)
                        if stopping and self.progress.stage < len(self.stages):
                            self.state.finish()
                            images = self.progress.images
                            log.say(f"stopped after {images:,} images; go on{self.folder.advice}")
                            raise Interrupted
                        if not ends and (entered or self._has_news(before)):
                            self.page.renew()  # not before the first step: what draws is imported
                        entered = False
                except Diverged as error:
                    self._go_back(str(error))
            self.state.finish()
        progress = self.progress
        log.say(f"done: {progress.images:,} images in {progress.seconds:,.0f} s of training")
        return self.folder.path

    def _step(self) -> None:
        """One step; with `microbatch` -1 in halves of itself until they fit into memory.

        Raises RunFailed where they do not.
        """
        while True:
            try:
                self.rule.step(self.run, self.state, self.progress, self.folder)
                return
            except (RuntimeError, MemoryError) as error:
                if not _out_of_memory(error):
                    raise
            count = microbatch(self.stage.settings, self.run.train, self.world)
            batch, may_halve = self.stage.batch, self._may_halve
            if not may_halve or count % 2:
                raise RunFailed(
                    f"stage {self.stage.name}: out of memory in a step on a batch of {batch} in "
                    f"microbatches of {count}; go on with --resume after setting train.microbatch "
                    f"in {self.folder.path}/config.yaml to {max(1, count // 2)} or less, or begin "
                    "with --microbatch auto"
                )
            self.run.train.microbatch = count // 2
            self.state.optimizer.zero_grad(set_to_none=True)
            if self.world.device.type == "cuda":
                torch.cuda.empty_cache()
            if self.world.first:
                self.folder.write("config.yaml", config.to_yaml(self.run))
            self.log.warn(
                f"out of memory on a batch of {batch} in microbatches of {count}: now {count // 2}"
            )

    def _reads(self, before: int) -> bool:
        """Whether the step's numbers are read: at once, or where a device would wait, now and then.

        Whatever is shown, measured or kept of a run needs them.
        """
        due = not self.state.deferred or self._at_end()
        due = due or self.progress.stage_images // self.stage.batch % STEPS_UNREAD == 0
        return due or any(self._due(interval, before) for interval in self.every)

    @property
    def stage(self) -> PreparedStage:
        """The stage that is trained now, as long as it has become by now."""
        return self.rule.stage

    def _enter_stage(self) -> bool:
        """Begin the next stage, or go on with it; returns whether nothing is left to do in it."""
        stage, run, progress = self.stages[self.progress.stage], self.run, self.progress
        self.state.feed.close()
        self.state, notes = handover.enter(stage, run, self.state, progress)
        for note in notes:
            self.log.say(note)
        planned = sum(each.images for each in self.stages)
        self.every = monitor.Cadence.of(run.train, planned, stage)
        self.rule = rule_of(stage)
        self.check = self._make_check() if self.rule.public else None
        if progress.stage_images == 0:
            progress.best, progress.cooldown = 0, (0, 0)
            progress.norms = []  # other masks and images have other gradients
            record = monitor.stage_record(stage, self.rule, progress)
            self.log.metric("stage", event="start", **record)
            monitor.say_stage(stage, self.rule, self.log)
        self._set_length()
        self.rule.begin(self.folder, progress, self.log.warn)
        progress.stage_end = False
        if self.started and progress.images == 0 and self.rule.public:
            self._look()
        if not self._at_end():
            return False
        progress.sums = {"since": progress.seconds}  # a private stage whose budget is spent
        self._finish_stage()
        self._save()
        return True

    def _look(self) -> None:
        """A check and a grid of the weights that the run starts from."""
        if max(self.every.check, self.every.sample) >= 0:
            self.state.fill_averaged()
        if self.every.check >= 0 and self.check is not None:
            monitor.run_check(self.check, self.stage, self.state, self.progress, self.log)
        if self.every.sample >= 0 and self.world.first:
            monitor.draw_samples(
                self.folder,
                self.run,
                self.state,
                self.progress,
                self.log,
                self.stage,
                self.check,
            )

    def _make_check(self) -> Check | None:
        """What is measured on held-out images and of sample grids, by the first process."""
        train = self.run.train
        wanted = max(train.check_every, train.sample_every) >= 0
        if self.make_check is None or not self.world.first or not wanted:
            return None
        images, averaged = self.stage.training_set, self.state.averaged
        return self.make_check(
            images, averaged, train.seed, train.check_images, train.check_samples
        )

    def _report(self, before: int) -> tuple[bool, bool]:
        """Lines, checks, snapshots and grids that are due after a step.

        Returns whether the stage ends, and whether its weights or length have changed.
        """
        stage, state, progress, first = self.stage, self.state, self.progress, self.world.first
        decision, found = early.Decision(), None
        if self._due(self.every.log, before):
            self.rule.log(progress, self.log, state)
        if self._due(self.every.check, before):
            state.fill_averaged()
            if self.check is not None:
                found = monitor.run_check(self.check, stage, state, progress, self.log)
            if self.run.train.stop == "auto" and self.rule.public:
                decision = early.decide(found, stage, progress, self.world)
                if found is not None and decision.back:  # why the stage goes back
                    monitor.say_finding(found, self.log)
                    found = None
                self._follow(decision)
        if self.deadline and progress.stage == len(self.stages) - 1 and not any(decision[1:]):
            begins, length = self.deadline.cooldown(stage, progress, self.world)
            decision = decision._replace(cooldown=length, begins=begins)  # the best check, or not
            self._follow(decision)
        ends = decision.ends or self._at_end()
        if state.power and first and self._due(self.every.snapshot, before, ends):
            averages = state.power.state()
            self.folder.snapshot(state.spec, averages, progress.images, state.ema.steps)
        if self._due(self.every.sample, before, ends):
            state.fill_averaged()
            if first:
                monitor.draw_samples(
                    self.folder, self.run, state, progress, self.log, self.stage, self.check
                )
        if found is not None:
            monitor.say_finding(found, self.log)
        if ends:
            self.rule.log(progress, self.log, state)  # what is left, where the stage ends early
        return ends, any(decision)

    def _has_news(self, before: int) -> bool:
        """Whether there has been a check, a grid or a checkpoint since `before`."""
        every = self.every
        return any(self._due(n, before) for n in (every.check, every.sample, every.checkpoint))

    def _due(self, interval: int, before: int, ends: bool = False) -> bool:
        """Whether a multiple of `interval` images was passed since `before`, or the stage ends.

        Of an `interval` as long as the run was planned: whether that ends.
        """
        if interval <= 0:
            return False
        last = ends or self._at_end()
        if interval >= sum(stage.images for stage in self.stages):
            return last and self.progress.stage == len(self.stages) - 1
        return last or before // interval != self.progress.images // interval

    def _at_end(self) -> bool:
        return self.progress.stage_images >= self.stage.images

    def _follow(self, decision: early.Decision) -> None:
        progress = self.progress
        if decision.gain:
            progress.best = progress.images
        if not decision.back and not decision.cooldown:
            return
        if decision.back:
            self.state.restore(self.folder.checkpoints / f"{decision.back:012d}")
            progress.ema_steps = self.state.ema.steps
            if self.world.first:
                self.folder.forget(decision.back, self.folder.snapshots)
        sentence = early.said(decision, self.stage, progress)
        if decision.cooldown:
            progress.cooldown = (decision.begins or progress.stage_images, decision.cooldown)
            self._set_length()
        record = decision._asdict() | {"sentence": sentence}
        if decision.cooldown:
            record["total"] = self.log.total
        self.log.metric("stop", stage=self.stage.name, images=progress.images, **record)
        self.log.say(sentence)

    def _set_length(self) -> None:
        """Give the stage the cool-down that was decided, if any, and the log what is left."""
        stage, progress = self.stages[self.progress.stage], self.progress
        if progress.cooldown[1]:
            self.rule.stage = early.with_cooldown(stage, *progress.cooldown)
        rest = [self.rule.stage, *self.stages[stage.index + 1 :]]
        before = progress.images - progress.stage_images  # the stages before, as they have become
        total = before + sum(each.images for each in rest)
        self.log.resize(total, lambda images: left(rest, images - before))

    def _finish_stage(self) -> None:
        """The end of a stage: `progress` belongs to the next one."""
        progress = self.progress
        record = monitor.stage_record(self.stage, self.rule, progress)
        self.log.metric("stage", event="end", **record)
        progress.stage += 1
        progress.stage_images = progress.stage_returns = 0
        progress.stage_end = True

    def _save(self) -> None:
        state, progress = self.state, self.progress
        settle(state, progress)  # of steps before a Ctrl-C
        progress.metrics_bytes = self.log.size()
        state.save(self.folder, progress, self.run.train.keep)

    def _restored(self) -> tuple[TrainState, Progress]:
        """State and progress of the newest checkpoint; metrics after it are forgotten."""
        checkpoint = self.folder.latest().folder
        progress = read_progress(checkpoint)
        state = prepare_state(read_fitting_spec(checkpoint, "model"), self.run.train, self.world)
        state.restore(checkpoint)
        planned = progress.stage < len(self.stages) and self.stages[progress.stage].images
        beyond = progress.stage_images > progress.length(planned)
        if progress.stage > len(self.stages) or beyond:
            raise UserError(
                f"{checkpoint}: its state.json is beyond the stages of the run's config.yaml"
            )
        self.log.cut(progress.metrics_bytes)
        return state, progress

    def _go_back(self, reason: str) -> None:
        """To the last checkpoint, with half the learning rate."""
        lost, name = self.progress, self.stage.name
        returns = lost.stage_returns + 1
        if returns > RETURNS:
            raise RunFailed(
                f"stage {name}: {reason}, also after {RETURNS} returns with a lower learning "
                f"rate; lower --stages.{name}.learning_rate or raise its warmup"
            )
        self.state.feed.close()
        self.state.finish()
        self.state, self.progress = self._restored()
        if self.world.first:
            self.folder.go_on(self.log.say)
        factor = lost.rate_factor / 2  # also where two returns are to the same checkpoint
        self.progress.attempt, self.progress.rate_factor = lost.attempt + 1, factor
        self.progress.stage_returns = returns
        self.log.metric(
            "rollback",
            images=lost.images,
            to=self.progress.images,
            learning_rate_factor=factor,
            reason=reason,
        )
        self.log.warn(
            f"{reason}: back to {self.progress.images:,} images with {factor:g} of the learning "
            "rate"
        )


def _out_of_memory(error: BaseException) -> bool:
    """Whether a step failed for want of memory, on a GPU or a CPU."""
    text = str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate" in text
    )
