"""Ctrl-C and SIGTERM: the step is finished, a checkpoint written, and only then the run ends."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def caught(first: bool = True) -> Iterator[list[int]]:
    """The signals so far, which end the run after the current step; a second one does at once.

    `first`: of several processes, which all get them, this is the one that says so.
    """
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt
        if first:
            os.write(2, b"\nfinishing this step, then a checkpoint (again: stop at once)\n")

    main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if main else ()
    before = {number: signal.signal(number, receive) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
