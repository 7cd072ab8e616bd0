"""Streamed images, decoded ahead by worker processes: a `torch.utils.data.DataLoader`.

What is read follows from the order and a position alone, and what a worker has decoded is what this
process would have; so neither the number of workers nor a kill changes anything.
"""

import atexit
import copy
import dataclasses
import itertools
import multiprocessing.util
import os
import signal
import sys
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from underpaint import cores
from underpaint.data.order import Order
from underpaint.data.streamed import Streamed
from underpaint.errors import RunFailed

MOST = 8  # workers, unless more are asked for
FORK = "fork" if sys.platform == "linux" else None  # so that it ends when this process is killed


class Ahead:
    """Microbatches of one process in the order in which they will be asked for."""

    def __init__(self, images: Streamed, order: Order, workers: int) -> None:
        """`workers`: at least one."""
        self.images, self.order, self.workers = images, copy.copy(order), workers
        self._due: tuple[int, int, int] | None = None
        self._batches: Iterator[Any] = iter(())

    def take(self, position: int, count: int, stride: int) -> NDArray[np.uint8]:
        """The `count` images at `position`, [count, H, W, C]; those `stride` further are next.

        Raises RunFailed for what cannot be read, or if a worker is gone.
        """
        if self._due != (position, count, stride):
            self.close()
            self._batches = self._begin(position, count, stride)
        self._due = (position + stride, count, stride)
        try:
            found = next(self._batches)
        except RuntimeError as error:  # torch's of a worker that was killed
            self.close()
            raise RunFailed(
                f"a process that decodes images is gone ({str(error).partition(chr(10))[0]}); it "
                "may have lacked memory or room in /dev/shm: go on with --resume after setting "
                "fewer train.workers in the run's config.yaml"
            ) from None
        if isinstance(found, RunFailed):
            self.close()
            raise found
        pixels: NDArray[np.uint8] = found.numpy()
        return pixels

    def close(self) -> None:
        """End the workers; what they have read is forgotten."""
        self._due, self._batches = None, iter(())  # torch ends those of an iterator that is gone

    def _begin(self, position: int, count: int, stride: int) -> Iterator[Any]:
        places = itertools.count(position, stride)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of more workers than cores: they wait for requests
            loader = torch.utils.data.DataLoader(
                _Batches(self.images),
                batch_size=None,  # each index is a whole microbatch
                sampler=(self.order.at(place, count) for place in places),
                num_workers=self.workers,
                worker_init_fn=_begin_worker,
                multiprocessing_context=FORK,
                generator=torch.Generator(),  # not torch's global one, from which dropout draws
            )
            batches = iter(loader)
        _begun.add(self)
        atexit.unregister(_close_all)  # torch registers what waits for each worker, and then kills
        atexit.register(_close_all)  # it; what is registered last is called first
        return batches


_begun: weakref.WeakSet[Ahead] = weakref.WeakSet()


def _close_all() -> None:
    for ahead in [*_begun]:
        ahead.close()


class _Batches(torch.utils.data.Dataset[Any]):
    """Maps ids to pixels, or to what kept them from being read: torch would add pages to it."""

    def __init__(self, images: Streamed) -> None:
        self.images = images

    def __getitem__(self, ids: NDArray[np.int64]) -> torch.Tensor | RunFailed:
        try:
            return torch.from_numpy(self.images[ids])
        except RunFailed as error:
            return error


def _begin_worker(_: int) -> None:
    # Ctrl-C, and a cluster's SIGTERM to all processes, are for the one that trains, which goes on
    # to the end of a step; a second SIGTERM is its.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    batches: Any = torch.utils.data.get_worker_info().dataset  # type: ignore[union-attr]
    batches.images = dataclasses.replace(batches.images)  # without the threads of its parent
    # It ends at once. Python would join the threads of pools, of which the one that forked this
    # process counts as one here: that fails, and the exit code would be 1.
    multiprocessing.util.Finalize(None, os._exit, args=(0,), exitpriority=0)


def workers_of(workers: int) -> int:
    """How many workers `train.workers` asks for in this process."""
    if workers >= 0:
        return workers
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(MOST, cores.available() // processes - 1))
