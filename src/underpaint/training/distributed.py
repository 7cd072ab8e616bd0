"""The processes of one run, as `torchrun` starts them: one a device.

Without `torchrun` there is one process and every call here is free. Gloo connects CPUs, NCCL GPUs.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from underpaint.errors import UserError
from underpaint.hardware import pick_device


@dataclass(frozen=True)
class World:
    """This process among all: `rank` of `size`, and its device."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()

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
        exchange(tensor)
        return [float(v) for v in tensor.tolist()]

    def close(self) -> None:
        """Leave the group."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def start(device: str) -> World:
    """Join the processes that `torchrun` announced in the environment, or be alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World(0, 1, pick_device(device))
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    chosen = pick_device(device)
    if chosen.type == "cuda":
        if local >= torch.cuda.device_count():
            raise UserError(
                f"process {local} has no GPU of its own: this machine has "
                f"{torch.cuda.device_count()}; lower --nproc-per-node"
            )
        chosen = torch.device("cuda", local)
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", rank=rank, world_size=size)
    return World(rank, size, chosen)
