"""A listener of `progress` that shows it: lines that move on a terminal, else lines in between."""

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from underpaint.errors import plain
from underpaint.progress import At, clock

FIRST, LAST = 10.0, 60.0  # seconds between lines where there is no terminal
OFTEN = 4  # times a second that a terminal is drawn


def stderr(quiet: bool = False) -> Console:
    """A console on stderr."""
    # what is printed holds names that people gave: a text is never markup
    return Console(stderr=True, quiet=quiet, highlight=False, markup=False, emoji=False)


def print_line(console: Console, text: str, style: str | None = None) -> None:
    """A line, which a terminal breaks between words; not one with a command, which is copied."""
    whole = not console.is_terminal or "underpaint " in text
    console.print(text, style=style, soft_wrap=whole)


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
        self.console = stderr()
        widgets = importlib.util.find_spec("ipywidgets")  # without them rich shows nothing there
        notebook = self.console.is_jupyter and widgets is not None
        self.moves = self.console.is_terminal or notebook
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
                    _Text(lambda task: f"{task.count()}  {task.note}".strip()),
                    _Text(Doing.time),
                    console=self.console,
                    transient=True,
                    refresh_per_second=OFTEN,
                )
                self._bars.start()
            new.line = self._bars.add_task(plain(what), total=total or None, shown=new)
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


class _Text(ProgressColumn):
    """What a thing that goes on says of itself."""

    def __init__(self, say: Callable[[Doing], str]) -> None:
        super().__init__()
        self.say = say

    def render(self, task: Task) -> Text:
        return Text(plain(self.say(task.fields["shown"])), no_wrap=True)
