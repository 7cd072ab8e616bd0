"""What one calls from Python: a whole run with its overfit check and its report."""

import dataclasses
import os
from pathlib import Path
from typing import Any

from underpaint import config
from underpaint.errors import UserError
from underpaint.evaluation.validation import OverfitCheck
from underpaint.handing_on import handing_on
from underpaint.model_folder import pinned
from underpaint.progress import doing, shown
from underpaint.training import adopt
from underpaint.training import train as train_loop
from underpaint.training.minutes import within


def _recipe(source: config.Run | str | Path) -> config.Run:
    """A recipe from a preset's name or a YAML file; a `Run` is returned as it is."""
    if isinstance(source, config.Run):
        return source
    if str(source).endswith((".yaml", ".yml")):
        return config.load(source)
    return config.preset(str(source))


def train(
    source: config.Run | str | Path,
    out: str | Path,
    *,
    start: str | None = None,
    minutes: float | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    write_report: bool = True,
    began: float | None = None,
) -> Path:
    """Train by a recipe (a `Run`, a preset's name or a YAML file), and write the report.

    `out`: the run's folder, which is returned. `start`: weights to begin with (a run, a checkpoint,
    `pretrained:NAME` or `org/name` on the Hub). `minutes`: all stages in so many, each by its
    share. `began`: when these began (`time.monotonic()`; None: now); the report is there when they
    are over.
    Raises UserError for wrong use, RunFailed if training cannot go on, Interrupted after Ctrl-C.
    """
    settings = {"start": start, "overwrite": overwrite, "quiet": quiet}
    run = _recipe(source)
    run = run if minutes is None else within(run, minutes)
    return _run(run, out, write_report, began=began, **settings)


def resume(
    out: str | Path,
    *,
    data: str | Path | None = None,
    images: int = 0,
    minutes: float = 0.0,
    quiet: bool = False,
    write_report: bool = True,
    began: float | None = None,
) -> Path:
    """Go on with the run in `out` by its saved recipe. Returns and raises as `train`.

    `data`: where its images are now, if they have moved. `images` or `minutes`: a finished run is
    extended by so much: its last stage goes on at the peak of its learning rate, then cools down.
    """
    settings = {"quiet": quiet, "data": data, "began": began}
    more = {"more_images": images, "more_minutes": minutes}
    return _run(None, out, write_report, resume=True, **settings, **more)


def finetune(
    start: str | Path,
    data: str | Path | config.Data,
    out: str | Path,
    *,
    recipe: config.Run | str | Path | None = None,
    **settings: Any,
) -> Path:
    """Train the model in `start` on the images `data`, as `underpaint finetune` does.

    The whole-image stages of `recipe` are trained; without a recipe those of the preset `default`,
    with the network, space and noise of the model. `settings`: overwrite, preparing, quiet and
    write_report, as of `train`. Returns and raises as `train`.
    """
    start = str(pinned(start))
    run = adopt(config.preset("default"), start) if recipe is None else _recipe(recipe)
    if isinstance(data, (str, Path)):
        data = dataclasses.replace(run.data, source=str(data))
    run = only_stages(dataclasses.replace(run, data=data), masked=False)
    return train(run, out, start=start, **settings)


def only_stages(run: config.Run, *, masked: bool) -> config.Run:
    """The recipe's masked stages alone, or those on whole images. Raises UserError if none."""
    stages = {k: stage for k, stage in run.stages.items() if (stage.mask != "none") == masked}
    if run.stages and not stages:
        kind, verb = ("masked", "pretrain") if masked else ("whole-image", "finetune")
        raise UserError(f"the recipe has no {kind} stage, so there is nothing to {verb}; use train")
    return dataclasses.replace(run, stages=stages)


def evaluate(source: str | Path, reference: str | None = None, **settings: Any) -> dict[str, Any]:
    """Scores of a model or of images against real images: see `evaluation.evaluate.evaluate`."""
    from underpaint.evaluation.evaluate import evaluate as score

    return score(source, reference, **settings) or {}


def audit(source: str | Path, **settings: Any) -> dict[str, Any]:
    """What a model reveals about its training images: see `privacy.audit.audit`."""
    from underpaint.privacy.audit import audit as attack

    return attack(source, **settings).result


def _run(run: config.Run | None, out: str | Path, write_report: bool, **settings: Any) -> Path:
    with shown(settings["quiet"]), handing_on():
        page = _follow if write_report else None
        folder = train_loop(run, out, make_check=OverfitCheck.of, page=page, **settings)
        if write_report and os.environ.get("RANK", "0") == "0":  # the first process of `torchrun`
            with doing("writing the report"):
                from underpaint import report  # what draws is imported when it is needed

                report.build(folder)
    return folder


def _follow(folder: Path, going: bool) -> None:
    from underpaint import report

    report.follow(folder, going)
