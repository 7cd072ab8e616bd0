"""What a GPU makes of a training step: images a second, MFU and memory; and of bf16's losses.

    studies/gpu.sh speed | losses | table          in parts of ten minutes; the same call goes on
    python -m studies.lib.gpu --device cpu --scale 0.004 --work DIR --out FILE     a try on a CPU

A unit is one network at one rate of masks, or one precision; its result is kept in WORK, all of
them in benchmarks/results/gpu.json. Steps are those of the loop, on images of chance: reading
ahead, drawing, forward, backward, clipping, optimiser, average. They are timed in rows without a
look at the device in between. Batches that do not fit are halved. FLOPs are three times those of
the forward pass, the peak is the data sheet's (planning/devices.json).
"""

from __future__ import annotations

import argparse
import json
import runpy
import statistics
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import torch

from studies.lib import units
from underpaint import config
from underpaint.training.checkpointing import Progress
from underpaint.training.distributed import World
from underpaint.training.step import step, training_flops
from underpaint.training.train_state import TrainState

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RESULTS = BENCHMARKS / "results" / "gpu.json"
WARM, ROUNDS, ROW = 5, 7, 10  # steps before, rows, steps in a row
SOURCE = "avatars:lorelei"
SEEN = 200_000  # images of a run whose losses are compared
LINES = 20  # of its metrics


class Config(NamedTuple):
    """A network at one size, and batches by the hidden share in percent."""

    preset: str
    size: int
    mask: str
    batches: dict[int, int]
    network: dict[str, Any] | None = None  # changes of it


