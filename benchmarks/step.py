"""How fast a training step is at several mask rates, against what its FLOPs allow.

    python benchmarks/step.py                                             # CPU, 256 patches
    python benchmarks/step.py --batch 4 --rates 0 [--compile]             # as `masked` takes them:
    python benchmarks/step.py --batch 16 --rates 0 0.9 [--compile]        # whole, masked
    python benchmarks/step.py … --give-back                               # malloc left alone
    python benchmarks/step.py --device cuda --preset maskdm-celebahq256   # GPU: also MFU and memory

The whole step is timed as the loop runs it: drawing the batch from the cache's format, forward,
backward, clipping, AdamW, average. The rates take turns, so that a slow moment of the machine
meets all of them; each figure is the median over rounds. `ideal` is the ratio of analytic training
FLOPs, `reached` the measured ratio over it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch

from underpaint import config, factory
from underpaint.core import masks
from underpaint.data import Dataset, Order
from underpaint.data.dataset import Latents
from underpaint.hardware import keep_freed_memory
from underpaint.planning import machine
from underpaint.training.checkpointing import Progress
from underpaint.training.distributed import World
from underpaint.training.stages import Level, PreparedStage
from underpaint.training.step import training_flops
from underpaint.training.throughput import step_seconds
from underpaint.training.train_state import TrainState
from underpaint.training.training_set import ImageSet, LatentSet

RESULTS = Path(__file__).parent / "results" / "step.json"


def peak_flops(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((d["flop_per_s"] for d in machine.known().values() if d["name"] in name), None)


def random_images(size: tuple[int, int], channels: int, count: int = 256) -> Dataset:
    """Images of chance, which need no files."""
    rng = np.random.default_rng(0)
    digests = rng.integers(0, 256, (count, 32), dtype=np.uint8)
    return Dataset(
        images=rng.integers(0, 256, (count, *size, channels), dtype=np.uint8),
        labels=np.full(count, -1, np.int64),
        label_names=(),
        names=[str(i) for i in range(count)],
        train_ids=np.arange(count),
        held_out_ids=np.arange(0),
        key="random",
        report={},
        file_digests=digests,
        pixel_digests=digests,
    )


def random_latents(shape: tuple[int, int, int], count: int = 256) -> Latents:
    """What an autoencoder would give of such images."""
    rng = np.random.default_rng(0)
    return Latents(rng.standard_normal((count, 2, 2, *shape), np.float32).astype(np.float16), 1, 0)


def timed_stage(
    run: config.Run, size: tuple[int, int], rate: float, batch: int, kind: str
) -> PreparedStage:
    """A stage of `run` at a constant rate, on images of chance; its first stage's settings else."""
    settings = next(iter(run.stages.values()), config.Stage())
    changes = {"batch": batch, "mask": kind, "rate": rate, "images": batch}
    settings = config.from_dict(config.Stage, changes, "timed: ", settings)
    spec = config.ModelSpec(
        size=size,
        channels=config.CHANNELS[run.data.channels],
        label_names=(),
        space=run.space,
        network=config.network_of(run),
        noise=run.noise,
    )
    space = factory.space(spec.space, size, spec.channels)
    mask = factory.mask_spec(settings, factory.unallocated_network(spec))
    V = masks.visible_count(mask, space.grid)
    keep_hidden = run.noise.hidden_weight > 0
    drawn, of = random_images(size, spec.channels), ImageSet
    if run.space.kind == "latents":
        drawn, of = dataclasses.replace(drawn, latents=random_latents(space.planes)), LatentSet
    images = of(drawn, settings, space, mask, keep_hidden=keep_hidden)
    return PreparedStage(
        index=0,
        name="timed",
        settings=settings,
        spec=spec,
        space=space,
        training_set=images,
        order=Order(images.train_ids, 0),
        images=10**12,
        levels=(Level(0, rate, 1 - V / (space.grid[0] * space.grid[1]), V),),
    )


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    run = config.preset(arguments.preset)
    run.train.compile = arguments.compile
    run.train.device = arguments.device
    run.train.precision = arguments.precision
    size = config.image_size(run.data.size) if arguments.size is None else (arguments.size,) * 2
    assert size is not None
    kept = not arguments.give_back and keep_freed_memory()
    world = World(0, 1, torch.device(arguments.device))
    torch.set_float32_matmul_precision("high" if world.device.type == "cuda" else "highest")
    stages = {}
    for rate in arguments.rates:
        batch = arguments.batch
        stages[rate] = timed_stage(run, size, rate, batch, arguments.mask if rate else "none")
    run.network.labels = False
    state = TrainState(stages[arguments.rates[0]].spec, run.train, world)
    times: dict[float, list[float]] = {rate: [] for rate in arguments.rates}
    memory: dict[float, int] = {}
    progress = Progress()

    def timed(rate: float) -> float:
        return step_seconds(stages[rate], run, state, progress)

    for rate in arguments.rates:
        if world.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        for _ in range(3):
            timed(rate)
        if world.device.type == "cuda":
            memory[rate] = torch.cuda.max_memory_allocated()
    for _ in range(arguments.rounds):
        for rate in arguments.rates:
            # several steps a turn: the first after a change of shapes pays for cold caches
            timed(rate)
            times[rate] += [timed(rate) for _ in range(arguments.repeat)]
    peak = peak_flops(world.device)
    seconds = {rate: statistics.median(values) for rate, values in times.items()}
    whole_flops = training_flops(state, stages[0.0].levels[0].visible, "none")
    rows = []
    for rate in arguments.rates:
        level = stages[rate].levels[0]
        flops = training_flops(state, level.visible, stages[rate].settings.mask)
        speed, ratio = arguments.batch / seconds[rate], seconds[0.0] / seconds[rate]
        row: dict[str, Any] = {
            "rate": rate,
            "realised": level.realised,
            "visible": level.visible,
            "batch": arguments.batch,
            "images_per_s": speed,
            "flops_per_image": flops,
            "ratio": ratio,
            "ideal": whole_flops / flops,
            "reached": ratio / (whole_flops / flops),
            "flop_per_s": flops * speed,
        }
        if peak:
            row |= {"mfu": flops * speed / peak, "peak_memory_bytes": memory[rate]}
        rows.append(row)
    device = "cpu" if peak is None else torch.cuda.get_device_name()
    return {
        "preset": arguments.preset,
        "size": list(size),
        "patches": stages[0.0].levels[0].visible,
        "parameters": sum(p.numel() for p in state.backbone.parameters()),
        "device": device,
        "peak_flop_per_s": peak,
        "threads": torch.get_num_threads(),
        "precision": "bf16" if state.bf16 else "fp32",
        "amx": device == "cpu" and bool(torch.cpu.get_capabilities().get("amx_bf16")),
        "compiled": arguments.compile,
        "freed_memory_kept": kept,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "rounds": arguments.rounds,
        "rows": rows,
    }


