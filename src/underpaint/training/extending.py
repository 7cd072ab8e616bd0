"""Going on with a run in other circumstances: more images for a finished one, data that have moved.

A finished run has a stage added, NAME-more1, NAME-more2 …: the settings of its last stage, the
learning rate constant at its peak without a warm-up and then a cool-down over the same share. The
weights, their average and the optimiser's state are those that the run ended with, and it resumes
exactly, as any stage does.
"""

import dataclasses
import json
import re
from pathlib import Path

from underpaint import config
from underpaint.bounded import read_json
from underpaint.data.source import absolute, is_there
from underpaint.errors import UserError
from underpaint.training import identities
from underpaint.training.checkpointing import RunFolder, read_progress
from underpaint.training.stages import PreparedStage


def extended(run: config.Run, folder: RunFolder, images: int, minutes: float) -> config.Run:
    """The recipe with a stage of so many images or minutes more. Raises UserError if unfinished."""
    if images < 0 or minutes < 0 or bool(images) == bool(minutes):
        raise UserError("give what is added to a finished run either as --images or as --minutes")
    progress = read_progress(folder.latest().folder)
    if progress.stage < len(run.stages):
        lengths = [stage.images for stage in run.stages.values()]
        if progress.stage_images:
            lengths[progress.stage] = progress.length(lengths[progress.stage])
        raise UserError(
            f"{folder.path}: this run has seen {progress.images:,} of the {sum(lengths):,} images "
            "that it was given; go on to its end with --resume alone, and extend it then"
        )
    last, stage = list(run.stages.items())[-1]
    if stage.dp:
        raise UserError(
            f"{folder.path}: the budget of the private stage {last} is spent; it cannot be extended"
        )
    base = re.sub(r"-more\d+$", "", last)
    name = next(n for i in range(1, 10**6) if (n := f"{base}-more{i}") not in run.stages)
    more = dataclasses.replace(
        stage, images=images, minutes=minutes, warmup=0, schedule="cooldown", keep_optimizer=True
    )
    return dataclasses.replace(run, stages={**run.stages, name: more})


def moved(run: config.Run, folder: RunFolder, data: str | Path | None) -> config.Run:
    """The recipe with its images in `data`, if that is given.

    Raises UserError where the data of a stage's own are gone, or no stage has other ones.
    """
    sources = {name: stage.data.source for name, stage in run.stages.items() if stage.data}
    gone = [name for name, source in sources.items() if not is_there(source)]
    if gone or (data is not None and len(sources) == len(run.stages)):
        name = (gone or [*sources])[0]
        why = "are not there any more" if gone else "are its own: --data does not say where"
        raise UserError(
            f"stage {name}: its data {sources[name]} {why}; write where they are now as "
            f"stages.{name}.data.source into {folder.path / 'config.yaml'}"
        )
    if data is None:
        return run
    place = absolute(str(data))
    return dataclasses.replace(run, data=dataclasses.replace(run.data, source=place))


def record(folder: RunFolder, run: config.Run, stages: list[PreparedStage]) -> None:
    """Write down the recipe as it is now, and the data of its stages. `config.yaml` is the last."""
    path = folder.path / "env.json"
    environment = read_json(path)
    environment["data"] = {stage.name: stage.training_set.key for stage in stages}
    folder.write("env.json", json.dumps(environment, indent=1))
    folder.write("config.yaml", config.to_yaml(run))


def check_moved(folder: RunFolder, stages: list[PreparedStage]) -> None:
    """Raise UserError unless images and held-out images are those that the run began with."""
    if identities.read(folder.path).digest() != identities.of(stages).digest():
        raise UserError(
            f"{folder.path}: the data are the same, but other images would be held out now than "
            "when the run began; bring the data back to where they were, or begin a new run"
        )
