"""Two processes are one process with two microbatches."""

import dataclasses
import socket
from pathlib import Path

import pytest
import torch

from tests.training.runs import begin, metrics, weights
from underpaint import config
from underpaint.evaluation.validation import OverfitCheck
from underpaint.training import train


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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    # what torchrun says to each (test_evaluate.py asks it itself)
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    both, log = [], tmp_path / "log"
    for rank in ("0", "1"):
        where = world | {"RANK": rank, "LOCAL_RANK": rank}
        both.append(begin("train", "--config", path, "--out", two, log=log, **where))
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
    assert said.count("stage masked:") == 1  # only the first process speaks
    assert (two / "report.html").exists()
