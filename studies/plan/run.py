"""Does `underpaint plan` write a better recipe than `default`, or than one fixed recipe for all?

    python -m studies.plan.run --seconds        time all networks, once, on a quiet machine
    python -m studies.plan.run --table          what there is to do
    python -m studies.plan.run                  as many processes as there are cores

Two sets of 3,000 images that are no drawn heads: photographs of 64×64 (`python -m
studies.lib.photographs`) and garments of 28×28 in grey with ten labels (Debian's
dataset-fashion-mnist). A unit SET-MINUTES-ARM trains so many minutes of one core:

    default      what `train` does without a preset, in patches that fit
    plan         what `plan` writes for so many minutes
    patch-8      the ladder's best plain DiT, the same for all images and minutes
    by-images    default with dropout and label drop by the number of images, as `plan` had them
                 once, whatever the epochs

Where `plan` writes what `default` is, nothing is trained twice.

Seconds an image are timed beforehand, all networks in turn, in the process's CPU time
(`seconds.json`: beside other work, 1.6 times what a quiet core of the same machine takes); `plan`
goes by them, and every unit sees as many images as fit, so that what else the machine does
meanwhile changes nothing. All of the minutes are training: no grids, no checks. One seed, float32.

    error        mean squared error of x0 of 500 held-out images over eight noise levels
    frechet      distance (MobileNetV2 features, never an FID) of 500 samples to 500 held-out
                 images, with their labels, `low` to `high`: its 95 % interval by the jackknife
    difference   to `default`, in the same seeds and against the same images, with its interval

Intervals are of samples and images; another seed of training moves the distance more. In a series
before this one, whose times were not spread over each batch, `plan` ended 7.4 (4.7 to 10.1) nearer
than `default` on photographs in 18 minutes.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from studies.ladder import run as ladder
from studies.lib import units
from underpaint import config
from underpaint.planning import candidates, plan
from underpaint.planning.machine import Machine, find
from underpaint.training.checkpointing import Progress
from underpaint.training.stages import prepare_stages
from underpaint.training.throughput import step_seconds
from underpaint.training.train_state import TrainState

HERE = Path(__file__).parent
SPEEDS = HERE / "seconds.json"
COUNT, IMAGES, ROUNDS, TURN = 500, 3000, 7, 0.5  # seconds of a turn at least
SETS: dict[str, dict[str, Any]] = {
    "photographs": {
        "source": "runs/data/photographs-64.zip",
        "held_out": "runs/data/photographs-64-held-out.zip",
        "size": 64,
        "limit": IMAGES,
    },
    "garments": {
        "source": "/usr/share/datasets/fashion-mnist",
        "held_out": "2000",
        "size": 28,
        "channels": 1,
        "limit": IMAGES,
    },
}
FIXED = ("patch-8",)
MINUTES, ARMS = (2, 6, 18), ("default", "plan", *FIXED)
BY_IMAGES = {"dropout": 0.05, "label_drop": 0.2}  # of the preset small-3000
ALONE = {"threads": 1, "precision": "fp32", "sample_every": -1, "check_every": -1}
UNITS = [f"{name}-{minutes}-{arm}" for minutes in MINUTES for name in SETS for arm in ARMS]
UNITS.insert(2, "photographs-2-by-images")
LOW_HIGH = ("", "_low", "_high")


def key(run: config.Run, stage: str) -> str:
    """What the seconds of a step depend on, in words."""
    network, of = run.network, run.stages[stage]
    hidden = f"{of.mask} {of.rate:g}" if of.mask != "none" else "whole"
    return (
        f"{network.kind} {network.width}, depth {network.depth}, patch {run.space.patch}, "
        f"{run.noise.prediction}, {run.train.optimizer}, batch {of.batch}, {hidden}"
    )


@dataclass(frozen=True)
class Timed(Machine):
    """A machine whose seconds an image are known by `key`; without them, asks are collected."""

    taken: dict[str, float] | None = None
    asked: dict[str, tuple[config.Run, str]] = field(default_factory=dict)

    def an_image(self, run: config.Run, images: Any, name: str, seconds: float) -> float:
        """As measured; any number while it is collected what has to be."""
        run = self.on(replace(run, stages={name: run.stages[name]}))
        self.asked[key(run, name)] = run, name
        return self.taken[key(run, name)] if self.taken is not None else 1.0


def images_of(name: str) -> candidates.Images:
    """What `plan` is given of a set."""
    from underpaint import data

    found = data.prepare(config.from_dict(config.Data, SETS[name], "plan: "))
    return candidates.Images.of(found, SETS[name]["source"])


def timed(taken: dict[str, float] | None) -> Timed:
    """This machine's CPU and memory."""
    here = find("cpu")
    return Timed(here.name, here.device, here.memory, taken=taken)


