"""A run that is killed, interrupted or resumed is the run that was not."""

import os
import random
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal

import pytest

from tests.training.conftest import draw_images, small_recipe
from tests.training.runs import assert_same_run, begin, metrics
from underpaint import api, config
from underpaint.cli import main
from underpaint.training import train


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe as a file, long enough to be killed on the way."""
    folder = tmp_path_factory.mktemp("resume")
    recipe = small_recipe(draw_images(folder / "images.npz"))
    recipe.stages["masked"].images = 960
    recipe.stages["whole"].images = 640
    recipe.train.checkpoint_every = 160
    recipe.train.sample_every = recipe.train.check_every = 480
    path = folder / "recipe.yaml"
    path.write_text(config.to_yaml(recipe))
    return path


@pytest.fixture(scope="module")
def straight(written: Path) -> Path:
    """The run of that recipe which nothing stops."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNDERPAINT_CACHE", str(written.parent / "cache"))
        return api.train(written, written.parent / "straight", quiet=True)


def wait_for(out: Path, images: int, process: BaseProcess) -> None:
    """Until the run's metrics reach `images`."""
    while process.is_alive():
        file = out / "metrics.jsonl"
        if file.exists() and file.read_text().count('"kind": "step"') * 16 >= images:
            return
        time.sleep(0.02)


@pytest.mark.slow
def test_killed_three_times(written: Path, straight: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    start = ("train", "--config", written, "--out", out, "--quiet")
    again = ("train", "--resume", "--out", out, "--quiet")
    draw = random.Random()  # another place at each run of the tests
    kills = 0
    for number, share in enumerate((0.25, 0.5, 0.75)):
        process = begin(*(start if number == 0 else again), log=tmp_path / "log")
        wait_for(out, int(1600 * share), process)
        time.sleep(draw.random() * 0.2)
        kills += process.is_alive()
        process.kill()
        process.join()
    assert kills > 0
    assert main(["train", "--resume", "--out", str(out), "--quiet"]) == 0
    assert_same_run(straight, out)
    assert (out / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_after_a_checkpoint(
    written: Path, straight: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "stopped"
    process = begin("train", "--config", written, "--out", out, log=tmp_path / "log")
    wait_for(out, 320, process)
    assert process.pid
    os.kill(process.pid, number)
    process.join()
    errors = (tmp_path / "log").read_text()
    assert process.exitcode == 130
    assert "--resume" in errors
    assert "Traceback" not in errors
    last = int((out / "checkpoints" / "LATEST").read_text())
    assert 0 < last < 1600
    assert main(["train", "--resume", "--out", str(out), "--quiet"]) == 0
    assert_same_run(straight, out)


def test_resuming_a_finished_run_changes_nothing(recipe: config.Run, tmp_path: Path) -> None:
    out = train(recipe, tmp_path / "run", quiet=True)
    before = metrics(out)
    train(None, out, resume=True, quiet=True)
    assert metrics(out) == before


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resuming_at_every_checkpoint(
    optimizer: Literal["adamw", "muon"], recipe: config.Run, tmp_path: Path
) -> None:
    recipe.train.keep, recipe.train.optimizer = 100, optimizer
    straight = train(recipe, tmp_path / "straight", quiet=True)
    names = sorted(p.name for p in (straight / "checkpoints").iterdir() if p.is_dir())
    assert len(names) == 6
    out = train(recipe, tmp_path / "again", quiet=True)
    for name in reversed(names):
        (out / "checkpoints" / "LATEST").write_text(name + "\n")
        train(None, out, resume=True, quiet=True)
        assert_same_run(straight, out)
