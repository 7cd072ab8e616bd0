"""Tasks in processes of their own: beside each other, named where they fail, ended by Ctrl-C."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from underpaint.compare import pool
from underpaint.errors import Interrupted, RunFailed, UserError


def work(task: str) -> tuple[str, int]:
    """What a task's name asks for; `meet:FOLDER` waits until two processes are there."""
    kind, _, place = task.partition(":")
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "wrong":
        raise UserError("too few images")
    if kind == "fails":
        raise RunFailed("it diverged")
    if kind == "stay":  # as a run: it ends after a checkpoint
        signal.signal(signal.SIGTERM, interrupted)
    asked: list[int] = []
    if kind == "ends":  # as a run that was at its last step
        signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    if kind in ("meet", "stay", "ends"):
        (Path(place) / str(os.getpid())).touch()
    while kind == "ends" and not asked:
        time.sleep(0.01)
    if kind in ("meet", "stay"):
        while kind == "stay" or len(list(Path(place).iterdir())) < 2:
            time.sleep(0.01)
    return task, os.getpid()


def interrupted(*_: object) -> None:
    raise Interrupted


def named(task: str) -> str:
    return f"arm {task}"


def gather(tasks: list[str], count: int) -> list[tuple[str, tuple[str, int]]]:
    found: list[tuple[str, tuple[str, int]]] = []
    pool.gather(tasks, work, count, named, lambda *done: found.append(done))
    return found


def gone(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return False
    return True


@pytest.fixture
def later(tmp_path: Path) -> Iterator[None]:
    """Ctrl-C, as soon as two processes are there."""

    def press() -> None:
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    yield
    thread.join()


def test_two_work_beside_each_other_and_take_all(tmp_path: Path) -> None:
    tasks = [f"meet:{tmp_path}", f"meet:{tmp_path}", "a", "b", "c"]
    done = gather(tasks, 2)
    assert sorted(task for task, _ in done) == sorted(tasks)
    assert all(result[0] == task for task, result in done)
    pids = {result[1] for _, result in done}
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert all(gone(pid) for pid in pids)


def test_one_worker_needs_no_process() -> None:
    tasks = ["b", "a"]
    assert gather(tasks, 1) == [(task, (task, os.getpid())) for task in tasks]
    with pytest.raises(UserError, match="arm wrong: too few images"):
        gather(["wrong"], 1)


def test_a_process_that_dies_is_named_and_the_others_end(tmp_path: Path) -> None:
    with pytest.raises(RunFailed) as error:
        gather([f"stay:{tmp_path}", "die"], 2)
    expected = "arm die: its process died (SIGKILL, as when memory is short)"
    assert str(error.value) == expected
    assert all(gone(int(path.name)) for path in tmp_path.iterdir())


def test_errors_keep_their_kind_and_say_of_which_task() -> None:
    with pytest.raises(UserError, match="arm wrong: too few images"):
        gather(["wrong", "a"], 2)
    with pytest.raises(RunFailed, match="arm fails: it diverged"):
        gather(["fails", "a"], 2)


@pytest.mark.usefixtures("later")
def test_ctrl_c_ends_all(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="the same command goes on"):
        gather([f"stay:{tmp_path}"] * 3, 2)
    pids = [int(path.name) for path in tmp_path.iterdir()]
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)


@pytest.mark.usefixtures("later")
def test_ctrl_c_at_the_end_of_a_task_ends_all(tmp_path: Path) -> None:
    """The signal is spent on the task; its process must not wait for another for ever."""

    def kill() -> None:
        for path in tmp_path.iterdir():
            os.kill(int(path.name), signal.SIGKILL)
        late.append(True)

    late: list[bool] = []
    timer = threading.Timer(60, kill)
    timer.start()
    try:
        with pytest.raises(Interrupted):
            gather([f"ends:{tmp_path}"] * 3, 2)
    finally:
        timer.cancel()
    assert not late
    assert all(gone(int(path.name)) for path in tmp_path.iterdir())
