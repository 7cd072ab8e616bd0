"""How long an audit takes, phase by phase: of a run of the default recipe at 64×64 pixels.

    python benchmarks/audit.py RUN [--threads 1] [--page FOLDER] [--no-control] [--thorough]

Make the run with `underpaint train --data avatars:lorelei --size 64 --out RUN`. CPU seconds count,
since others may use the machine; the seconds on the clock and how busy it was stand beside them.
Writes benchmarks/results/audit.json. Goal: 300 CPU seconds, the positive control among them;
shadow models and features apart. Give UNDERPAINT_CACHE an empty folder, or the control of an
earlier audit of these weights is taken.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path

GOAL = 300.0  # CPU seconds
APART = ("features", "shadow models", "shadow attacks")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--features", help="also in the features of this network")
    parser.add_argument("--no-control", action="store_true")
    parser.add_argument("--thorough", action="store_true")
    parser.add_argument("--page", type=Path, help="where the audit's page goes")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "audit.json"
    )
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    import torch

    from underpaint.privacy.audit import audit
    from underpaint.report.audit import write

    torch.set_num_threads(given.threads)
    load = os.getloadavg()[0]
    found = audit(
        given.run, extractor=given.features, control=not given.no_control, thorough=given.thorough
    )
    if given.page:
        write(found, given.page)
    phases = found.result["phases"]
    own = [spent for name, spent in phases.items() if name not in APART]
    seconds, cpu = (sum(spent[key] for spent in own) for key in ("seconds", "cpu"))
    positive = found.result["controls"]["positive"]
    result = {
        "thorough": given.thorough,
        "phases": {
            name: {key: round(value, 2) for key, value in spent.items()}
            for name, spent in phases.items()
        },
        "apart": list(APART),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "threads": given.threads,
        "load_before": round(load, 2),
        "goal_cpu_seconds": GOAL,
        "met": cpu <= GOAL,
        "members": found.result["members"],
        "non_members": found.result["non_members"],
        "patches": found.result["patches"],
        "precision": found.result["precision"],
        "detectable": round(found.result["detectable"], 3),
        "auc": {k: round(v["auc"]["value"], 3) for k, v in found.result["membership"].items()},
        "control": positive and {k: positive[k] for k in ("best", "passed", "steps", "reused")},
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
    print(f"{cpu:.1f} CPU s ({seconds:.1f} s, load {load:.1f} before); goal {GOAL:.0f} CPU s")
    return 0 if cpu <= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
