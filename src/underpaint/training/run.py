"""A whole run: stages, folder, state and log, from a recipe or from a folder to go on in.

`train` prepares them; what then goes on is `Trainer.fit`.
"""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch

from underpaint import config
from underpaint.errors import Interrupted, RunFailed, UserError, said_once
from underpaint.hardware import keep_freed_memory
from underpaint.io import numbered
from underpaint.model_folder import pinned
from underpaint.progress import doing
from underpaint.registry import wing
from underpaint.training import (
    distributed,
    early,
    extending,
    handover,
    identities,
    provenance,
)
from underpaint.training.batch import microbatch
from underpaint.training.checkpointing import RunFolder
from underpaint.training.live_page import LivePage, WritePage
from underpaint.training.log import Log, tracker_library
from underpaint.training.minutes import freeze
from underpaint.training.monitor import MakeCheck
from underpaint.training.stages import PreparedStage, left, prepare_stages
from underpaint.training.throughput import settle_precision
from underpaint.training.train_state import parallel_notes
from underpaint.training.trainer import Trainer


def train(
    run: config.Run | None,
    out: str | Path,
    *,
    start: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    make_check: MakeCheck | None = None,
    quiet: bool = False,
    began: float | None = None,
    page: WritePage | None = None,
    data: str | Path | None = None,
    more_images: int = 0,
    more_minutes: float = 0.0,
) -> Path:
    """Train by the recipe `run` into the folder `out`, and return that folder.

    `start`: weights to begin with (as `model_folder.find`), else they are drawn.
    `resume`: go on with the run in `out` by its own recipe; `run` may then be None. So does a
    process that `torchrun --max-restarts` has started again.
    `make_check`: builds what is measured on held-out images as training goes on.
    `began`: the monotonic time from which the recipe's minutes count; None: now. `page`: writes
    the page of the run as it goes on (see `live_page`); then the minutes hold the time for a report
    after the end, too.
    `data`: where the images of a resumed run are now, which must be the same. `more_images`,
    `more_minutes`: by how much a finished run is extended (see `extending`).
    Raises UserError for wrong use, RunFailed if training cannot go on, Interrupted after Ctrl-C.
    """
    began = time.monotonic() if began is None else began
    folder = RunFolder(Path(out).expanduser())
    if not resume and distributed.restarted() and provenance.of_this_launch(folder.path):
        resume = bool(numbered(folder.checkpoints))
        overwrite = not resume  # what it left before its first checkpoint
    if resume:
        if not (folder.path / "config.yaml").is_file():
            raise UserError(f"{out}: holds no run to resume; leave --resume out to begin one")
        run = config.load(folder.path / "config.yaml")
        if run.space.kind == "latents" and not Path(run.space.vae).expanduser().exists():
            raise UserError(
                f"{run.space.vae}: the autoencoder of this run is not there any more; write where "
                f"it is now as space.vae into {folder.path / 'config.yaml'}"
            )
        run = extending.moved(run, folder, data)
        if more_images or more_minutes:
            run = extending.extended(run, folder, more_images, more_minutes)
    if run is None:
        raise UserError("a recipe is needed to begin a run")
    run = config.checked(run)
    recorded = provenance.recorded(folder.path) if resume else {}
    with said_once():
        config.check(run)
    start = start and str(pinned(start))
    tracker_library(run.train.track)
    if any(stage.dp for stage in run.stages.values()):
        wing("dp").library()
    if run.train.threads:
        torch.set_num_threads(run.train.threads)
    with ExitStack() as closing:
        closing.enter_context(_alone())
        world = distributed.start(run.train.device, run.train.timeout)
        closing.callback(world.close)
        if world.size > 1:  # whatever we were about when another was lost
            closing.enter_context(distributed.lost())
        world = dataclasses.replace(world, began=recorded.get("processes", 1))
        with said_once():
            _check_batches(run, world)
        closing.callback(folder.unlock)
        torch.set_float32_matmul_precision("high" if world.device.type == "cuda" else "highest")
        if world.first and not resume:
            folder.check(overwrite)
        notes: list[str] = []
        if world.first:
            with doing("reading the images"):
                stages = prepare_stages(run, notes.append)
        world.barrier()  # the first process fills the cache, the others read it
        if not world.first:
            stages = prepare_stages(run, lambda _: None)
        known = None if resume or not world.first else identities.of(stages)
        keep_freed_memory()  # of steps, not of what a million files take now and never again
        with said_once():
            early.check_stop(run, stages, make_check is not None)
            if any(stage.guarantee for stage in stages):
                notes += wing("dp").check_scope(stages, start, world.size)
        state, deadline = None, None
        if resume:
            if world.first:
                folder.lock()
                folder.go_on(notes.append)
            added = {s.name for s in stages[-1:] if more_images or more_minutes}
            _same_data(folder, [s for s in stages if s.name not in added], recorded["data"])
            if world.first:
                extending.check_moved(folder, stages)
            if added:
                how = world, began, make_check, page is not None
                run, stages, length_notes, deadline = freeze(run, stages, *how)
                notes += length_notes
            if (added or data is not None) and world.first:
                extending.record(folder, run, stages)
            if run.train.precision == "auto":  # of a run that began before it was written down
                run.train.precision = recorded["precision"]
        else:
            with doing("measuring precisions"):
                run, precision_notes = settle_precision(run, world)
            notes += precision_notes
            state, start_notes = handover.begin(run, stages, start, world)
            notes += start_notes
            run, stages, length_notes, deadline = freeze(
                run, stages, world, began, make_check, page is not None, start is not None
            )
            notes += length_notes
            if known is not None:
                folder.create(overwrite)
                folder.write("env.json", provenance.describe(stages, state, start))
                folder.write("config.yaml", config.to_yaml(run))
                identities.write(folder, known)
        del known  # 32 bytes an image
        world.barrier()
        notes += parallel_notes(run, stages, world)
        total = sum(stage.images for stage in stages)
        log = Log(folder, total, world.first, quiet, partial(left, stages))
        closing.callback(log.close)
        log.track(run)
        for note in notes:
            log.say(note)
        shown, started = LivePage(page, folder.path, log), start is not None
        trainer = Trainer(
            run, folder, world, stages, state, log, shown, make_check, started, deadline
        )
        try:
            return trainer.fit()
        except (Interrupted, RunFailed):
            shown.end()
            raise


