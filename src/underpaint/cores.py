"""The CPU cores that this process may use, and how its threads wait for one another there."""

import math
import os
from pathlib import Path

# Rounds that a thread of GNU OpenMP, torch's on Linux, asks for work before it sleeps; by default
# it goes on for milliseconds. Where others want the cores, those who wait so keep the one that they
# wait for from its core: beside three busy processes on two cores a step takes less than half the
# time with this, on a quiet machine a few per cent more (benchmarks/threads.py).
SPINS = 2000
CGROUP = Path("/sys/fs/cgroup")


def available() -> int:
    """Cores, by the process's affinity and its container's quota."""
    affinity = getattr(os, "sched_getaffinity", None)  # not of macOS
    count = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, math.ceil(min(count, _quota())))


def share() -> None:
    """Say to OpenMP, before torch is loaded, what the user has not said to it."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
    if _quota() < math.inf:  # which OpenMP does not know
        os.environ.setdefault("OMP_NUM_THREADS", str(available()))


def _quota() -> float:
    """Cores' worth of time that the container has (`docker run --cpus 2`); infinite: no limit."""
    two, one = CGROUP / "cpu.max", CGROUP / "cpu"  # of the versions of cgroups
    try:
        if two.is_file():
            quota, period = two.read_text(encoding="ascii").split()
        elif (one / "cpu.cfs_quota_us").is_file():
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            quota, period = ((one / name).read_text(encoding="ascii").strip() for name in names)
        else:
            return math.inf
        return math.inf if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no file of ours, and no command fails for it
        return math.inf
