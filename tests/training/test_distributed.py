"""Two processes are one process with two microbatches."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training.runs import environment, metrics, weights
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
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node", "2", "-m", "underpaint"]
    done = subprocess.run(
        [*torchrun, "train", "--config", str(path), "--out", str(two)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    a, b = weights(one), weights(two)
    for name, tensor in a.items():
        torch.testing.assert_close(b[name], tensor, atol=1e-5 if kit else 1e-6, rtol=0)
    steps = [m for m in metrics(two) if m["kind"] == "step"]
    assert [m["images"] for m in steps] == [
        m["images"] for m in metrics(one) if m["kind"] == "step"
    ]
    if stops:
        assert [r["images"] for r in metrics(two) if r["kind"] == "stage"] == [0, 40, 40, 120]
    assert done.stderr.count("stage masked:") == 1  # only the first process speaks
    assert (two / "report.html").exists()
