"""How well `underpaint plan` foretells steps that it has not seen: their time and peak memory.

    python benchmarks/plan.py --threads 1 --rounds 8          # about two minutes on a CPU
    python benchmarks/plan.py --device cuda

Time: the calibration's probes and unseen steps (other widths, depths, image sizes, patches, rates
and batches) take turns; the least of each step's times counts. The pace is fitted to the probes
alone, and must foretell the unseen steps within 20 %. (`plan` then times the network it has chosen
as well, so this is the harder question: no step of that network was run.)

Memory, on a CPU: each case is a fresh process that builds the network and makes a few steps;
measured is its greatest resident memory (VmHWM), all of it, libraries too. Predicted is
`memory.peak`, whose base is the resident memory of another fresh process after a step of a network
of width 32. `network` is the same comparison with that base taken off both. On CUDA, measured is
torch.cuda.max_memory_allocated and the base is 0. Goal: within 25 %.

Writes benchmarks/results/plan-DEVICE.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from underpaint.planning import measure, memory, pace
from underpaint.planning.measure import Probe
from underpaint.training.distributed import World
from underpaint.training.train_state import TrainState

TIME, MEMORY = 0.20, 0.25  # goals
WARM = Probe(32, 1, 1, 32, 0.0, 1)
STEPS = 4  # of a process whose memory is measured

CPU_UNSEEN = (
    Probe(192, 7, 6, 64, 0.0, 2),
    Probe(192, 7, 6, 64, 0.75, 8),
    Probe(384, 13, 6, 64, 0.0, 4, patch=8),
    Probe(384, 13, 6, 64, 0.5, 8, patch=8),
    Probe(128, 5, 4, 32, 0.0, 32),
    Probe(128, 5, 4, 32, 0.9, 32),
    Probe(128, 5, 4, 32, 0.5, 8, patch=2),
    Probe(256, 9, 8, 128, 0.75, 4, patch=8),
    Probe(256, 9, 8, 96, 0.9, 4),
    Probe(192, 7, 6, 96, 0.0, 1),
    Probe(128, 5, 4, 64, 0.0, 32, patch=8),
    Probe(128, 5, 4, 128, 0.75, 4),
)
CUDA_UNSEEN = (
    Probe(192, 7, 6, 64, 0.0, 128),
    Probe(384, 13, 6, 64, 0.0, 64),
    Probe(384, 13, 6, 64, 0.75, 256),
    Probe(512, 13, 8, 64, 0.0, 64),
    Probe(512, 13, 8, 64, 0.9, 256),
    Probe(256, 9, 8, 128, 0.0, 64, patch=8),
    Probe(256, 9, 8, 128, 0.75, 64),
    Probe(768, 12, 12, 64, 0.5, 64),
    Probe(128, 5, 4, 32, 0.0, 256),
    Probe(384, 13, 6, 256, 0.75, 32, patch=8),
)
CPU_MEMORY = (
    Probe(128, 5, 4, 64, 0.0, 32),
    Probe(128, 5, 4, 64, 0.9, 128),
    Probe(256, 9, 8, 64, 0.5, 16),
    Probe(384, 13, 6, 64, 0.0, 16, patch=8),
    Probe(128, 5, 4, 128, 0.75, 16),
    Probe(768, 5, 12, 64, 0.75, 8, patch=8),
)


def named(probe: Probe) -> dict[str, Any]:
    return probe._asdict()


def times(device: torch.device, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Predicted and measured seconds of the unseen steps."""
    cuda = device.type == "cuda"
    probes = measure.CUDA if cuda else measure.CPU
    unseen = CUDA_UNSEEN if cuda else CPU_UNSEEN
    clock = time.perf_counter if given.clock == "wall" else time.process_time
    timed = measure.calibrate(device, 0.0, lambda *_: None, [*probes, *unseen], clock, given.rounds)
    fitted = pace.fit(*zip(*timed[: len(probes)], strict=True))
    rows = []
    for i, (probe, (work, seconds)) in enumerate(zip([*probes, *unseen], timed, strict=True)):
        predicted = fitted.seconds(work)
        rows.append(
            named(probe)
            | {"seen": i < len(probes), "predicted_s": predicted, "measured_s": seconds}
            | {"ratio": predicted / seconds}
        )
    return rows


