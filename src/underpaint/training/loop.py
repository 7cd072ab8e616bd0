"""The loop: one for all recipes, stages and devices.

`train` prepares the stages, then for each stage and step calls `step`, where the loss is.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import torch

from underpaint import config
from underpaint.dp import accounting
from underpaint.dp.scope import check_covered
from underpaint.dp.step import private_step
from underpaint.errors import Interrupted, UserError
from underpaint.hardware import keep_freed_memory
from underpaint.training import checkpointing, distributed, early, stages
from underpaint.training.log import Log, tracker, tracker_library
from underpaint.training.monitor import (
    Check,
    MakeCheck,
    cadence,
    compute,
    draw_samples,
    log_step,
    run_check,
    say_spent,
    say_stage,
    stage_record,
)
from underpaint.training.provenance import describe, identities, keep_precision, recorded
from underpaint.training.signals import Signals
from underpaint.training.stages import Plan
from underpaint.training.state import Progress, RunFolder
from underpaint.training.step import Diverged, microbatch, step
from underpaint.training.throughput import freeze
from underpaint.training.train_state import Learner

__all__ = ["train"]


def train(
    run: config.Run | None,
    out: str | Path,
    *,
    start: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    make_check: MakeCheck | None = None,
    preparing: Callable[[int, int], None] | None = None,
    quiet: bool = False,
) -> Path:
    """Train by the recipe `run` into the folder `out`, and return that folder.

    `start`: where the weights come from (a run, a checkpoint, `primer:NAME`), else they are drawn.
    `resume`: go on with the run in `out` by its own recipe; `run` may then be None.
    `make_check`: builds what is measured on held-out images as training goes on.
    `preparing`: called with (done, total) images while data are decoded for the first time.
    Raises UserError for wrong use, RunFailed if training cannot go on, Interrupted after Ctrl-C.
    """
    folder = RunFolder(Path(out))
    if resume:
        if not (folder.path / "config.yaml").is_file():
            raise UserError(f"{out}: holds no run to resume; leave --resume out to begin one")
        run = config.load(folder.path / "config.yaml")
        if run.space.kind == "latents" and not Path(run.space.vae).expanduser().exists():
            raise UserError(
                f"{run.space.vae}: the autoencoder of this run is not there any more; write where "
                f"it is now as space.vae into {folder.path / 'config.yaml'}"
            )
    if run is None:
        raise UserError("a recipe is needed to begin a run")
    config.check(run)
    tracker_library(run.train.track)
    if any(stage.dp for stage in run.stages.values()):
        accounting.library()
    if run.train.threads:
        torch.set_num_threads(run.train.threads)
    keep_freed_memory()
    world = distributed.start(run.train.device)
    torch.set_float32_matmul_precision("high" if world.device.type == "cuda" else "highest")
    try:
        if world.first and not resume:
            folder.check(overwrite)
        notes: list[str] = []
        if world.first:
            plans = stages.plans(run, notes.append, preparing)
        world.barrier()  # the first process fills the cache, the others read it
        if not world.first:
            plans = stages.plans(run, lambda _: None, None)
        _check_batches(plans, run, world)
        early.check_stop(run, plans, make_check is not None)
        notes += check_covered(plans, start, world.size)
        if resume:
            if world.first:
                folder.lock()
                folder.latest()
                folder.clean()
            began = recorded(folder.path)
            _same_data(folder, plans, began["data"])
            notes += keep_precision(run.train, began, world.device)
        else:
            learner, source_notes = checkpointing.first(run, plans, start, world)
            notes += source_notes
            run, plans = freeze(run, plans, world)
            if world.first:
                folder.create()
                folder.write("config.yaml", config.to_yaml(run))
                folder.write("env.json", describe(plans, learner, start))
                folder.write("images.json", identities(plans))
        world.barrier()
        if resume:
            return _run(folder, run, plans, None, world, make_check, quiet, notes)
        return _run(folder, run, plans, learner, world, make_check, quiet, notes)
    finally:
        folder.unlock()
        world.close()


def _run(
    folder: RunFolder,
    run: config.Run,
    plans: list[Plan],
    learner: Learner | None,
    world: distributed.World,
    make_check: MakeCheck | None,
    quiet: bool,
    notes: list[str],
) -> Path:
    """All stages, with returns to the last checkpoint where training diverges."""
    log = Log(folder, sum(plan.images for plan in plans), world.first, quiet)
    try:
        log.tracker = tracker(run, folder) if world.first else None
        for note in notes:
            log.say(note)
        if learner is None:
            learner, progress = checkpointing.restore(folder, run, world)
            log.cut(progress.metrics_bytes)
            if progress.stage == len(plans):
                log.say(f"{folder.path}: this run is finished ({progress.images:,} images)")
                return folder.path
            log.say(f"going on after {progress.images:,} images")
        else:
            progress = Progress(metrics_bytes=log.size())
            _save(folder, run, learner, progress, log)
        with Signals() as signals:
            while progress.stage < len(plans):
                plan = plans[progress.stage]
                try:
                    learner = checkpointing.enter(plan, run, learner, progress, world, log)
                    check = _make_check(make_check, plan, learner, run, world)
                    _stage(folder, run, plan, learner, progress, log, check, signals)
                except Diverged as error:
                    learner, progress = checkpointing.go_back(
                        folder, run, progress, plan, world, log, str(error)
                    )
        log.say(f"done: {progress.images:,} images in {progress.seconds:,.0f} s of training")
        return folder.path
    finally:
        log.close()


def _stage(
    folder: RunFolder,
    run: config.Run,
    plan: Plan,
    learner: Learner,
    progress: Progress,
    log: Log,
    check: Check | None,
    signals: Signals,
) -> None:
    """One stage from where `progress` stands to its end."""
    every = cadence(run.train, log.total, plan)
    if progress.stage_images == 0:
        progress.best, progress.cooldown = 0, (0, 0)
        progress.norms = []  # other masks and images have other gradients
        log.metric("stage", event="start", **stage_record(plan, progress))
        say_stage(plan, log)
    if progress.cooldown[1]:
        plan = early.shortened(plan, *progress.cooldown)
    if plan.guarantee:
        plan = _spent(folder, plan, progress, log)
        if progress.stage_images >= plan.images:  # nothing is left of its budget
            progress.sums = {"since": progress.seconds}
            _finish(plan, learner, progress, log)
            _save(folder, run, learner, progress, log)
            return
    while progress.stage_images < plan.images:
        began = time.perf_counter()
        before = progress.images
        if plan.guarantee:
            folder.spend(plan.name)
            private_step(plan, run, learner, progress)
        else:
            step(plan, run, learner, progress)
        progress.seconds += time.perf_counter() - began
        last, decision = progress.stage_images >= plan.images, early.Decision()

        def due(interval: int, last: bool, before: int = before) -> bool:
            return interval > 0 and (last or before // interval != progress.images // interval)

        if due(every["log"], last):
            log_step(plan, progress, log, learner)
        if due(every["check"], last):
            found = None
            if check is not None and learner.world.first:
                found = run_check(check, plan, learner, progress, log)
            if run.train.stop == "auto" and not plan.guarantee:
                decision = early.decide(found, plan, progress, learner.world)
                plan = _heed(decision, folder, plan, learner, progress, log)
                last = last or decision.ends
        if learner.power and due(run.train.snapshots, last) and learner.world.first:
            folder.snapshot(learner.spec, learner.power.state(), progress.images, learner.ema.steps)
        if due(every["sample"], last) and learner.world.first:
            draw_samples(folder, run, learner, progress, log, plan)
        if last:
            log_step(plan, progress, log, learner)  # what is left, where the stage ends early
            _finish(plan, learner, progress, log)
        stopping = learner.world.sums([float(signals.received)])[0] > 0
        if due(every["checkpoint"], last) or stopping or any(decision):
            progress.stage_end = last
            _save(folder, run, learner, progress, log)
            say_spent(plan, progress, log)
        if stopping and progress.stage < len(run.stages):
            log.say(f"stopped after {progress.images:,} images; go on{folder.advice}")
            raise Interrupted
        if last:
            return  # progress now belongs to the next stage


def _heed(
    decision: early.Decision,
    folder: RunFolder,
    plan: Plan,
    learner: Learner,
    progress: Progress,
    log: Log,
) -> Plan:
    """Do what was decided after a check, and return the stage as it goes on."""
    if decision.gain:
        progress.best = progress.images
    if not decision.back:
        return plan
    checkpointing.load(learner, folder.checkpoints / f"{decision.back:012d}")
    progress.ema_steps = learner.ema.steps
    if learner.world.first:
        folder.forget(decision.back)
    told = decision._asdict() | {"sentence": early.said(decision, plan, progress)}
    log.metric("stop", stage=plan.name, images=progress.images, **told)
    log.say(told["sentence"])
    if not decision.cooldown:
        return plan
    progress.cooldown = (progress.stage_images, decision.cooldown)
    return early.shortened(plan, *progress.cooldown)


def _finish(plan: Plan, learner: Learner, progress: Progress, log: Log) -> None:
    """The end of a stage: `progress` belongs to the next one."""
    cost = compute(plan, learner, plan.levels[0])
    log.metric("stage", event="end", **stage_record(plan, progress), **cost)
    progress.stage += 1
    progress.stage_images = progress.stage_returns = 0
    progress.stage_end = True


def _spent(folder: RunFolder, plan: Plan, progress: Progress, log: Log) -> Plan:
    """The private stage `plan` by the guarantee it began with; steps that were lost are spent.

    Whoever stopped the run may have seen something of the steps after its last checkpoint, or
    stopped it because of them: they cost what they cost, and are not taken again.
    """
    if plan.name in progress.privacy:
        own = accounting.Guarantee.of(progress.privacy[plan.name])
        plan = dataclasses.replace(plan, guarantee=own)
    done, begun = progress.stage_images // plan.stage.batch, folder.begun(plan.name)
    if begun < done:
        raise UserError(
            f"{folder.ledger}: counts {begun:,} steps of stage {plan.name}, the checkpoint "
            f"{done:,}; it is not this run's or was cut, so the budget is unknown: begin a new run"
        )
    if begun > done:
        lost = (begun - done) * plan.stage.batch
        progress.stage_images += lost
        progress.images += lost
        log.say(
            f"stage {plan.name}: {begun - done:,} steps after the checkpoint are lost, but their "
            "privacy is spent; the stage goes on after them",
            style="yellow",
        )
    assert plan.guarantee is not None
    progress.privacy[plan.name] = plan.guarantee.record(begun)
    return plan


def _save(
    folder: RunFolder, run: config.Run, learner: Learner, progress: Progress, log: Log
) -> None:
    progress.metrics_bytes = log.size()
    if learner.world.first:
        folder.save(
            learner.spec,
            *learner.weights(),
            learner.optimizer_state(),
            progress,
            run.train.keep,
            learner.power.state() if learner.power else {},
        )
    learner.world.barrier()


def _make_check(
    make: MakeCheck | None, plan: Plan, learner: Learner, run: config.Run, world: distributed.World
) -> Check | None:
    if make is None or not world.first or run.train.check_every < 0 or plan.guarantee:
        return None
    train = run.train
    return make(plan.dataset, learner.averaged, train.seed, train.check_images, train.check_samples)


def _check_batches(plans: list[Plan], run: config.Run, world: distributed.World) -> None:
    for plan in plans:
        own = microbatch(plan.stage, run.train, world.size)
        if plan.stage.batch % (own * world.size):
            raise UserError(
                f"stages.{plan.name}.batch: {plan.stage.batch} cannot be shared by {world.size} "
                f"processes in microbatches of {own}; make it a multiple of {own * world.size}"
            )


def _same_data(folder: RunFolder, plans: list[Plan], began: dict[str, str]) -> None:
    for plan in plans:
        if began.get(plan.name) != plan.dataset.key:
            raise UserError(
                f"stage {plan.name}: the images have changed since the run began, so it cannot be "
                f"resumed; begin a new one with --from {folder.path}"
            )
