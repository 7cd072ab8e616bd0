"""What the steps of a run add up, kept on the device until somebody reads it.

A host that reads a number of a GPU waits until all that was asked of it before is done, and the GPU
then waits for the host. So losses and norms are summed there, one step after another, whenever they
are read: what is read does not depend on when.
"""

import math

import torch
from torch import Tensor

from underpaint.training.checkpointing import Progress
from underpaint.training.optim import NORMS

SUMS = ("loss", "x0_mse", "grad_norm", "steps")  # in `Progress.sums`, of finite steps


class Tally:
    """The sums, skipped steps and gradient norms of `Progress`, as 0- and 1-d float64 tensors."""

    def __init__(self, progress: Progress, device: torch.device) -> None:
        row, norms = progress.skipped_in_row, progress.norms[-NORMS:]
        counts = [*(progress.sums.get(name, 0.0) for name in SUMS), progress.skipped, row, row]
        early = [math.inf] * (NORMS - len(norms))  # not yet there
        values = torch.tensor([*counts, *early, *norms], dtype=torch.float64)
        values = values.to(device, non_blocking=True)
        self.sums, self.skipped, self.row, self.longest, self.norms = values.split(
            (len(SUMS), 1, 1, 1, NORMS)
        )
        self.one = torch.ones_like(self.row)

    def add(self, errors: Tensor, norm: Tensor, finite: Tensor, keep: bool) -> None:
        """A step: `errors` [2] float64, the means of loss and x0's error; its gradient's `norm`.

        `finite`, a bool: whether it moved the weights. `keep`: among the norms, too.
        """
        norm = norm.to(self.sums).view(1)
        self.sums = self.sums + torch.where(finite, torch.cat([errors, norm, self.one]), 0.0)
        skipped = torch.where(finite, 0.0, self.one)
        self.skipped = self.skipped + skipped
        self.row = (self.row + 1) * skipped
        self.longest = torch.maximum(self.longest, self.row)
        if keep:
            self.norms = torch.where(finite, torch.cat([self.norms[1:], norm]), self.norms)

    def read(self, progress: Progress) -> int:
        """Write all of it into `progress`; returns the longest row of skipped steps."""
        parts = [self.sums, self.skipped, self.row, self.longest, self.norms]
        values = torch.cat(parts).tolist()
        sums, (skipped, row, longest) = values[: len(SUMS)], values[len(SUMS) : len(SUMS) + 3]
        if sums[-1]:
            progress.sums.update(zip(SUMS, sums, strict=True))
        progress.skipped, progress.skipped_in_row = int(skipped), int(row)
        progress.norms = [norm for norm in values[len(SUMS) + 3 :] if norm != math.inf]
        return int(longest)
