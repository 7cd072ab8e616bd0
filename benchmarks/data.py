"""How fast batches of 64×64 images come out of the cache, on one thread.

    python benchmarks/data.py [--images 20000] [--batch 64] [--seconds 3]

Draws noise, prepares and seals it as a user would, then reads shuffled batches: plain, augmented,
and sealed. Writes benchmarks/results/data.json. Goals: 20,000 images/s, and sealed data no slower
than the plain ones.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

from underpaint.sealed import format as sealed

os.environ["OMP_NUM_THREADS"] = "1"
GOAL = 20_000  # images a second


def measure(batch: int, n: int, seconds: float) -> dict[str, float]:
    """Images a second: of the order alone, read, and read and augmented."""
    import numpy as np

    from underpaint import config, data
    from underpaint.sealed.writer import seal

    with tempfile.TemporaryDirectory() as folder:
        os.environ["UNDERPAINT_CACHE"] = folder
        draws = np.random.default_rng(0)
        pixels = draws.integers(0, 64, (n, 64, 64, 3), dtype=np.uint8)
        pixels += draws.integers(0, 192, (n, 1, 1, 3), dtype=np.uint8)  # no near-duplicates
        np.save(Path(folder, "noise.npy"), pixels)
        dataset = data.prepare(config.Data(source=str(Path(folder, "noise.npy"))), workers=1)
        started = time.perf_counter()
        seal(config.Data(source=str(Path(folder, "noise.npy"))), Path(folder, "s.up"), workers=1)
        sealing = n / (time.perf_counter() - started)
        closed = sealed.read(Path(folder, "s.up"))
        rng = np.random.default_rng(1)
        ways = {
            "read": lambda ids: dataset.batch(ids),
            "read, flipped": lambda ids: data.augment(dataset.batch(ids), rng, True, 0),
            "read, flipped and shifted": lambda ids: data.augment(dataset.batch(ids), rng, True, 4),
            "read, sealed": lambda ids: closed.batch(ids),
        }
        speed = {"prepare": len(dataset.images) / dataset.report["decode_seconds"]}
        speed["seal"] = sealing
        for way, read in ways.items():
            images = closed if way == "read, sealed" else dataset
            order = data.Order(images.train_ids, seed=0)
            position, started = 0, time.perf_counter()
            while (spent := time.perf_counter() - started) < seconds:
                read(order.at(position, batch))
                position += batch
            speed[way] = position / spent
    return {way: round(value) for way, value in speed.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20_000, help="images in the cache")
    parser.add_argument("--batch", type=int, default=64, help="images a batch")
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each measurement")
    given = parser.parse_args()
    speed = measure(given.batch, given.images, given.seconds)
    for way, value in speed.items():
        print(f"{way:28} {value:>9,} images/s")
    met = min(value for way, value in speed.items() if way.startswith("read")) >= GOAL
    print(f"goal {GOAL:,} images/s: {'met' if met else 'missed'}")
    quick = speed["read, sealed"] >= speed["read"]
    print(f"goal sealed no slower than plain: {'met' if quick else 'missed'}")
    result = {
        "size": 64,
        "channels": 3,
        "images": given.images,
        "batch": given.batch,
        "threads": 1,
        "images_per_s": speed,
        "goal": GOAL,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    file = Path(__file__).parent / "results" / "data.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if met and quick else 1


if __name__ == "__main__":
    sys.exit(main())
