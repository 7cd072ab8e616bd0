"""Two processes are one process with two microbatches."""

import dataclasses
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.training.runs import begin, metrics, weights
from underpaint import config
from underpaint.evaluation.validation import OverfitCheck
from underpaint.model_folder import newest
from underpaint.training import distributed, train
from underpaint.training.batch import microbatch


def pair(*arguments: str | Path, logs: tuple[Path, Path]) -> list[BaseProcess]:
    """One command in two processes, told what torchrun says (test_evaluate.py asks it itself)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        begin(*arguments, log=log, **world, RANK=rank, LOCAL_RANK=rank)
        for rank, log in zip("01", logs, strict=True)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["plain", "kit"])
def test_two_processes_equal_two_microbatches(
    recipe: config.Run, tmp_path: Path, case: str
) -> None:
    kit, stops = case == "kit", case == "plain"
    recipe.stages = {"masked": dataclasses.replace(recipe.stages["masked"], images=40)}
    if kit:  # what has a state or draws of its own
        recipe.stages["masked"].images = 200  # the percentile needs twenty steps
        recipe.stages["masked"].clip_percentile = 30.0
        recipe.stages["masked"].augment = 0.5
        recipe.noise.learned_weights = True
        recipe.train.optimizer = "muon"
    if stops:  # a stage that gains nothing ends after its fourth check, in both processes
        still = dataclasses.replace(recipe.stages["masked"], images=400, learning_rate=1e-30)
        recipe.stages["still"] = still
        recipe.train.stop, recipe.train.check_every = "auto", 20
        recipe.train.ema = 0.0  # else the average still moves towards the weights
    recipe.train.microbatch = 4
    one = train(recipe, tmp_path / "one", make_check=OverfitCheck.of, quiet=True)
    path = tmp_path / "recipe.yaml"
    path.write_text(config.to_yaml(recipe))
    two = tmp_path / "two"
    log = tmp_path / "log"
    both = pair("train", "--config", path, "--out", two, logs=(log, log))
    for process in both:
        process.join()
    said = log.read_text()
    assert [process.exitcode for process in both] == [0, 0], said
    a, b = weights(one), weights(two)
    for name, tensor in a.items():
        torch.testing.assert_close(b[name], tensor, atol=1e-5 if kit else 1e-6, rtol=0)
    steps = [m for m in metrics(two) if m["kind"] == "step"]
    assert [m["images"] for m in steps] == [
        m["images"] for m in metrics(one) if m["kind"] == "step"
    ]
    if stops:
        assert [r["images"] for r in metrics(two) if r["kind"] == "stage"] == [0, 40, 40, 120]
    images = recipe.stages["masked"].images
    assert said.count(f"stage masked: {images} images") == 1  # only the first process speaks
    assert (two / "report.html").exists()


@pytest.mark.parametrize(
    ("batch", "size", "began", "images"),
    [(8, 4, 4, 2), (8, 2, 4, 2), (8, 1, 4, 2), (8, 4, 1, 2), (8, 8, 4, 1), (12, 3, 4, 4)],
)
def test_fewer_processes_keep_the_microbatches_of_a_run(
    batch: int, size: int, began: int, images: int
) -> None:
    """By which masks and noise are drawn; where they cannot be kept, each has its share."""
    here = distributed.World(0, size, torch.device("cpu"), began)
    assert microbatch(config.Stage(batch=batch), config.Train(), here) == images


def test_names_of_lost_processes_are_not_taken() -> None:
    """Of three processes, with what an attempt before has left in the store."""
    store, names = dist.HashStore(), set[str]()
    for _ in range(3):
        with ThreadPoolExecutor(3) as threads:
            found = {threads.submit(distributed._agreed, store, k, 3, 1.0) for k in range(3)}
            (name,) = {one.result() for one in found}
        assert name not in names
        names.add(name)
    with pytest.raises(RuntimeError, match="timed out, waiting for process 1"):
        distributed._agreed(dist.HashStore(), 0, 3, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "at"),
    [(signal.SIGKILL, "begin"), (signal.SIGKILL, "train"), (signal.SIGSTOP, "train")],
)
def test_a_lost_process_is_said_in_one_line(
    recipe: config.Run, tmp_path: Path, end: signal.Signals, at: str
) -> None:
    """It is gone before the first step or later, or hangs for longer than the timeout."""
    recipe.stages = {"masked": dataclasses.replace(recipe.stages["masked"], images=10**6)}
    recipe.train.timeout = 0.15 if end == signal.SIGSTOP else 0.5  # minutes; waited out by one
    path, run, logs = tmp_path / "r.yaml", tmp_path / "run", (tmp_path / "0", tmp_path / "1")
    path.write_text(config.to_yaml(recipe))
    first, other = pair("train", "--config", path, "--out", run, logs=logs)
    try:
        awaited = run / "config.yaml" if at == "begin" else run / "checkpoints" / f"{64:012d}"
        while not awaited.exists():
            assert first.is_alive(), logs[0].read_text()
            time.sleep(0.05)
        assert other.pid is not None
        os.kill(other.pid, end)
        first.join(120)
        assert first.exitcode == 1
    finally:
        for process in (first, other):
            process.kill()
            process.join()
    ours = [line for line in logs[0].read_text().splitlines() if line.startswith("underpaint: ")]
    assert len(ours) == 1
    assert "another process of this run is gone or hangs" in ours[0]
    assert "start all again with --resume" in ours[0]
    assert "Traceback" not in logs[0].read_text()
    if at == "train":
        assert newest(run).note == ""  # the last checkpoint is whole