BATCHES = {0: 128, 50: 256, 75: 512, 90: 1024}
WIDE = {"width": 256, "depth": 6, "heads": 8}  # for hours and larger pictures
CONFIGS = {
    "maskdm-celebahq256": Config(
        "maskdm-celebahq256", 256, "block", {0: 32, 50: 64, 75: 128, 90: 256}
    ),
    "maskdit-xl2": Config(
        "maskdit-xl2-imagenet256", 256, "patch", {0: 128, 50: 256, 75: 256, 90: 256}
    ),
    "default": Config("default", 64, "block", BATCHES),
    "hourglass-64": Config("default", 64, "block", BATCHES, WIDE),
    "hourglass-128": Config("default", 128, "block", {k: v // 2 for k, v in BATCHES.items()}, WIDE),
    "hourglass-256": Config("default", 256, "block", {k: v // 8 for k, v in BATCHES.items()}, WIDE),
}
SPEED = {f"{name}-{rate}": (name, rate) for name, c in CONFIGS.items() for rate in c.batches}
LOSSES = {f"losses-{precision}": precision for precision in ("fp32", "bf16")}
UNITS = (*SPEED, *LOSSES)


def speed(name: str, rate: int, device: torch.device, scale: float) -> dict[str, Any]:
    """Steps of the network `name` with `rate` percent hidden, compiled on a GPU.

    `scale` below 1: a try, with smaller batches and fewer steps.
    """
    about = CONFIGS[name]
    batch = max(2, round(about.batches[rate] * min(1.0, scale)))
    while True:
        try:
            return timed(about, rate / 100, batch, device, max(1, round(ROW * min(1.0, scale))))
        except torch.OutOfMemoryError:
            if batch < 2:
                raise
        batch //= 2
        torch.cuda.empty_cache()


def timed(about: Config, rate: float, batch: int, device: torch.device, row: int) -> dict[str, Any]:
    """Seconds, memory and FLOPs of steps on a batch: the median of rows of `row` steps."""
    cuda = device.type == "cuda"
    run = config.preset(about.preset)
    run.train.compile, run.train.device, run.network.labels = cuda, device.type, False
    run.train.precision = "bf16" if cuda else "fp32"
    changes = {"network": about.network or {}}
    run = config.from_dict(config.Run, changes, f"{about.preset}: ", run)
    size = (about.size, about.size)
    benchmark = runpy.run_path(str(BENCHMARKS / "step.py"))
    stage = benchmark["timed_stage"](run, size, rate, batch, about.mask if rate else "none")
    world, progress = World(0, 1, device), Progress()
    torch.set_float32_matmul_precision("high" if cuda else "highest")
    state = TrainState(stage.spec, run.train, world)

    def steps(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            step(stage, run, state, progress)
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    try:
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        steps(WARM if cuda else 1)
        seconds = statistics.median(steps(row) for _ in range(ROUNDS if cuda else 1)) / row
    finally:
        state.feed.close()
    level, peak = stage.levels[0], benchmark["peak_flops"](device)
    flops = training_flops(state, level.visible, stage.settings.mask)
    speed = batch / seconds
    return {
        "batch": batch,
        "hidden": level.realised,
        "visible": level.visible,
        "parameters": sum(p.numel() for p in state.backbone.parameters()),
        "images_per_s": speed,
        "flops_per_image": flops,
        "mfu": flops * speed / peak if peak else None,
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if cuda else None,
    }


def losses(precision: str, device: torch.device, scale: float, folder: Path) -> dict[str, Any]:
    """A run of `default` on the packaged heads in one precision: its losses as it goes on."""
    batch = 64
    images = max(2, round(SEEN * scale / batch)) * batch
    changes = {
        "data": {"source": SOURCE},
        "space": {"patch": 2},
        "stages": {"whole": {"minutes": 0, "images": images, "batch": batch}},
        "train": {
            "device": device.type,
            "precision": precision,
            "log_every": max(1, images // LINES),
            "check_every": -1,
            "sample_every": -1,
        },
    }
    run = config.from_dict(config.Run, changes, "losses: ", config.preset("default"))
    spent = units.trained(run, folder)
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    lines = [m for m in map(json.loads, text.splitlines()) if m["kind"] == "step"]
    return spent | {"losses": [m["loss"] for m in lines], "skipped": lines[-1]["skipped"]}


def do(unit: str, work: Path, device: torch.device, scale: float) -> dict[str, Any]:
    """Measure a unit."""
    if unit in LOSSES:
        return losses(LOSSES[unit], device, scale, work / unit)
    return speed(*SPEED[unit], device, scale)


def table(results: dict[str, Any]) -> str:
    """All that was measured, and what is left."""
    lines = [
        f"{'network':20} {'hidden':>7} {'batch':>6} {'images/s':>9} {'times':>6} {'FLOPs':>6} "
        f"{'MFU':>6} {'GiB':>6}"
    ]
    for unit, (name, _) in SPEED.items():
        if not (found := results.get(unit)):
            continue
        line = f"{name:20} {found['hidden']:7.1%} {found['batch']:6} {found['images_per_s']:9.1f} "
        if whole := results.get(f"{name}-0"):
            line += f"{found['images_per_s'] / whole['images_per_s']:6.2f} "
            line += f"{whole['flops_per_image'] / found['flops_per_image']:6.2f} "
        if found["mfu"] is not None:
            line += f"{found['mfu']:6.1%} {found['peak_memory_bytes'] / 2**30:6.1f}"
        lines.append(line)
    for unit in LOSSES:
        if found := results.get(unit):
            shown = " ".join(f"{loss:.4f}" for loss in found["losses"][:: LINES // 5])
            lines.append(f"{unit:20} {shown}, last {found['losses'][-1]:.4f}")
    left = [unit for unit in UNITS if unit not in results]
    return "\n".join([*lines, f"left: {' '.join(left) or 'nothing'}"])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", default=UNITS, choices=UNITS, metavar="UNIT")
    parser.add_argument("--kind", choices=("speed", "losses"), help="of the units, one kind alone")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the lengths")
    parser.add_argument("--work", type=Path, default=Path("runs/gpu"), help="what units leave")
    parser.add_argument("--out", type=Path, default=RESULTS, help="results")
    parser.add_argument("--table", action="store_true", help="print what there is, and end")
    given = parser.parse_args()
    told = units.committed(given.out, given.scale)
    if given.table:
        print(table(told.get("units", {})))
        return 0
    device = torch.device(given.device)
    units.restore(told.get("units", {}), given.work)

    def write() -> None:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        about = {"torch": torch.__version__, "device": name, "scale": given.scale}
        units.write_json(given.out, about | {"units": units.gather(UNITS, given.work)})

    kinds: dict[str, Collection[str]] = {"speed": SPEED, "losses": LOSSES}
    names = [unit for unit in given.only if given.kind is None or unit in kinds[given.kind]]
    code = units.conduct(
        names, given.work, lambda unit: do(unit, given.work, device, given.scale), write
    )
    print(table(units.gather(UNITS, given.work)))
    return code


if __name__ == "__main__":
    raise SystemExit(main())
