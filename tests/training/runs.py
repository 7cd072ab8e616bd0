"""What tests of whole runs share."""

import json
import multiprocessing
import os
import socket
import sys
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
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


# --- several processes ---------------------------------------------------------------------------


def world(size: int) -> list[dict[str, str]]:
    """What torchrun says to each of so many processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]


def launched(
    out: Path, log: Path, *arguments: str | Path, size: int = 2, **extra: str
) -> list[BaseProcess]:
    """A run in so many processes, as torchrun starts them."""
    words = ("train", *arguments, "--out", out)
    return [begin(*words, log=log, **said, **extra) for said in world(size)]


def join(processes: Sequence[BaseProcess], log: Path, code: int = 0) -> None:
    """Wait for all of them, which must end with this exit code."""
    for process in processes:
        process.join()
    said = log.read_text() if log.exists() else ""
    assert [process.exitcode for process in processes] == [code] * len(processes), said


def assert_near(a: Path, b: Path) -> None:
    """The same images in the same order, losses and weights within 1e-5."""
    one, two = ([m for m in metrics(run) if m["kind"] in ("step", "stage")] for run in (a, b))
    assert [(m["kind"], m["images"]) for m in one] == [(m["kind"], m["images"]) for m in two]
    for x, y in zip(one, two, strict=True):
        if x["kind"] == "step":
            assert y["loss"] == pytest.approx(x["loss"], abs=1e-5)
    ours, theirs = weights(a), weights(b)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        other = theirs[name]
        if name.endswith("qkv.bias"):  # attention ignores the keys': theirs is rounding, normed
            (q, _, v), (q_other, _, v_other) = tensor.chunk(3), other.chunk(3)
            tensor, other = torch.cat([q, v]), torch.cat([q_other, v_other])
        torch.testing.assert_close(other, tensor, atol=1e-5, rtol=0, msg=name)


def children(pid: int | None) -> list[Path]:
    """The processes that this one has begun, each as its folder in /proc."""
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [Path("/proc", child) for child in listed]
