"""How long the exact search for the nearest training images takes: 10,000 samples among 10,000.

    python benchmarks/nearest.py [--samples 10000] [--images 10000] [--size 32] [--threads 2]

Searches noise for the 51 nearest of each, which is what an audit needs for its ratios. Seconds on
the clock and on all cores are told apart, and so is how busy the machine was. Writes
benchmarks/results/nearest.json. Goal: two minutes at 32×32 pixels on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

GOAL = 120.0  # seconds
NEIGHBOURS = 51


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=32, help="side in pixels; three channels")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "nearest.json"
    )
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = str(given.threads)
    import numpy as np

    from underpaint.evaluation.nearest import nearest

    rng = np.random.default_rng(0)
    shape = (given.size, given.size, 3)
    samples, images = (
        rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        for count in (given.samples, given.images)
    )
    load = os.getloadavg()[0]
    wall, cpu = time.perf_counter(), time.process_time()
    distances, ids = nearest(samples, images, np.arange(given.images), NEIGHBOURS)
    seconds, spent = time.perf_counter() - wall, time.process_time() - cpu
    result = {
        "samples": given.samples,
        "images": given.images,
        "size": given.size,
        "channels": 3,
        "neighbours": NEIGHBOURS,
        "threads": given.threads,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(spent, 2),
        "load_before": round(load, 2),
        "goal_seconds": GOAL,
        "met": seconds <= GOAL,
        "check": [float(distances[:, 0].sum()), int(ids[:, 0].sum())],
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    given.out.parent.mkdir(exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{seconds:.1f} s ({spent:.1f} s of CPU, load {load:.1f} before); goal {GOAL:.0f} s")
    return 0 if seconds <= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
