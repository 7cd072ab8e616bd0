"""What is being done, how far it is and when it ends: on stderr, for whoever waits.

    with doing("decoding", 1200) as at:  # anywhere below: of 1,200
        at(300)

    with shown():  # around it all: a command, `up.train`
        ...

On a terminal and in a notebook each thing that goes on has a line that moves. Elsewhere a line is
printed from time to time: after ten seconds at first, each minute in the end.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from underpaint.errors import plain

FIRST, LAST = 10.0, 60.0  # seconds between lines where there is no terminal
OFTEN = 4  # times a second that a terminal is drawn


class At(Protocol):
    """How far it is."""

    def __call__(
        self, done: float, total: float = 0, *, note: str = "", left: float | None = None
    ) -> None:
        """`done` of `total` (0: as said before), `left` seconds (None: by what it took so far)."""


class Listener(Protocol):
    """Who hears of what is being done."""

    def begin(self, what: str, total: float) -> At:
        """It begins; `total` 0: nobody knows how long it is."""

    def end(self, at: At) -> None:
        """It has ended, or failed."""


_listener: Listener | None = None


@contextlib.contextmanager
def doing(what: str, total: float = 0) -> Iterator[At]:
    """Say that something is done until the block ends, and how far it is."""
    if (listener := _listener) is None:
        yield _unheard
        return
    at = listener.begin(what, total)
    try:
        yield at
    finally:
        listener.end(at)


@contextlib.contextmanager
def following(listener: Listener | None) -> Iterator[None]:
    """Have `listener` hear of all that this block does; None: nobody."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before


@contextlib.contextmanager
def shown(quiet: bool = False) -> Iterator[None]:
    """Show on stderr what this block does, unless that is shown already; `quiet`: nothing.

    Of several processes (torchrun) the first shows.
    """
    if quiet or os.environ.get("RANK", "0") != "0":
        with following(None):
            yield
    elif isinstance(_listener, Screen):
        yield
    else:
        screen = Screen()
        with following(screen), contextlib.closing(screen):
            yield


def console(quiet: bool = False) -> Console:
    """Where lines are printed that what moves must not overwrite: stderr."""
    if isinstance(_listener, Screen) and not quiet:
        return _listener.console
    return _console(quiet)


def clock(seconds: float) -> str:
    """`1:05:09`, `5:09`."""
    hours, rest = divmod(int(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _console(quiet: bool = False) -> Console:
    # what is printed holds names that people gave: a text is never markup
    return Console(stderr=True, quiet=quiet, highlight=False, markup=False, emoji=False)


def _unheard(done: float, total: float = 0, *, note: str = "", left: float | None = None) -> None:
    pass


@dataclass(eq=False)
class Doing:
    """Something that goes on."""

    what: str
    total: float
    began: float
    moved: Callable[[], None]
    done: float = 0.0
    note: str = ""
    left: float | None = None
    line: Any = None  # of a bar

    def __call__(
        self, done: float, total: float = 0, *, note: str = "", left: float | None = None
    ) -> None:
        self.done, self.total, self.note = done, total or self.total, note
        spent = time.monotonic() - self.began
        if left is None and done > 0 and self.total:
            left = spent * max(0.0, self.total - done) / done
        self.left = None if left is None else time.monotonic() + left  # when it ends
        self.moved()

    def count(self) -> str:
        """`300/1,200`, or nothing."""
        return f"{int(self.done):,}/{int(self.total):,}" if self.total else ""

    def time(self) -> str:
        """`0:45 left`; `0:12`, the time it has taken, where nobody knows."""
        now = time.monotonic()
        if self.left is None:
            return clock(now - self.began)
        return f"{clock(max(0.0, self.left - now))} left"


class Screen:
    """A listener that shows it: lines that move, or lines from time to time."""

    def __init__(self) -> None:
        self.console = _console()
        self.moves = self.console.is_terminal or self.console.is_jupyter
        self.going_on: list[Doing] = []
        self._bars: Progress | None = None
        self._said = time.monotonic()

    def begin(self, what: str, total: float) -> Doing:
        """Begin a line."""
        new = Doing(what, total, time.monotonic(), self._moved)
        if not self.going_on:
            self._said = new.began
        self.going_on.append(new)
        if self.moves:
            if self._bars is None:
                self._bars = Progress(
                    TextColumn("{task.description}", style="bold", markup=False),
                    BarColumn(20),
                    _Told(lambda task: f"{task.count()}  {task.note}".strip()),
                    _Told(Doing.time),
                    console=self.console,
                    transient=True,
                    refresh_per_second=OFTEN,
                )
                self._bars.start()
            new.line = self._bars.add_task(plain(what), total=total or None, told=new)
        return new

    def _moved(self) -> None:
        if self._bars is not None:
            for each in self.going_on:
                self._bars.update(
                    each.line,
                    completed=each.done,
                    total=each.total or None,
                    description=plain(each.what),
                )
            return
        now = time.monotonic()
        outer = next((each for each in self.going_on if each.total), self.going_on[0])
        if now - self._said < min(LAST, max(FIRST, (now - outer.began) / 10)):
            return
        self._said = now
        parts = [outer.count().replace("/", " of "), outer.note, outer.time()]
        text = f"{outer.what}: {', '.join(part for part in parts if part)}"
        self.console.print(plain(text), soft_wrap=True)

    def end(self, at: At) -> None:
        """Its line goes; with the last one nothing is left on the terminal."""
        assert isinstance(at, Doing)
        self.going_on.remove(at)
        if self._bars is not None:
            self._bars.remove_task(at.line)
            if not self.going_on:
                self.close()

    def close(self) -> None:
        """Clear the lines that move."""
        bars, self._bars = self._bars, None
        if bars is not None:
            bars.stop()


class _Told(ProgressColumn):
    """What a thing that goes on says of itself."""

    def __init__(self, say: Callable[[Doing], str]) -> None:
        super().__init__()
        self.say = say

    def render(self, task: Task) -> Text:
        return Text(plain(self.say(task.fields["told"])), no_wrap=True)