_training = threading.Lock()


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """One training at a time in a process, and torch's generator as it was afterwards.

    Dropout draws from torch's global generator, which each microbatch seeds: two at once would
    disturb each other. Raises UserError if another one is going on.
    """
    if not _training.acquire(blocking=False):
        raise UserError(
            "another training is going on in this process, and both would draw from one generator; "
            "start it in a process of its own"
        )
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        _training.release()


def _check_batches(run: config.Run, world: distributed.World) -> None:
    for name, stage in run.stages.items():
        count = microbatch(stage, run.train, world)
        if stage.batch % (count * world.size):
            raise UserError(
                f"stages.{name}.batch: {stage.batch} cannot be shared by {world.size} "
                f"processes in microbatches of {count}; make it a multiple of {count * world.size}"
            )


def _same_data(folder: RunFolder, stages: list[PreparedStage], began: dict[str, str]) -> None:
    for stage in stages:
        if stage.name not in began:
            raise UserError(
                f"stage {stage.name}: is in {folder.path / 'config.yaml'}, and the run began with "
                f"{', '.join(began)}; bring config.yaml back to what it was"
            )
        if began[stage.name] != stage.training_set.key:
            raise UserError(
                f"stage {stage.name}: the images have changed since the run began, so it cannot be "
                f"resumed; begin a new one with --from {folder.path}"
            )
