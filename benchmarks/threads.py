"""How threads share the cores with other work: a training step beside busy processes.

    python benchmarks/threads.py [--busy 0 1 3]

Times steps of the quick start, of one thread and of as many as there are cores, beside so many
processes that never wait; and, of several threads, with what OpenMP does by itself (`default`) and
with what the command line asks of it (`cores.share`). Each in a process of its own, in turn; in
milliseconds. Begin it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

from underpaint import cores

RESULTS = Path(__file__).parent / "results" / "threads.json"
SECONDS, LEAST = 4.0, 2  # of a way; steps of one
BUSY = "while True: pass"


def child(threads: int) -> None:
    """Print milliseconds a step."""
    import torch

    from benchmarks.step import timed_stage
    from underpaint import config
    from underpaint.hardware import keep_freed_memory
    from underpaint.training.checkpointing import Progress
    from underpaint.training.distributed import World
    from underpaint.training.throughput import step_seconds
    from underpaint.training.train_state import TrainState

    torch.set_num_threads(threads)
    keep_freed_memory()
    run = config.preset("quickstart")
    run.train.device, run.train.precision, run.network.labels = "cpu", "fp32", False
    stage = timed_stage(run, (32, 32), 0.0, run.last.batch, "none")
    state = TrainState(stage.spec, run.train, World(0, 1, torch.device("cpu")))
    progress = Progress()
    taken: list[float] = []
    for _ in range(2):
        step_seconds(stage, run, state, progress)
    while len(taken) < LEAST or sum(taken) < SECONDS:
        taken.append(step_seconds(stage, run, state, progress))
    print(1000 * sum(taken) / len(taken))


def timed(threads: int, asked: bool) -> float:
    """Milliseconds a step, in a process of its own."""
    given = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    if asked:
        given["GOMP_SPINCOUNT"] = str(cores.SPINS)
    command = [sys.executable, __file__, "--child", str(threads)]
    done = subprocess.run(command, check=True, env=given, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.split()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 3])
    parser.add_argument("--child", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    if given.child:
        child(given.child)
        return 0
    many = cores.available()
    ways = {"one thread": (1, True), f"{many} threads": (many, True), "default": (many, False)}
    found = {}
    for busy in given.busy:
        others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(busy)]
        time.sleep(1.0)
        try:
            found[str(busy)] = {name: round(timed(*way), 1) for name, way in ways.items()}
        finally:
            for other in others:
                other.kill()
        print(busy, "busy processes:", found[str(busy)])
    about = {"spins": cores.SPINS, "machine": f"{platform.machine()}, {many} cores"}
    given.out.write_text(json.dumps({**about, "busy": found}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
