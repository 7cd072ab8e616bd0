"""What the page of a run that goes on costs: CPU seconds of it and of the whole run.

    python benchmarks/live_page.py [--images 4000] [--data avatars:lorelei]

Trains the default recipe on one thread, page and all: about a minute on a core that does nothing
else. Counts the CPU seconds within the calls that write `report.html` before the run has ended.
Writes benchmarks/results/live_page.json. Goal: 2 % of the run's.
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

GOAL = 0.02  # of the CPU seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--data", default="avatars:lorelei")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "live_page.json"
    )
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    from underpaint import api, config, report

    pages: list[tuple[float, int]] = []

    def follow(run_dir: Path, going: bool) -> Path:
        began = time.process_time()
        page = follow_page(run_dir, going)
        pages.append((time.process_time() - began, page.stat().st_size))
        return page

    follow_page, report.follow = report.follow, follow
    run = config.preset("default")
    run.data.source = given.data
    run.train.threads = 1
    run.last.images, run.last.minutes = given.images, 0.0
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        api.train(run, Path(folder) / "run")
        cpu = time.process_time() - began
    in_pages = sum(seconds for seconds, _ in pages)
    result = {
        "images": given.images,
        "data": given.data,
        "pages": len(pages),
        "page_cpu_seconds": [round(seconds, 3) for seconds, _ in pages],
        "page_bytes": max(size for _, size in pages),
        "run_cpu_seconds": round(cpu, 1),
        "share": round(in_pages / cpu, 4),
        "goal_share": GOAL,
        "met": in_pages <= GOAL * cpu,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0 if result["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
