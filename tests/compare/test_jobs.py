"""Tasks as jobs of submitit, whose local executor stands for SLURM."""

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.compare import test_study
from tests.compare.test_pool import gone, named, work
from underpaint.cli import main
from underpaint.compare import jobs
from underpaint.errors import Interrupted, RunFailed, UserError

Found = list[tuple[str, tuple[str, int]]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "POLL", 0.05)


def gather(tasks: list[str], workers: int, folder: Path, **asked: Any) -> Found:
    found: Found = []
    done = lambda *one: found.append(one)  # noqa: E731
    jobs.gather(tasks, work, workers, named, done, folder=folder, asked=asked)
    return found


def test_every_task_is_a_job(tmp_path: Path) -> None:
    (tmp_path / "seen").mkdir()
    tasks = [f"meet:{tmp_path / 'seen'}"] * 2 + ["a"]
    found = gather(tasks, 2, tmp_path / "jobs")
    assert sorted(task for task, _ in found) == sorted(tasks)
    assert all(result[0] == task for task, result in found)
    assert len({pid for _, (_, pid) in found} | {os.getpid()}) == 4
    assert gather([], 2, tmp_path / "jobs") == []


def test_errors_keep_their_kind_and_a_dead_job_is_named(tmp_path: Path) -> None:
    for task, kind, said in (
        ("wrong", UserError, "arm wrong: too few images"),
        ("fails", RunFailed, "arm fails: it diverged"),
        ("die", RunFailed, "arm die: job [0-9]+ died; .*err has what it said"),
    ):
        with pytest.raises(kind, match=said):
            gather([task], 1, tmp_path)


def test_ctrl_c_cancels_them(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    seen.mkdir()

    def press() -> None:
        while len(list(seen.iterdir())) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), 2)

    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(Interrupted, match="the same command goes on"):
        gather([f"ends:{seen}"] * 2, 2, tmp_path / "jobs")
    thread.join()
    pids = [int(path.name) for path in seen.iterdir()]
    until = time.monotonic() + 60
    while not all(gone(pid) for pid in pids):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_what_a_job_asks_for(tmp_path: Path) -> None:
    found = jobs.settings(["slurm_partition=gpu", "gpus_per_node=1", "timeout_min=90"])
    assert found == {"slurm_partition": "gpu", "gpus_per_node": 1, "timeout_min": 90}
    for text in ("gpu", "=gpu", "gpus_per_node="):
        with pytest.raises(UserError, match="give KEY=VALUE"):
            jobs.settings([text])
    with pytest.raises(UserError, match=r"--job: .*colour"):
        gather(["a"], 1, tmp_path, colour="red")


def test_without_submitit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"pip install .underpaint\[cluster\]"):
        gather(["a"], 1, tmp_path)


def test_a_study_by_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its runs go to the jobs, with what they ask for."""
    images = tmp_path / "images.npy"
    np.save(images, np.random.default_rng(0).integers(0, 256, (60, 16, 16, 3), dtype=np.uint8))
    path, seen = test_study.write(tmp_path, images, points=[1.0]), list[Any]()

    def gather(tasks: Any, work: Any, **how: Any) -> None:
        seen.append((len(tasks), how["workers"], how["folder"], how["asked"]))
        raise UserError("enough")

    monkeypatch.setattr(jobs, "gather", gather)
    command = ["compare", str(path), "--out", str(tmp_path / "out"), "--launcher", "submitit"]
    assert main([*command, "--job", "gpus_per_node=1"]) == 2
    assert seen == [(4, 64, tmp_path / "out" / "jobs", {"gpus_per_node": 1})]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["study.yaml", "--job", "a=b"], "add --launcher submitit"),
        (["one", "two", "--launcher", "submitit"], "leave it out"),
    ],
)
def test_wrong_use(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *words]) == 2
    assert said in capsys.readouterr().err