def show(result: dict[str, Any]) -> None:
    print(
        f"{result['preset']}, {result['patches']} patches, {result['parameters']:,} parameters, "
        f"{result['device']}, {result['threads']} threads, {result['precision']}"
    )
    print(f"{'hidden':>8} {'visible':>8} {'images/s':>9} {'ratio':>6} {'ideal':>6} {'reached':>8}")
    for row in result["rows"]:
        line = f"{row['realised']:8.3f} {row['visible']:8d} {row['images_per_s']:9.1f} "
        line += f"{row['ratio']:6.2f} {row['ideal']:6.2f} {row['reached']:8.1%}"
        if "mfu" in row:
            line += f"   MFU {row['mfu']:.1%}, {row['peak_memory_bytes'] / 2**30:.1f} GiB"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="masked")
    parser.add_argument("--size", type=int, default=None, help="pixels (default: the preset's)")
    parser.add_argument("--mask", default="patch", help="kind of mask; crop for a U-Net")
    parser.add_argument("--rates", type=float, nargs="+", default=None)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=None)
    parser.add_argument("--give-back", action="store_true", help="leave malloc alone")
    parser.add_argument("--name", default="", help="in --out (default: device and preset)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="a line for each measurement")
    arguments = parser.parse_args()
    cuda = arguments.device.startswith("cuda")
    if arguments.compile is None:
        arguments.compile = cuda
    if arguments.rates is None:
        arguments.rates = [0.0, 0.5, 0.9] if cuda else [0.0, 0.5, 0.75, 0.9]
    if arguments.size is None and arguments.preset in ("default", "masked"):
        arguments.size = 64
    torch.set_num_threads(arguments.threads)
    result = measure(arguments)
    show(result)
    name = arguments.name or f"{'cuda' if cuda else 'cpu'}-{arguments.preset}"
    keep(result, name, arguments.out)


def keep(result: dict[str, Any], name: str, out: Path) -> None:
    """Put `result` among those that `out` holds, under `name`."""
    found = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    lines = [f" {json.dumps(n)}: {json.dumps(r)}" for n, r in (found | {name: result}).items()]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
