"""The device that a network runs on, the precision it multiplies in there, and its memory."""

import ctypes
import functools
import math
import resource
import sys
import time
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from underpaint.errors import UserError

Precision = Literal["auto", "fp32", "bf16"]

CLEARLY = 1.1  # times as fast: what bf16 must gain to be worth its rounding
TOKENS, WIDEST, ROUNDS = 512, 384, 6  # of the measurement

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # names of mallopt's parameters in glibc's malloc.h
KEPT, LARGEST = 2**31 - 1, (2**30, 2**25)  # bytes; older versions take no more than the second


def pick_device(name: str = "auto") -> torch.device:
    """`auto`: cuda, else mps, else cpu. Raises UserError for a device that is not there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        raise UserError(f"device '{name}' is not available here; try auto or cpu") from None
    return device


def check_compiler(device: torch.device) -> None:
    """Compile a line for `device`, as torch.compile will the network.

    Raises UserError where that fails: torch asks for a C++ compiler on a CPU, for Triton on a GPU.
    """

    def line(x: torch.Tensor) -> torch.Tensor:
        return 2 * x + 1

    try:
        torch.compile(line, dynamic=False)(torch.zeros(2, device=device))
    except Exception as error:  # compiler, torch and Triton have classes of their own
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"train.compile: torch cannot compile for {device.type} here ({reason}); "
            "set it to false"
        ) from error


def use_bf16(precision: Precision, device: torch.device, width: int = 256) -> bool:
    """bf16 autocast: as asked, or (`auto`) where it is clearly faster than float32.

    On a CPU that is measured once in a process for each `width` of a network.
    """
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bf16_speedup(width) >= CLEARLY


@functools.cache
def bf16_speedup(width: int) -> float:
    """CPU seconds of an MLP's training in float32 over those under bf16 autocast.

    Forward and backward, norm and residual included, of TOKENS tokens of WIDEST features, or of
    more that are narrower. CPUs differ more than their flags tell: with AMX or AVX-512's bf16
    products training is faster, where they are emulated many times slower. Of one thread: where
    others want the cores, several wait for each other, in either type. Takes half a second.
    """
    width = min(width, WIDEST)
    tokens = TOKENS * WIDEST // width
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        x = torch.randn(8, tokens // 8, width)

    def seconds(bf16: bool) -> float:
        began = time.process_time()  # what other processes take does not count
        with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            (x + mlp(x)).square().mean().backward()
        return time.process_time() - began

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for bf16 in (False, True):
            seconds(bf16)  # allocates and chooses kernels
        least = {False: math.inf, True: math.inf}
        for done in range(ROUNDS):  # in turns, so that a slow moment meets both
            for bf16 in least:
                least[bf16] = min(least[bf16], seconds(bf16))
            if done > 1 and least[True] > 4 * least[False]:  # emulated
                break
    finally:
        torch.set_num_threads(threads)
    return least[False] / least[True]


def keep_freed_memory() -> bool:
    """Have malloc keep what is freed for the next step, up to 2 GiB; False where it cannot be told.

    glibc gives large blocks back to the system, and takes them page by page and zeroed when the
    same tensors are made again: an eighth of the time of a step on whole images on a CPU, nothing
    of a small masked one (benchmarks/step.py --give-back). It holds for the whole process; GPUs'
    allocators keep such memory by themselves.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:  # another C library
        return False
    held = any(mallopt(MMAP_THRESHOLD, size) for size in LARGEST)
    return bool(held and mallopt(TRIM_THRESHOLD, KEPT))


def held_memory() -> float:
    """Bytes that this process has had in memory at most."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(most) if sys.platform == "darwin" else 1024.0 * most


def free_memory(device: torch.device) -> float:
    """Bytes that are left on `device`; infinite where the system does not say."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return float(torch.mps.recommended_max_memory())
    found = [math.inf]
    for name in ("/proc/meminfo", "/sys/fs/cgroup/memory.max"):  # the second: of a container
        text = Path(name).read_text(encoding="ascii") if Path(name).is_file() else ""
        found += [1024 * float(x.split()[1]) for x in text.splitlines() if "MemAvailable" in x]
        found += [float(text)] if text.strip().isdigit() else []
    return min(found)
