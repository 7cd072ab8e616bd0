"""Is `train --minutes M` over after M minutes, report included?

    python benchmarks/minutes.py [--minutes 1 2 8]

Runs the command on the drawn heads of the quick start, in a process of its own for each M, on a
quiet machine, with a cache that holds the images, and writes wall-clock seconds, those of training
and images seen to benchmarks/results/minutes.json. Goal: within 10 %.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

OUT = Path(__file__).parent / "results" / "minutes.json"
GOAL = 0.1


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 2, 8])
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as place:
        environment = {**os.environ, "UNDERPAINT_CACHE": place + "/cache"}
        for minutes in (given.minutes[0], *given.minutes):  # once to fill the cache
            words = f"train --data avatars:lorelei --size 32 --minutes {minutes:g} --overwrite"
            command = [sys.executable, "-m", "underpaint", *words.split(), "--out", place + "/run"]
            began = time.perf_counter()
            subprocess.run([*command, "--quiet"], check=True, env=environment)
            seconds = time.perf_counter() - began
            lines = (Path(place) / "run" / "metrics.jsonl").read_text().splitlines()
            end = [line for line in map(json.loads, lines) if line.get("event") == "end"][-1]
            rows.append(
                {
                    "minutes": minutes,
                    "seconds": round(seconds, 1),
                    "off": round(seconds / (60 * minutes) - 1, 4),
                    "images": end["images"],
                    "training_seconds": round(end["seconds"], 1),
                }
            )
            print(rows[-1], flush=True)
    rows = rows[1:]
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    within = all(abs(row["off"]) <= GOAL for row in rows)
    found = {"within_10_percent": within, "machine": machine, "runs": rows}
    given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