def recipe(name: str, arm: str, minutes: float, machine: Timed) -> config.Run:
    """The run of an arm, as long as it comes."""
    images = images_of(name)
    if arm == "plan":
        run = plan.propose(images, machine, 60 * minutes).run
    else:
        run = ladder.recipe(arm, 1.0) if arm in FIXED else config.preset("default")
        if arm == "by-images":
            run = candidates.changed(run, network=BY_IMAGES)
        run = candidates.changed(run, space={"patch": candidates.patch_for(run, images.size)})
    stages = {k: {"minutes": 0, "images": s.images or s.batch} for k, s in run.stages.items()}
    return candidates.changed(run, data=SETS[name], stages=stages, train=ALONE)


def lengthened(run: config.Run, minutes: float, machine: Timed) -> config.Run:
    """`run` in so many minutes of training, its stages in their shares."""
    each = {k: machine.an_image(run, None, k, 0.0) for k in run.stages}
    factor = 60 * minutes / sum(run.stages[k].images * each[k] for k in each)
    for stage in run.stages.values():
        stage.images = max(1, round(factor * stage.images / stage.batch)) * stage.batch
        stage.warmup = min(stage.warmup, stage.images // 5)
    return run


def seconds() -> dict[str, Any]:
    """seconds.json: the median of a turn's steps, and of the turns; all take turns."""
    import torch

    torch.set_num_threads(1)
    ready: dict[str, dict[str, Any]] = {name: {} for name in SETS}
    for name in SETS:
        machine = timed(None)
        for arm in ("default", "plan", *FIXED):
            run = recipe(name, arm, 6, machine)
            for part in run.stages:
                machine.an_image(run, None, part, 0.0)
        for what, (run, _) in machine.asked.items():
            alone = candidates.changed(run, data=SETS[name], train=ALONE)
            (stage,) = prepare_stages(alone, lambda _: None)
            state = TrainState(stage.spec, alone.train, _world(machine))
            ready[name][what] = stage, alone, state, Progress(), []
    for i in range(1 + ROUNDS):
        for those in ready.values():
            for stage, run, state, progress, found in those.values():
                turn: list[float] = []
                while sum(turn) < TURN:
                    turn.append(step_seconds(stage, run, state, progress, time.process_time))
                if i:  # one warms up
                    found.append(statistics.median(turn) / stage.batch)
    return {
        "seconds_an_image": {
            name: {what: statistics.median(one[-1]) for what, one in those.items()}
            for name, those in ready.items()
        }
    }


def _world(machine: Machine) -> Any:
    from underpaint.training.distributed import World

    return World(0, 1, machine.device)


def measured(name: str) -> Timed:
    """The machine that `seconds.json` knows, for the images of a set."""
    return timed(json.loads(SPEEDS.read_text(encoding="utf-8"))["seconds_an_image"][name])


def do(unit: str, work: Path, scale: float) -> dict[str, Any]:
    """Train one, begun or gone on with, and score it; a grid of its samples stays beside it."""
    import numpy as np
    import torch

    from underpaint import data, model
    from underpaint.compare import split_scoring
    from underpaint.evaluation import features, metrics
    from underpaint.pictures import grid

    name, minutes, arm = unit.split("-", 2)
    first = work / f"{name}-{minutes}-default.npy"
    if arm != "default" and not first.is_file():
        raise units.NotYet
    machine = measured(name)
    run, default = (
        lengthened(recipe(name, which, int(minutes), machine), scale * int(minutes), machine)
        for which in (arm, "default")
    )
    if arm == "plan" and run == default:
        return {"same_as": "default"}
    folder = work / unit
    spent = units.trained(run, folder)
    loaded = model.load(folder, device="cpu")
    error = split_scoring.measure(folder, "held-out loss", "A", most=COUNT, extractor="mobilenetv2")
    dataset, network = data.prepare(run.data), features.load("mobilenetv2")
    ids = dataset.held_out_ids[: max(8, round(scale * COUNT))]
    labels = [int(one) for one in dataset.labels[ids]] if loaded.label_names else None
    samples = loaded.sample(len(ids), seed=0, labels=labels)
    grid(samples[:32], 8).save(work / f"{unit}.png")
    real, drawn = (torch.from_numpy(network(one)) for one in (dataset.batch(ids), samples))
    np.save(work / f"{unit}.npy", drawn.numpy())
    value = metrics.frechet_distance(drawn, real)
    found = {"frechet": metrics.jackknife(metrics.frechet_distance, drawn, real, value)}
    if arm != "default":
        other = torch.from_numpy(np.load(first))
        found["difference"] = metrics.frechet_difference(drawn, other, real)
    shutil.rmtree(folder / "checkpoints")
    ends = {
        f"{k}{end}": v for k, one in found.items() for end, v in zip(LOW_HIGH, one, strict=True)
    }
    (last,) = list(run.stages)[-1:]
    return {
        "network": key(run, last),
        "dropout": run.network.dropout,
        "label_drop": run.network.label_drop,
        "images": spent["images"],
        "flops": spent["flops"],
        "error": error,
        **ends,
    }


def table(names: list[str]) -> str:
    """What there is to do: network, images, core-minutes of each unit."""
    lines, total = [], 0
    for unit in names:
        name, minutes, arm = unit.split("-", 2)
        machine = measured(name)
        run = lengthened(recipe(name, arm, int(minutes), machine), int(minutes), machine)
        (last,) = list(run.stages)[-1:]
        total += int(minutes)
        seen = sum(stage.images for stage in run.stages.values())
        lines.append(f"{unit:32} {seen:9,} images {minutes:>3} core-minutes  {key(run, last)}")
    return "\n".join([*lines, f"{total} core-minutes, and one more each to score them"])


def answer(results: dict[str, dict[str, Any]]) -> str:
    """Plan against default, and the fixed networks, in a sentence for each set and time."""
    said = []
    for name, minutes in dict.fromkeys(tuple(unit.split("-", 2)[:2]) for unit in UNITS):
        unit = f"{name}-{minutes}-"
        if f"{unit}plan" not in results:
            continue
        other = results[f"{unit}default"]
        first = f"default {other['frechet']:.1f}, which is what plan writes"
        parts = []
        for arm in ("plan", "by-images", *FIXED):
            one = results.get(unit + arm, {"same_as": "default"})
            if "same_as" in one:
                continue
            low, high = one["difference_low"], one["difference_high"]
            verdict = "better" if high < 0 else "worse" if low > 0 else "undecided"
            parts.append(f"{arm} {one['frechet']:.1f}: {verdict} ({low:+.1f} to {high:+.1f})")
        if "same_as" not in results[f"{unit}plan"]:
            first = f"default {other['frechet']:.1f}"
        said.append(f"{name.capitalize()}, {minutes} minutes: {'; '.join([first, *parts])}.")
    return " ".join(said) or "Too few units are done."


def write(work: Path, out: Path, scale: float) -> None:
    """The JSON of all units that are done."""
    results = units.gather(UNITS, work)
    about = {**units.made(), "precision": "fp32", "scale": scale, "count": COUNT}
    units.write_json(out, {**about, "answer": answer(results), "units": results})


if __name__ == "__main__":
    if "--seconds" in sys.argv[1:]:
        units.write_json(SPEEDS, seconds())
        raise SystemExit
    raise SystemExit(units.main(__doc__ or "", UNITS, HERE / "results.json", do, write, table))
