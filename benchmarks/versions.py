"""A training step of this version beside that of another one: CPU seconds, in turns.

    git worktree add /tmp/before COMMIT
    python benchmarks/versions.py --against /tmp/before

Each version has a process of its own, with one thread, and its own `benchmarks/step.py`, which
makes a stage on images of chance. The processes make some steps in turns, each first in every other
pair, while the other one waits. What is compared is time of the processor in pairs: the median
ratio with the interval that holds it with 95 % by the sign test. Adds to
benchmarks/results/versions.json, by the commit of the other version.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "versions.json"
CHILD = """
import json, runpy, sys, time
root, asked = sys.argv[1], json.loads(sys.argv[2])
sys.path.insert(0, root + "/src")
import torch
import underpaint
assert underpaint.__file__.startswith(root)
from underpaint import config
from underpaint.hardware import keep_freed_memory
from underpaint.training.checkpointing import Progress
from underpaint.training.distributed import World
from underpaint.training.step import step
from underpaint.training.train_state import TrainState

torch.set_num_threads(1)
keep_freed_memory()
timed_stage = runpy.run_path(root + "/benchmarks/step.py")["timed_stage"]
run = config.from_dict(config.Run, asked["recipe"], "timed: ", config.preset(asked["preset"]))
size = (asked["size"],) * 2
stage = timed_stage(run, size, asked["rate"], asked["batch"], "block" if asked["rate"] else "none")
run.network.labels = False
state, progress = TrainState(stage.spec, run.train, World(0, 1, torch.device("cpu"))), Progress()
for line in sys.stdin:
    began = time.process_time()
    for _ in range(int(line)):
        step(stage, run, state, progress)
    print(time.process_time() - began, flush=True)
"""
FP32 = {"train": {"precision": "fp32", "device": "cpu"}}
DIT = {"kind": "dit", "width": 128, "depth": 4, "heads": 4, "options": {}}
STEPS: dict[str, dict[str, Any]] = {
    "hourglass-64": {"preset": "default", "size": 64, "batch": 16, "rate": 0.0, "recipe": FP32},
    "dit-32": {
        "preset": "masked",
        "size": 32,
        "batch": 16,
        "rate": 0.0,
        "recipe": FP32 | {"network": DIT, "space": {"patch": 4}},
    },
    "dit-32-masked": {
        "preset": "masked",
        "size": 32,
        "batch": 16,
        "rate": 0.75,
        "recipe": FP32 | {"network": DIT, "space": {"patch": 4}},
    },
}


class Version:
    """A process that makes steps of the package below `root` when it is asked to."""

    def __init__(self, root: Path, asked: dict[str, Any]) -> None:
        words = [sys.executable, "-c", CHILD, str(root), json.dumps(asked)]
        environment = dict(os.environ) | {"OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONPATH", None)
        PIPE = subprocess.PIPE
        self.process = subprocess.Popen(words, env=environment, text=True, stdin=PIPE, stdout=PIPE)

    def steps(self, count: int) -> float:
        """CPU seconds of so many steps."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self) -> None:
        self.process.communicate()


def interval(values: list[float]) -> tuple[float, float]:
    """Between which of the values their median lies with at least 95 % (sign test)."""
    n, rising = len(values), sorted(values)
    outside, k = 0.0, 0
    while k < n // 2 and outside + math.comb(n, k) / 2**n <= 0.025:
        outside += math.comb(n, k) / 2**n
        k += 1
    return rising[max(0, k - 1)], rising[n - max(1, k)]


def measure(asked: dict[str, Any], against: Path, turns: int, count: int) -> dict[str, Any]:
    """Ratio of CPU seconds, this version over the other, and both."""
    pair = [Version(ROOT, asked), Version(against, asked)]
    try:
        for version in pair:
            version.steps(count)
        spent: list[list[float]] = [[], []]
        for turn in range(turns):
            for i in (0, 1) if turn % 2 == 0 else (1, 0):
                spent[i].append(pair[i].steps(count))
    finally:
        for version in pair:
            version.close()
    ratios = [ours / theirs for ours, theirs in zip(*spent, strict=True)]
    low, high = interval(ratios)
    return {
        **{k: asked[k] for k in ("preset", "size", "batch", "rate")},
        "ratio": round(median(ratios), 4),
        "interval": [round(low, 4), round(high, 4)],
        "ms_a_step": [round(1000 * median(values) / count, 3) for values in spent],
        "pairs": turns,
        "steps_a_turn": count,
    }


def commit(root: Path) -> str:
    words = ["git", "-C", str(root), "rev-parse", "--short=8", "HEAD"]
    return subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, required=True, help="root of another version")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=[*STEPS])
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--count", type=int, default=8, help="steps a turn")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    found: dict[str, Any] = {}
    for name in given.steps:
        found[name] = measure(STEPS[name], given.against.resolve(), given.turns, given.count)
        print(name, json.dumps(found[name]), flush=True)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    known = json.loads(given.out.read_text()) if given.out.exists() else {}
    before = known.get(commit(given.against), {})
    known[commit(given.against)] = before | found | {"this": commit(ROOT), "machine": machine}
    given.out.write_text(json.dumps(known, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
