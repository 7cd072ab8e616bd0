"""How long an audit of a quick-start run takes, phase by phase.

    python benchmarks/audit.py RUN [--threads 2] [--page FOLDER] [--no-control]

Make the run with `underpaint quickstart --out RUN`. Seconds on the clock and on all cores are told
apart, and so is how busy the machine was. Writes benchmarks/results/audit.json. Goal: five minutes
on two cores; the positive control, shadow models and features apart.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path

GOAL = 300.0  # seconds
APART = ("positive control", "features", "shadow models", "shadow attacks")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--features", help="also in the features of this network")
    parser.add_argument("--no-control", action="store_true")
    parser.add_argument("--page", type=Path, help="where the audit's page goes")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "audit.json"
    )
    given = parser.parse_args()
    import torch

    from underpaint.privacy.audit import audit
    from underpaint.report.audit import write

    torch.set_num_threads(given.threads)
    load = os.getloadavg()[0]
    found = audit(given.run, extractor=given.features, control=not given.no_control)
    if given.page:
        write(found, given.page)
    phases = found.result["phases"]
    own = [spent for name, spent in phases.items() if name not in APART]
    seconds, cpu = (sum(spent[key] for spent in own) for key in ("seconds", "cpu"))
    result = {
        "phases": {
            name: {key: round(value, 2) for key, value in spent.items()}
            for name, spent in phases.items()
        },
        "apart": list(APART),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "threads": given.threads,
        "load_before": round(load, 2),
        "goal_seconds": GOAL,
        "met": seconds <= GOAL,
        "members": found.result["members"],
        "non_members": found.result["non_members"],
        "patches": found.result["patches"],
        "verdict": found.result["verdict"],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    given.out.parent.mkdir(exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    for name, spent in phases.items():
        apart = " (apart)" if name in APART else ""
        print(f"{name:18}{spent['seconds']:8.1f} s {spent['cpu']:8.1f} s of CPU{apart}")
    print(f"{seconds:.1f} s ({cpu:.1f} s of CPU, load {load:.1f} before); goal {GOAL:.0f} s")
    return 0 if seconds <= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
