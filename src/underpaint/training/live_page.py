"""A page about a run that goes on: as it begins, then with new figures, in SHARE of the time.

It is written between steps, after the checkpoint if one is due, replaces the page before in one
step and draws no random number: a run with it is bit for bit the run without, also when it is
killed while writing.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from underpaint.errors import UserError
from underpaint.training.log import Log

SHARE = 0.01  # of the time of a run; the page of its beginning comes on top

# Writes the page of the run in a folder; whether that goes on.
WritePage: TypeAlias = Callable[[Path, bool], object]


class LivePage:
    """The page of one run, written by its first process."""

    def __init__(self, write: WritePage | None, folder: Path, log: Log) -> None:
        """`write` None: there is none."""
        self.write = write if log.first else None
        self.folder, self.log = folder, log
        self._next = 0.0  # when it may be written again

    def renew(self) -> None:
        """Write it, unless that was done too recently to be cheap."""
        if time.monotonic() >= self._next:
            self._write(True)

    def end(self) -> None:
        """Write it for a run that stops before its end."""
        self._write(False)

    def _write(self, going: bool) -> None:
        if self.write is None:
            return
        began = time.monotonic()
        try:
            self.write(self.folder, going)
        except Exception as error:  # whatever it is, the run is worth more
            self.write = None
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            self.log.warn(f"no page while the run goes on: {kind}{error}")
        now = time.monotonic()
        self._next = now + (now - began) / SHARE
