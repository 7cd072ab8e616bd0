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
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, ParamSpec, Protocol, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

P = ParamSpec("P")
T = TypeVar("T")


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
        return
    from underpaint.screen import Screen

    if isinstance(_listener, Screen):
        yield
    else:
        screen = Screen()
        with following(screen), contextlib.closing(screen):
            yield


def note(text: str) -> None:
    """A line for whoever waits, above what moves; nothing where nobody does."""
    from underpaint.screen import Screen, print_line

    if isinstance(_listener, Screen):
        print_line(_listener.console, text)


def counted(call: Callable[P, T], after: Callable[[], None]) -> Callable[P, T]:
    """`call`, after each of whose calls `after` is called."""

    def counting(*args: P.args, **kwargs: P.kwargs) -> T:
        found = call(*args, **kwargs)
        after()
        return found

    return counting


def console(quiet: bool = False) -> "Console":
    """Where lines are printed that what moves must not overwrite: stderr."""
    from underpaint.screen import Screen, stderr

    return _listener.console if isinstance(_listener, Screen) and not quiet else stderr(quiet)


def clock(seconds: float) -> str:
    """`1:05:09`, `5:09`."""
    hours, rest = divmod(int(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _unheard(done: float, total: float = 0, *, note: str = "", left: float | None = None) -> None:
    pass
