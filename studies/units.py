"""A study's work in units: each is done once, by whichever process comes first, and kept.

    WORK/UNIT/result.json       what a finished unit measured
    WORK/UNIT.lock              held by the process that works on it; free when that process ends

The same command may run in several processes at once, one core each, and again after any of them
was stopped: finished units are left alone, and begun ones go on from their checkpoints.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["NotYet", "conduct", "gather"]

PAUSE = 10.0  # seconds

Result = dict[str, Any]


class NotYet(Exception):
    """A unit needs the result of another that is not done."""


def conduct(
    names: Iterable[str],
    work: Path,
    do: Callable[[str], Result],
    write: Callable[[], None],
) -> int:
    """Do what is left of the units `names`; `write` is called after each one. Returns an exit code.

    `do` raises NotYet for a unit whose turn has not come; it is asked for again after the others.
    """
    from underpaint.errors import Interrupted

    left = list(names)
    while left:
        before = len(left)
        for name in list(left):
            path = work / name / "result.json"
            with _claimed(work / f"{name}.lock") as mine:
                if not mine:
                    continue
                if path.is_file():
                    left.remove(name)
                    continue
                try:
                    result = do(name)
                except NotYet:
                    continue
                except Interrupted:
                    print(f"stopped in {name}; the same command goes on with it")
                    return 130
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            left.remove(name)
            told = {key: value for key, value in result.items() if isinstance(value, (int, float))}
            print(name, json.dumps(told), flush=True)
            write()
        if len(left) == before:  # another process works on what they wait for
            time.sleep(PAUSE)
    write()
    return 0


def gather(names: Iterable[str], work: Path) -> dict[str, Result]:
    """The results of the units that are done."""
    paths = {name: work / name / "result.json" for name in names}
    return {
        name: json.loads(path.read_text(encoding="utf-8"))
        for name, path in paths.items()
        if path.is_file()
    }


@contextmanager
def _claimed(lock: Path) -> Iterator[bool]:
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
