"""Seconds of a training step of each unit of the ladder, on one thread of a quiet machine.

    python -m studies.ladder.speed [--only UNIT …] [--rounds 9] [--out speed.json]

Whole steps as the loop runs them, on the packaged pictures at the units' sizes. All steps take
turns, so that a slow moment of the machine meets all of them; units that differ in nothing that a
step depends on share theirs. Of a unit with several stages, whose shares w of the FLOPs cost f
FLOPs and s seconds an image:

    FLOPs an image = 1 / Σ w/f        seconds an image = Σ w s/f / Σ w/f

`ratio`: the median over rounds of its seconds an image over those of `dit`, with the interval that
order statistics give a median. float32, as the units ran, and bf16 where `precision: auto` takes
it. About four minutes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from studies.ladder import run as ladder
from studies.lib import units

BASE = "dit"
LEAST = 0.25  # seconds of a turn
STEP = ("mask", "rate", "block", "batch", "size")  # what a stage's step depends on

Speed = dict[str, Any]  # speed.json


def median(values: Sequence[float]) -> dict[str, float]:
    """The median, and its interval of 95 % or the next above (Hahn & Meeker 1991, section 5.2)."""
    from scipy import stats

    found = sorted(values)
    k = max(int(stats.binom.ppf(0.025, len(found), 0.5)), 1)
    return {"ratio": statistics.median(found), "low": found[k - 1], "high": found[-k]}


def an_image(stages: Sequence[tuple[float, float, Sequence[float]]]) -> tuple[float, list[float]]:
    """FLOPs an image, and seconds an image by round, of w, f and s by round of each stage."""
    each = sum(w / f for w, f, _ in stages)
    rounds = zip(*([w / f / each * s for s in own] for w, f, own in stages), strict=True)
    return 1 / each, [sum(own) for own in rounds]


def by_flops(speed: Speed, unit: str, base: str, precision: str = "fp32") -> float | None:
    """Seconds a FLOP of `unit` over those of `base`, paired by round; None: not timed.

    `precision` bf16: of what is faster in it, as by `precision: auto`.
    """
    if not {unit, base} <= speed.get("units", {}).keys():
        return None
    one, two = (speed["units"][name] for name in (unit, base))
    rounds = (own.get(precision, own["fp32"])["rounds"] for own in (one, two))
    ratio = statistics.median(a / b for a, b in zip(*rounds, strict=True))
    return float(ratio * two["flops_an_image"] / one["flops_an_image"])


def step(unit: str, stage: str) -> str:
    """What a step of the unit's stage depends on."""
    asked = ladder.settings(unit)
    data = [asked["data"].get(key) for key in ("size", "channels")]
    own = [asked["stages"][stage].get(key) for key in STEP]
    optimizer = asked["train"].get("optimizer")
    return json.dumps([data, asked["space"], asked["network"], optimizer, own])


def measure(names: Sequence[str], rounds: int) -> Speed:
    """speed.json."""
    import torch

    from underpaint.hardware import keep_freed_memory, use_bf16
    from underpaint.training.checkpointing import Progress
    from underpaint.training.distributed import World
    from underpaint.training.stages import prepare_stages
    from underpaint.training.step import compute
    from underpaint.training.throughput import step_seconds
    from underpaint.training.train_state import TrainState

    torch.set_num_threads(1)
    keep_freed_memory()
    device = torch.device("cpu")
    ready: dict[tuple[str, str], tuple[Any, ...]] = {}  # by step and precision
    for unit in names:
        run = ladder.recipe(unit, 1.0)
        run.data = replace(run.data, source="avatars:lorelei", held_out="0", limit=512)
        bf16 = ("bf16",) * use_bf16("auto", device, run.network.width)
        for name, own in run.stages.items():
            if (step(unit, name), "fp32") not in ready:
                alone = replace(run, stages={name: own})
                (stage,) = prepare_stages(alone, lambda _: None)
                for precision in ("fp32", *bf16):
                    alone.train = replace(run.train, precision=precision)
                    state = TrainState(stage.spec, alone.train, World(0, 1, device))
                    ready[step(unit, name), precision] = stage, alone, state, Progress()

    def turn(key: tuple[str, str]) -> float:
        """Seconds an image; the first step after another network's has cold caches."""

        stage, run, state, progress = ready[key]

        def once() -> float:  # what other processes take does not count
            return step_seconds(stage, run, state, progress, clock=time.process_time)

        taken = [once()]
        if taken[0] < LEAST:
            taken = []
            while sum(taken) < LEAST:
                taken.append(once())
        return float(statistics.median(taken) / stage.batch)

    passes = [{key: turn(key) for key in ready} for _ in range(1 + rounds)][1:]  # one warms up
    found: dict[str, dict[str, Any]] = {unit: {} for unit in names}
    for unit, told in found.items():
        shares = ladder.settings(unit)["study"]["shares"]
        for precision in ("fp32", "bf16"):
            keys = [(step(unit, name), precision) for name in shares]
            if not set(keys) <= ready.keys():
                continue
            flops = []
            for key in keys:
                stage, _, state, _ = ready[key]
                flops.append(compute(stage, state, stage.levels[0])["flops_per_image"])
            seconds = [[one[key] for one in passes] for key in keys]
            stages = list(zip(shares.values(), flops, seconds, strict=True))
            told["flops_an_image"], own = an_image(stages)
            told[precision] = {"seconds_an_image": statistics.median(own), "rounds": own}
            base = found[BASE].get(precision, found[BASE]["fp32"])["rounds"]
            told[precision] |= median([a / b for a, b in zip(own, base, strict=True)])
    chip = torch.cpu.get_capabilities()
    flags = [flag for flag in ("amx_bf16", "avx512_bf16") if chip.get(flag)]
    cpu = {"cpu": chip.get("cpu_name") or chip["architecture"], "flags": flags, "threads": 1}
    return {**units.made(), **cpu, "rounds": rounds, "units": found}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [name for name in ladder.UNITS if not name.startswith("end-")]
    parser.add_argument("--only", nargs="+", default=names, choices=names, metavar="UNIT")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=ladder.HERE / "speed.json")
    given = parser.parse_args()
    asked = dict.fromkeys([BASE, *given.only])
    units.write_json(given.out, measure(list(asked), given.rounds))


if __name__ == "__main__":
    main()
