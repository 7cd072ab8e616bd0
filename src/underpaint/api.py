"""What one calls from Python: a whole run with its overfit check and its report."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from underpaint import config, report
from underpaint.evaluation.validation import OverfitCheck
from underpaint.training import adopt
from underpaint.training import train as train_loop

__all__ = ["finetune", "recipe", "train"]


def recipe(source: config.Run | str | Path) -> config.Run:
    """A recipe from a preset's name or a YAML file; a `Run` is returned as it is."""
    if isinstance(source, config.Run):
        return source
    if str(source).endswith((".yaml", ".yml")):
        return config.load(source)
    return config.preset(str(source))


def train(
    source: config.Run | str | Path | None,
    out: str | Path,
    *,
    start: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    preparing: Callable[[int, int], None] | None = None,
    quiet: bool = False,
    write_report: bool = True,
) -> Path:
    """Train by a recipe (a `Run`, a preset's name or a YAML file), and write the report.

    `out`: the run's folder, which is returned. `start`: weights to begin with (a run, a checkpoint
    or `primer:NAME`). `resume`: go on with the run in `out`; `source` may then be None.
    Raises UserError for wrong use, RunFailed if training cannot go on, Interrupted after Ctrl-C.
    """
    run = None if source is None else recipe(source)
    folder = train_loop(
        run,
        out,
        start=start,
        resume=resume,
        overwrite=overwrite,
        make_check=OverfitCheck.of,
        preparing=preparing,
        quiet=quiet,
    )
    if write_report and os.environ.get("RANK", "0") == "0":  # the first process of `torchrun`
        report.build(folder)
    return folder


def finetune(
    source: config.Run | str | Path,
    out: str | Path,
    start: str,
    *,
    overwrite: bool = False,
    quiet: bool = False,
) -> Path:
    """Train on from the model in `start`, whose space, network and noise replace the recipe's.

    Arguments and errors as in `train`.
    """
    adopted = adopt(recipe(source), start)
    return train(adopted, out, start=start, overwrite=overwrite, quiet=quiet)
