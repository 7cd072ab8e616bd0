"""What one part of a command has prepared is given to the others: stages, report.

Imports nothing, so that a command line can begin with it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_kept: ContextVar[dict[str, Any] | None] = ContextVar("kept", default=None)


@contextmanager
def handing_on() -> Iterator[None]:
    """Within it each source of images is prepared once, as it was at the beginning."""
    token = None if _kept.get() is not None else _kept.set({})
    try:
        yield
    finally:
        if token is not None:
            _kept.reset(token)


def kept() -> dict[str, Any] | None:
    """What was prepared so far, by its settings; None outside of `handing_on`."""
    return _kept.get()
