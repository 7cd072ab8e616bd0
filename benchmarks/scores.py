"""How long all scores of 10,000 against 10,000 images take, from their 2048 features.

    python benchmarks/scores.py [--images 10000] [--features 2048] [--threads 2] [--interval]

The features are drawn, correlated as real ones are. Writes benchmarks/results/scores.json. Goal:
60 s on two cores, the interval of the Fréchet distance (20 more distances) apart.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from underpaint.evaluation import metrics

GOAL = 60.0  # seconds


def measure(n: int, d: int, threads: int, interval: bool) -> tuple[dict[str, float], float | None]:
    """Seconds of each score, and of the interval."""
    import torch

    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    scale = torch.arange(1, d + 1).float() ** -0.5  # a few directions carry most
    x, y = (torch.randn(n, d, generator=generator) * scale + 0.4 for _ in range(2))

    def timed(call: Callable[[], Any]) -> float:
        began = time.perf_counter()
        call()
        return round(time.perf_counter() - began, 2)

    seconds = {
        "Fréchet distance": timed(lambda: metrics.frechet_distance(x, y)),
        "kernel distance": timed(lambda: metrics.kernel_distance(x, y)),
        "precision, recall, density, coverage": timed(lambda: metrics.manifold(x, y)),
    }
    if not interval:
        return seconds, None
    distance = metrics.frechet_distance(x, y)
    return seconds, timed(lambda: metrics.jackknife(metrics.frechet_distance, x, y, distance))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000, help="images a side")
    parser.add_argument("--features", type=int, default=2048, help="features of an image")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--interval", action="store_true", help="time the jackknife, too")
    given = parser.parse_args()
    load = os.getloadavg()[0]
    seconds, jackknife = measure(given.images, given.features, given.threads, given.interval)
    for name, value in seconds.items():
        print(f"{name:38} {value:7.2f} s")
    total = round(sum(seconds.values()), 2)
    print(f"{'together':38} {total:7.2f} s; goal {GOAL:g} s: {'met' if total < GOAL else 'missed'}")
    if jackknife is not None:
        print(f"{'interval of the Fréchet distance':38} {jackknife:7.2f} s")
    result = {
        "images": given.images,
        "features": given.features,
        "threads": given.threads,
        "seconds": seconds,
        "total_s": total,
        "goal_s": GOAL,
        "interval_s": jackknife,
        "load_before": round(load, 2),  # other work on the machine makes these times longer
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    file = Path(__file__).parent / "results" / "scores.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return 0 if total < GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
