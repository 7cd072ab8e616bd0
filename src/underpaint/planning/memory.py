"""The most memory that training takes at once, in bytes, and what there is of it.

    peak = base + (20 or 22) · parameters + micro · (activations · (1 + 1/depth) + copies · values)

- base: the process with its libraries, before there is a network (on CUDA: none is counted).
- 20 bytes a parameter: weight, gradient, two moments and average, in float32 (as `cost`); 2 more
  under bf16 autocast, which copies the weights.
- activations: what the network keeps for the backward pass of an image (`activation_bytes`); one
  block's worth more are gradients on their way through it.
- values: the numbers of an image. The batch is there as planes, patches, noise, noisy patches,
  output, target and the squares of their difference.

`micro` are the images of one forward pass.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from underpaint.backbones import Backbone
from underpaint.training.cost import parameter_bytes

__all__ = ["available", "largest", "peak", "resident"]

COPIES = 7 * 4  # bytes a number of the images


def peak(
    backbone: Backbone, depth: int, visible: int, micro: int, *, base: float, bytes_per: int = 4
) -> float:
    """Bytes at the worst moment of a step, `visible` patches of each image being computed on."""
    parameters = sum(p.numel() for p in backbone.parameters())
    values = backbone.grid[0] * backbone.grid[1] * backbone.patch_dim
    activations = backbone.activation_bytes(visible, bytes_per=bytes_per) * (1 + 1 / depth)
    weights = parameter_bytes(bytes_per) * parameters
    return base + weights + micro * (activations + COPIES * values)


def resident() -> int:
    """Bytes of this process that are in memory now; where Linux does not say so, its peak."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
    return pages * os.sysconf("SC_PAGE_SIZE")


def available(device: torch.device) -> float:
    """Bytes that a new network may take on `device`, beside what other processes hold."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what earlier steps left to torch is free, too
        return float(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return float(torch.mps.recommended_max_memory())
    limits = [float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))]
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            limits.append(float(line.split()[1]) * 1024 + resident())
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # of a container
        limits += [float(t) for t in _lines(Path("/sys/fs/cgroup") / name) if t.strip().isdigit()]
    return min(limits)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except OSError:
        return []


def largest(fits: Callable[[int], bool], most: int, multiple: int = 8) -> int:
    """The largest batch up to `most` that fits: a multiple of `multiple`, or 4, 2 or 1; 0: none.

    Doubles until `fits(batch)` fails, then halves the interval in which it must have happened.
    """
    if most < multiple or not fits(multiple):
        small = (2**k for k in range(multiple.bit_length() - 1, -1, -1))
        return next((b for b in small if b <= most and b < multiple and fits(b)), 0)
    low = multiple
    while 2 * low <= most and fits(2 * low):
        low *= 2
    if 2 * low > most:
        high = most // multiple * multiple + multiple  # not asked for
    else:
        high = 2 * low  # does not fit
    while high - low > multiple:
        middle = (low + high) // 2 // multiple * multiple
        if fits(middle):
            low = middle
        else:
            high = middle
    return low