def peak_of(probe: Probe | None, device: str, threads: int) -> dict[str, float]:
    """What a fresh process says of its memory after some steps."""
    command = [sys.executable, __file__, "--inside", json.dumps(probe), "--device", device]
    command += ["--threads", str(threads)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return dict(json.loads(out))


def inside(probe: Probe | None, device: torch.device) -> dict[str, float]:
    """Run in the fresh process: its peak, or without a probe the base; and what is predicted."""
    if probe is None:
        measure.calibrate(device, 0.0, lambda *_: None, [WARM])
        return {"base": memory.resident() if device.type == "cpu" else 0}
    run = measure.recipe(probe, device)
    kind = "patch" if probe.rate else "none"
    stage = measure.timed_stage(run, (probe.size, probe.size), probe.rate, probe.batch, kind)
    state = TrainState(stage.spec, run.train, World(0, 1, device))
    step = measure.stepper(stage, run, state)
    for _ in range(STEPS):
        step()
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = greatest()
    backbone, visible = state.model.backbone, stage.levels[0].visible
    bytes_per = measure.bytes_per(run.train, device)
    own = memory.peak(backbone, probe.depth, visible, probe.batch, base=0.0, bytes_per=bytes_per)
    return {"peak": peak, "network": own}


def greatest() -> int:
    """Bytes that this process had resident at most (ru_maxrss would begin with its parent's)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def memories(device: torch.device, threads: int) -> list[dict[str, Any]]:
    """Predicted and measured bytes."""
    base = peak_of(None, device.type, threads)["base"]
    rows = []
    for probe in CPU_MEMORY if device.type == "cpu" else CUDA_UNSEEN:
        told = peak_of(probe, device.type, threads)
        predicted = base + told["network"]
        rows.append(
            named(probe)
            | {"base_bytes": base, "predicted_bytes": predicted, "measured_bytes": told["peak"]}
            | {"ratio": predicted / told["peak"]}
            | {"network_ratio": told["network"] / (told["peak"] - base)}
        )
    return rows


def worst(rows: list[dict[str, Any]]) -> float:
    return max(abs(row["ratio"] - 1) for row in rows)


def show(result: dict[str, Any]) -> None:
    head = f"{'width':>6}{'depth':>6}{'size':>6}{'patch':>6}{'rate':>6}{'batch':>6}"
    print(f"{head} {'predicted':>12} {'measured':>12} {'ratio':>7}")
    for row in result["time"]:
        line = "".join(f"{row[k]:>6}" for k in ("width", "depth", "size", "patch", "rate", "batch"))
        line += f" {row['predicted_s'] * 1e3:9.1f} ms {row['measured_s'] * 1e3:9.1f} ms"
        print(f"{line} {row['ratio']:7.2f}{'  probe' if row['seen'] else ''}")
    for row in result["memory"]:
        line = "".join(f"{row[k]:>6}" for k in ("width", "depth", "size", "patch", "rate", "batch"))
        line += (
            f" {row['predicted_bytes'] / 2**20:8.0f} MiB {row['measured_bytes'] / 2**20:8.0f} MiB"
        )
        print(f"{line} {row['ratio']:7.2f}  network alone {row['network_ratio']:.2f}")
    for what, goal in (("time", TIME), ("memory", MEMORY)):
        off = result[f"worst_{what}"]
        answer = "met" if off <= goal else "missed"
        print(f"{what}: off by at most {off:.1%}, goal {goal:.0%}: {answer}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=8, help="turns of each step")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: the process's own time, which others on the machine disturb less (1 thread)",
    )
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    device = torch.device(given.device)
    torch.set_num_threads(given.threads)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    if given.inside is not None:
        probe = json.loads(given.inside)
        print(json.dumps(inside(None if probe is None else Probe(*probe), device)))
        return 0
    load = os.getloadavg()[0]
    rows, bytes_rows = times(device, given), memories(device, given.threads)
    unseen = [row for row in rows if not row["seen"]]
    result = {
        "device": "cpu" if device.type == "cpu" else torch.cuda.get_device_name(),
        "threads": given.threads,
        "rounds": given.rounds,
        "clock": given.clock,
        "goal_time": TIME,
        "goal_memory": MEMORY,
        "worst_time": worst(unseen),
        "median_time": statistics.median(abs(row["ratio"] - 1) for row in unseen),
        "worst_memory": worst(bytes_rows),
        "load_before": round(load, 2),  # other work on the machine makes times differ
        "load_after": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "time": rows,
        "memory": bytes_rows,
    }
    show(result)
    out = given.out or Path(__file__).parent / "results" / f"plan-{device.type}.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(f"written to {out}")
    return 0 if result["worst_time"] <= TIME and result["worst_memory"] <= MEMORY else 1


if __name__ == "__main__":
    sys.exit(main())
