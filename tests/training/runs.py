"""What tests of whole runs share."""

import json
import multiprocessing
import os
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from underpaint.model_folder import Weights, find, read_weights
from underpaint.training.checkpointing import read_optimizer

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        *("underpaint.api", "underpaint.report", "torch.nn.parallel"),
        *("underpaint.training.sharding", "torch._dynamo"),  # torch imports it to shard
    ]
)
TIMES = {"seconds", "images_per_s", "time"}


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without their times."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def weights(run: Path) -> dict[str, torch.Tensor]:
    """All tensors of the last checkpoint: weights, average, optimiser."""
    folder = find(run)
    tensors: dict[str, torch.Tensor] = {}
    names: tuple[Weights, ...] = ("model", "ema")
    for name in names:
        tensors |= {f"{name}/{k}": v for k, v in read_weights(folder, name).items()}
    for parameter, state in read_optimizer(folder).items():
        tensors |= {f"{parameter}/{k}": v for k, v in state.items()}
    return tensors


def assert_same_run(a: Path, b: Path) -> None:
    """Bit for bit the same weights, averages, optimiser states and metrics."""
    one, two = weights(a), weights(b)
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name
    assert metrics(a) == metrics(b)


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "underpaint", *map(str, arguments)]


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **extra}


def begin(*arguments: str | Path, log: Path, **extra: str) -> BaseProcess:
    """The command line in a process of its own, which finds everything imported already.

    What it writes on stderr goes to `log`; `extra`: of its environment.
    """
    words, variables = [*map(str, arguments)], environment(**extra)
    process = SERVER.Process(target=_run, args=(words, variables, log))
    process.start()
    return process


def _run(arguments: list[str], variables: dict[str, str], log: Path) -> None:
    from underpaint.cli import main

    os.environ.update(variables)
    torch.set_num_threads(1)
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(main(arguments))
