"""The processes of one run, as `torchrun` starts them: one a device.

Without `torchrun` there is one process and every call here is free. Gloo connects CPUs, NCCL GPUs.
"""

import contextlib
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from underpaint.errors import RunFailed, UserError
from underpaint.hardware import pick_device

BEGUN = "begun"  # in the store of torchrun's agent: processes have been there


@dataclass(frozen=True)
class World:
    """This process among all: `rank` of `size`, and its device."""

    rank: int
    size: int
    device: torch.device
    began: int = 1  # processes that the run began with

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            with lost():
                dist.barrier()

    def add(self, x: Tensor) -> None:
        """Sum a tensor on this process's device over the processes, in place."""
        if self.size > 1:
            with lost():
                dist.all_reduce(x)

    def sums(self, values: list[float]) -> list[float]:
        """Each value summed over the processes."""
        return self._exchanged(values, dist.all_reduce)

    def from_first(self, values: list[float]) -> list[float]:
        """The first process's values, everywhere."""
        return self._exchanged(values, partial(dist.broadcast, src=0))

    def _exchanged(self, values: list[float], exchange: Callable[[Tensor], Any]) -> list[float]:
        if self.size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        with lost():
            exchange(tensor)
        return [float(v) for v in tensor.tolist()]

    def close(self) -> None:
        """Leave the group."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def start(device: str, timeout: float = 30.0) -> World:
    """Join the processes that `torchrun` announced in the environment, or be alone.

    `timeout`: minutes that one process waits for another. Raises UserError for an environment that
    contradicts itself, RunFailed if the others do not come.
    """
    size, rank, local = _number("WORLD_SIZE", 1), _number("RANK", 0), _number("LOCAL_RANK", 0)
    if not 0 <= rank < size:
        raise UserError(
            f"RANK is {rank} in the environment and WORLD_SIZE is {size}: this process would take "
            "itself for one of several and say nothing; type: unset RANK WORLD_SIZE LOCAL_RANK"
        )
    if size == 1:
        return World(0, 1, pick_device(device))
    chosen = pick_device(device)
    if chosen.type == "cuda":
        if local >= torch.cuda.device_count():
            raise UserError(
                f"process {local} has no GPU of its own: this machine has "
                f"{torch.cuda.device_count()}; lower --nproc-per-node"
            )
        chosen = torch.device("cuda", local)
        torch.cuda.set_device(chosen)
    backend, waits = "nccl" if chosen.type == "cuda" else "gloo", timedelta(minutes=timeout)
    with lost():
        store, _, _ = next(rendezvous("env://", timeout=waits))
        if _agent_has_store():
            store = PrefixStore(_agreed(store, rank, size, timeout), store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=waits)
    return World(rank, size, chosen)


def _agreed(store: Store, rank: int, size: int, timeout: float) -> str:
    """A name that these processes alone have agreed on, and none that were lost before them.

    The store of torchrun's agent outlives a restart, and with it the addresses of processes that
    are gone, to which others would connect (torch 2.13; github.com/pytorch/pytorch/issues/135712;
    machines count restarts each by itself). So each process says a name, and the first answers
    that with one for all until it has heard from each.
    """
    mine = uuid.uuid4().hex
    store.set(BEGUN, "")
    if rank:
        store.set(f"here/{rank}", mine)
        name = store.get(f"agreed/{mine}").decode()
        store.set(f"{name}/{rank}", "")
        return name
    missing, last = set(range(1, size)), time.monotonic() + 60 * timeout
    while missing:
        for other in sorted(missing):
            if store.check([f"here/{other}"]):  # of this attempt, or of one before
                store.set(f"agreed/{store.get(f'here/{other}').decode()}", mine)
        missing = {other for other in missing if not store.check([f"{mine}/{other}"])}
        if time.monotonic() > last:
            raise RuntimeError(f"timed out, waiting for process {min(missing)}")
        time.sleep(0.05)
    return mine


def _agent_has_store() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def restarted() -> bool:
    """Whether `torchrun --max-restarts` has started all processes again after one was lost.

    Where that was on another machine, this one's count does not say so, but the agent's store does.
    In the first attempt that may hold what others have just written.
    """
    if _number("TORCHELASTIC_RESTART_COUNT", 0) > 0:
        return True
    if not _agent_has_store():
        return False
    with lost():
        store, _, _ = next(rendezvous("env://"))
        return bool(store.check([BEGUN]))


def launch() -> str | None:
    """What names this call of `torchrun`, also after its restarts; None without one."""
    if "TORCHELASTIC_RESTART_COUNT" not in os.environ:
        return None
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return f"{os.getppid()}" if name == "none" else name  # by default the agent's process


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise UserError(f"{name} is '{text}' in the environment, and no number; type: unset {name}")
    return int(text)


@contextlib.contextmanager
def lost() -> Iterator[None]:
    """Turn what is raised where another process is gone, or too late, into one line."""
    try:
        yield
    except RuntimeError as error:
        if not re.search(
            r"gloo|nccl|\bconnection|\bpeer\b|\btimed? ?out|\bstore\b", str(error), re.I
        ):
            raise
        reason = str(error).strip().partition("\n")[0][:200]
        left = _number("TORCHELASTIC_MAX_RESTARTS", 0) - _number("TORCHELASTIC_RESTART_COUNT", 0)
        then = (
            "torchrun starts all again, and the run goes on from its last checkpoint"
            if left > 0
            else "the last checkpoint is whole: look at what that process said, then start all "
            "again with --resume"
        )
        raise RunFailed(
            f"another process of this run is gone or hangs ({reason}); {then}"
        ) from None
