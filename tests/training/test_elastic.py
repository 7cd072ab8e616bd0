"""Runs of several processes that are interrupted, lose one of them, or are resumed by fewer."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.data.shards import write_shards
from tests.training.conftest import draw_images, small_recipe
from tests.training.runs import (
    assert_near,
    assert_same_run,
    children,
    environment,
    join,
    launched,
    world,
)
from underpaint import config
from underpaint.model_folder import find
from underpaint.training import train


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe as a file: sharded weights, and images that a worker of each process decodes."""
    folder = tmp_path_factory.mktemp("elastic")
    with np.load(draw_images(folder / "images.npz")) as drawn:
        write_shards(folder / "set", drawn["images"], 7)
    run = small_recipe(folder / "set")
    run.stages = {"masked": dataclasses.replace(run.stages["masked"], images=240)}
    run.train = dataclasses.replace(run.train, parallel="fsdp", keep=100, workers=1)
    run.train.checkpoint_every, run.train.check_every, run.train.sample_every = 40, -1, -1
    path = folder / "recipe.yaml"
    path.write_text(config.to_yaml(run))
    return path


def undisturbed(written: Path, size: int) -> Path:
    """The run of that recipe by so many processes which nothing stops, made once."""
    out, log = written.parent / f"straight-{size}", written.parent / "log"
    if not out.exists():
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("UNDERPAINT_CACHE", str(written.parent / "cache"))
            join(launched(out, log, "--config", written, "--quiet", size=size), log)
    return out


def wait_for(checkpoint: Path, log: Path) -> None:
    """Until it is there; a run that has ended without it is waited for in vain."""
    for _ in range(6000):
        if checkpoint.exists():
            return
        time.sleep(0.02)
    raise AssertionError(log.read_text())


def assert_gone(processes: list[Path]) -> None:
    assert processes
    for _ in range(600):
        if not any(process.exists() for process in processes):
            return
        time.sleep(0.1)
    raise AssertionError(f"{processes} go on")


@pytest.mark.long
def test_interrupted_after_a_checkpoint(written: Path, tmp_path: Path) -> None:
    """As of one process; it is said once, and nothing that decodes is left."""
    straight, out, log = undisturbed(written, 2), tmp_path / "run", tmp_path / "log"
    command: tuple[str | Path, ...] = ("--config", written)
    for number, images in ((signal.SIGINT, 40), (signal.SIGTERM, 120)):
        both = launched(out, log, *command)
        wait_for(out / "checkpoints" / f"{images:012d}", log)
        workers = [worker for process in both for worker in children(process.pid)]
        for process in both:
            assert process.pid is not None
            os.kill(process.pid, number)
        join(both, log, 130)
        said = log.read_text()
        assert "Traceback" not in said
        assert said.count("finishing this step") == 1
        last = int((out / "checkpoints" / "LATEST").read_text())
        assert said.count("stopped after") == 1
        assert f"stopped after {last} images" in said
        assert images <= last < 240
        assert_gone(workers)
        log.unlink()
        command = ("--resume",)
    join(launched(out, log, "--resume", "--quiet"), log)
    assert_same_run(straight, out)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "size", "says"),
    [
        ("batch", 3, "stages.masked.batch: 8 cannot be shared by 3 processes"),
        ("snapshots", 2, "leave one of the two out"),
        pytest.param(
            *("dp", 2, "stages.masked.dp: works with one process so far, not 2"),
            marks=pytest.mark.long,
        ),
    ],
)
def test_what_processes_cannot_share_is_one_line(
    case: str, size: int, says: str, written: Path, tmp_path: Path
) -> None:
    run = config.load(written)
    if case == "snapshots":
        run.train.snapshots = 80
    if case == "dp":
        pytest.importorskip("opacus")
        run.network.dropout = 0.0
        how = {"epsilon": 8, "multiplicity": 1}
        run.stages["masked"].dp = config.from_dict(config.DP, how, "test: ")
    changed, log = tmp_path / "recipe.yaml", tmp_path / "log"
    changed.write_text(config.to_yaml(run))
    out = tmp_path / "run"
    join(launched(out, log, "--config", changed, size=size), log, 2)
    said = [line for line in log.read_text().splitlines() if line.startswith("underpaint: ")]
    assert len(said) == 1
    assert says in said[0]
    assert "Traceback" not in log.read_text()
    assert not out.exists()


@pytest.mark.long
@pytest.mark.parametrize("size", [2, 1])
def test_four_processes_are_resumed_by_fewer(written: Path, tmp_path: Path, size: int) -> None:
    """The same images in the same order, losses and weights within 1e-5."""
    straight, out, log = undisturbed(written, 4), tmp_path / "run", tmp_path / "log"
    assert len([*(find(straight) / "optimizer").iterdir()]) == 4
    shutil.copytree(straight, out)
    (out / "checkpoints" / "LATEST").write_text(f"{80:012d}\n")
    if size == 1:
        train(None, out, resume=True, quiet=True)
    else:
        join(launched(out, log, "--resume", "--quiet", size=size), log)
    assert_near(straight, out)


@pytest.mark.long
@pytest.mark.parametrize("machines", [1, 2])
def test_torchrun_starts_all_again(written: Path, tmp_path: Path, machines: int) -> None:
    """One of two processes is killed: the run goes on by itself, and is the undisturbed one.

    Two "machines" are two torchruns by loopback; the one that lost no process counts no restart.
    """
    straight, out, log = undisturbed(written, 2), tmp_path / "run", tmp_path / "log"
    place = ["--standalone"]
    if machines == 2:
        port = world(1)[0]["MASTER_PORT"]
        place = ["--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-id", "job"]
        place += ["--rdzv-endpoint", f"127.0.0.1:{port}"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", *place, "--max-restarts", "1"]
    torchrun += ["--nproc-per-node", str(2 // machines), "-m", "underpaint"]
    command = [*torchrun, "train", "--config", str(written), "--out", str(out)]
    with log.open("ab") as file:
        how = {"env": environment(), "stdout": file, "stderr": file}
        agents = [subprocess.Popen(command, **how) for _ in range(machines)]  # type: ignore[call-overload]
    wait_for(out / "checkpoints" / f"{80:012d}", log)
    trainers = [trainer for agent in agents for trainer in children(agent.pid)]
    workers = [worker for trainer in trainers for worker in children(int(trainer.name))]
    ranks = {rank_of(trainer): trainer for trainer in trainers}
    os.kill(int(ranks[1].name), signal.SIGKILL)
    assert [agent.wait() for agent in agents] == [0] * machines, log.read_text()
    said = log.read_text()
    ours = [line for line in said.splitlines() if line.startswith("underpaint: ")]
    assert len(ours) == 1
    assert "torchrun starts all again, and the run goes on from its last checkpoint" in ours[0]
    assert said.count("going on after") == 1
    assert_gone([*trainers, *workers])
    assert_same_run(straight, out)


def rank_of(process: Path) -> int:
    """The RANK in its environment."""
    variables = (process / "environ").read_text().split("\0")
    return int(next(text for text in variables if text.startswith("RANK=")).partition("=")[2])
