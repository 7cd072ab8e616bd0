"""Tasks in processes of their own, several beside each other, and what happens when one dies.

Each process takes a task, sends back what it gave, and takes the next. A task that raises an error
of a user or of a run ends all of them with that error; one whose process dies is named. Ctrl-C
reaches this process alone, which then ends the others: a run in them writes a checkpoint first.
"""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar

from underpaint.errors import Interrupted, RunFailed, UserError

Task = TypeVar("Task")
Result = TypeVar("Result")


def gather(
    tasks: Sequence[Task],
    work: Callable[[Task], Result],
    workers: int,
    name: Callable[[Task], str],
    done: Callable[[Task, Result], None],
) -> None:
    """Call `done` with each task and what `work` gave for it; begun in the order of `tasks`.

    With one worker they are done here. `name` says in a message which task failed. Raises what
    `work` raises of UserError and RunFailed, RunFailed where a process died, and Interrupted after
    Ctrl-C or SIGTERM.
    """
    if workers < 2:
        for task in tasks:
            with named(name(task)):
                result = work(task)
            done(task, result)
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    left, team = list(tasks[workers:]), _Team(work)
    busy: dict[Connection, Task] = {}
    try:
        for task in tasks[:workers]:
            busy[team.hire(task)] = task
        while busy:
            for pipe in wait(list(busy)):
                assert isinstance(pipe, Connection)
                task = busy.pop(pipe)
                with named(name(task)):
                    result = team.result(pipe)
                if left:
                    busy[pipe] = left[0]
                    pipe.send(left.pop(0))
                done(task, result)
    except KeyboardInterrupt:
        raise Interrupted("the study was stopped; the same command goes on with it") from None
    finally:
        team.dismiss()
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def named(name: str) -> Iterator[None]:
    """Say which task an error is of."""
    try:
        yield
    except (UserError, RunFailed) as error:
        raise type(error)(f"{name}: {error}") from None


class _Team:
    """The processes, each by the pipe to it."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self.work = work
        self.processes: dict[Connection, SpawnProcess] = {}

    def hire(self, task: Any) -> Connection:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(there, self.work))
        process.start()
        there.close()  # so that its death closes the pipe
        self.processes[here] = process
        here.send(task)
        return here

    def result(self, pipe: Connection) -> Any:
        """What a process sent. Raises what its task raised, or RunFailed if it is dead."""
        try:
            result = pipe.recv()
        except (EOFError, ConnectionResetError):
            process = self.processes[pipe]
            process.join()
            raise RunFailed(f"its process died ({_cause(process.exitcode or 0)})") from None
        if isinstance(result, Exception):
            raise result
        return result

    def dismiss(self) -> None:
        """End all: what trains writes a checkpoint, what waits ends at once."""
        for process in self.processes.values():
            process.terminate()
        for pipe in self.processes:  # one whose task ended with the signal asks for another
            pipe.close()
        for process in self.processes.values():
            process.join()


def _serve(pipe: Connection, work: Callable[[Any], Any]) -> None:
    """Do one task after the other, until the pipe is closed."""
    os.setsid()  # Ctrl-C on the terminal is for the first process alone
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        with contextlib.suppress(BrokenPipeError):  # dismissed: nobody listens, and recv ends it
            pipe.send(refused(work, task))


def refused(work: Callable[[Task], Result], task: Task) -> Result | Exception:
    """What `work` gives, or the error of a user or of a run, to be raised where it is said."""
    try:
        return work(task)
    except (UserError, RunFailed, Interrupted) as error:
        return error


def _cause(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"{name}, as when memory is short" if -code == signal.SIGKILL else name
