"""What makes training cheaper? One ingredient after the other, at equal training FLOPs.

    python -m studies.lib.draw                     the pictures, once
    python -m studies.ladder.run --table           what there is to do, with core-minutes
    python -m studies.ladder.run                   as many processes as there are cores
    python -m studies.ladder.evidence              what `underpaint plan` goes by, from the results

Drawn heads of 64×64, 20,000 to learn from and 5,000 held out. A unit is a run of its own: it begins
with the settings of its parent in `UNITS` and changes what its name says. Units of one rung spend
the same FLOPs (three times the forward pass of each image, and the optimiser's), one seed, and are
scored on half A of the held-out images, but for those named `end-`, which are scored on half B:

    error      mean squared error of x0 of 512 images over eight noise levels
    frechet    distance in MobileNetV2 features (never an FID) of 400 samples, by Heun in ten steps,
               to 400 images

Both decide which ingredient stays; what is not said of data, budget and seed is as in `STUDY`. The
other pictures: `python -m studies.lib.draw --size 128`, `python -m studies.lib.photographs`, and
Debian's dataset-fashion-mnist. All in float32, so that units of several machines may stand
beside each other; seconds are measured apart, on a quiet machine.

Units of the hourglass were trained by one that had the tanh approximation of GELU, which is slow
on CPUs, and averaged the values of later blocks with the first block's (arXiv 2410.17897), which
changed neither score in a unit of its own and is gone. `-again` is the best recipe by the network
of today.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from studies.lib import units

HERE = Path(__file__).parent
DATA = {"source": "runs/data/lorelei-64.zip", "size": 64, "held_out": "5000"}
BUDGET = 1.8e13  # training FLOPs of a rung
RATE = 4.5e10  # FLOPs a second of one thread, for the table of what there is to do

STUDY: dict[str, Any] = {
    "budget": BUDGET,
    "shares": {"whole": 1.0},  # of the FLOPs, by stage
    "images": (64, 64, 3, 8),  # height, width, channels, labels
    "half": "A",
    "error": 512,  # held-out images
    "frechet": 400,  # samples, and images
    "steps": 0,  # of the sampler for a second distance
}
ALONE = {"threads": 1, "precision": "fp32", "sample_every": -1, "check_every": -1}


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes`, section by section."""
    found = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(found.get(key), dict)
        found[key] = merged(found[key], value) if both else value
    return found


# the tuned plain DiT of studies/acceleration: learning rate and batch the best of ten trials
DIT: dict[str, Any] = {
    "data": DATA,
    "space": {"patch": 4},
    "network": {"kind": "dit"},
    "noise": {"time": "logit-normal", "stratified": False},
    "stages": {
        "masked": None,
        "whole": {
            "minutes": 0,
            "images": 4,
            "batch": 4,
            "learning_rate": 4e-3,
            "warmup": 667,
            "schedule": "cooldown",
        },
    },
    "train": ALONE,
    "sampling": {"sampler": "heun", "steps": 10},
    "study": STUDY,
}
# as published for CelebA 64×64 (arXiv 2006.11239, 2306.11363), at this network's size
DDPM: dict[str, Any] = {
    "network": {"kind": "uvit"},
    "noise": {"process": "vp-linear", "prediction": "eps", "time": "uniform", "steps": 1000},
    "stages": {"whole": {"batch": 128, "learning_rate": 2e-4, "warmup": 0, "schedule": "constant"}},
    "train": {"betas": [0.99, 0.99], "weight_decay": 0.03, "decay": "all"},
    "sampling": {"grid": "karras"},
}
X0: dict[str, Any] = {"noise": {"prediction": "x0", "weighting": "velocity"}}
MUON = {"train": {"optimizer": "muon"}}
HOURGLASS: dict[str, Any] = {"network": {"kind": "hourglass", "depth": 3}}
HALF_RESOLUTION: dict[str, Any] = {
    "stages": {"masked": {"mask": "none", "rate": 0.0, "size": 32, "batch": 4, "minutes": 0}},
    "study": {"shares": {"masked": 0.2, "whole": 0.8}},
}
MASKED: dict[str, Any] = {
    "stages": {"masked": {"mask": "block", "block": 2, "rate": 0.9, "batch": 16, "minutes": 0}},
    "study": {"shares": {"masked": 0.5, "whole": 0.5}},
}
AT_128 = {
    "data": {"source": "runs/data/lorelei-128.zip", "size": 128},
    "study": {"images": (128, 128, 3, 8), "budget": 2.4e13},
}
PHOTOGRAPHS = {
    "data": {
        "source": "runs/data/photographs-64.zip",
        "held_out": "runs/data/photographs-64-held-out.zip",
    },
    "study": {"images": (64, 64, 3, 0)},
}
FASHION: dict[str, Any] = {
    "data": {"source": "/usr/share/datasets/fashion-mnist", "size": 28, "channels": 1},
    "study": {"images": (28, 28, 1, 10), "budget": 4e12},
}
ADAMW = "hourglass-64-x0"  # the best so far without Muon
BEST = f"{ADAMW}-muon"  # so far
ENDS = {  # parent and budget, three seeds each
    "ddpm": ("ddpm", BUDGET),
    "ddpm-batch-4": ("ddpm-batch-4", BUDGET),
    "dit": ("dit", BUDGET),
    f"{BEST}-tenth": (BEST, BUDGET / 10),
    f"{BEST}-quarter": (BEST, BUDGET / 4),
    BEST: (BEST, BUDGET),
}


def whole(**changes: Any) -> dict[str, Any]:
    """Changes of the stage on whole images."""
    return {"stages": {"whole": changes}}


def options(**changes: Any) -> dict[str, Any]:
    """Changes of what only this kind of network has."""
    return {"network": {"options": changes}}


# unit → its parent and what it changes
UNITS: dict[str, tuple[str | None, dict[str, Any]]] = {
    "dit": (None, DIT),
    "ddpm": ("dit", DDPM),
    # the published recipe at a batch with which it learns in so short a time
    "ddpm-batch-4": ("ddpm", whole(batch=4)),
    "ddpm-batch-4-rate-1e-3": ("ddpm", whole(batch=4, learning_rate=1e-3)),
    # patch and prediction
    "patch-8": ("dit", {"space": {"patch": 8}, **X0, **whole(learning_rate=2e-3)}),
    "patch-8-min-snr": ("patch-8", {"noise": {"weighting": "min-snr"}}),
    "patch-8-rate-4e-3": ("patch-8", whole(learning_rate=4e-3)),
    "patch-8-rate-1e-3": ("patch-8", whole(learning_rate=1e-3)),
    "patch-8-batch-8": ("patch-8", whole(batch=8)),
    "patch-8-mixed": ("patch-8", {"noise": {"time": "mixed", "stratified": True}}),
    "patch-8-depth-8": ("patch-8", {"network": {"depth": 8}}),
    "patch-8-width-192": ("patch-8", {"network": {"width": 192, "heads": 6}}),
    # the hourglass and its parts
    "hourglass": ("dit", {**HOURGLASS, **whole(learning_rate=2e-3)}),
    "hourglass-x0": ("hourglass", X0),
    "hourglass-64": ("hourglass", {"network": {"width": 64}}),
    "hourglass-64-x0": ("hourglass-64", X0),
    "hourglass-96": ("hourglass", {"network": {"width": 96}}),
    "hourglass-p2": (
        "hourglass",
        {"space": {"patch": 2}, "network": {"width": 64, "options": {"levels": 2}}},
    ),
    "hourglass-levels-2": ("hourglass", options(levels=2)),
    "hourglass-depth-5": ("hourglass", {"network": {"depth": 5}}),
    # a convolutional head inside each patch (`detail.py`)
    "patch-8-detail": ("patch-8", {"network": {"kind": "dit-detail"}}),
    "hourglass-mixed": ("hourglass", {"noise": {"time": "mixed", "stratified": True}}),
    # the optimiser
    "patch-8-muon": ("patch-8", {**MUON, **whole(learning_rate=4e-3, batch=16)}),
    "patch-8-muon-batch-8": ("patch-8-muon", whole(learning_rate=4e-3, batch=8)),
    # of the best of those: shape, optimiser, batch and rate, times, resolution, masks
    f"{ADAMW}-depth-5": (ADAMW, {"network": {"depth": 5}}),
    f"{ADAMW}-96": (ADAMW, {"network": {"width": 96}}),
    f"{ADAMW}-muon": (ADAMW, {**MUON, **whole(learning_rate=4e-3, batch=16)}),
    f"{ADAMW}-mixed": (ADAMW, {"noise": {"time": "mixed", "stratified": True}}),
    f"{ADAMW}-stratified": (ADAMW, {"noise": {"stratified": True}}),
    f"{ADAMW}-rate-4e-3": (ADAMW, whole(learning_rate=4e-3)),
    f"{ADAMW}-batch-2": (ADAMW, whole(batch=2, learning_rate=1.4e-3)),
    f"{ADAMW}-half-resolution": (ADAMW, HALF_RESOLUTION),
    f"{ADAMW}-masked": (ADAMW, MASKED),
    f"{ADAMW}-detail": (ADAMW, {"network": {"kind": "hourglass-detail"}}),
    f"{BEST}-again": (BEST, {}),
    f"{BEST}-stratified": (f"{BEST}-again", {"noise": {"stratified": True}}),
    # windows that overlap (`overlap.py`)
    f"{BEST}-overlap": (f"{BEST}-stratified", {"network": {"kind": "hourglass-overlap"}}),
    f"{BEST}-ema-0.9995": (BEST, {"train": {"ema": 0.9995}}),
    f"{BEST}-batch-8": (BEST, whole(batch=8, learning_rate=2.8e-3)),
    f"{BEST}-rate-8e-3": (BEST, whole(learning_rate=8e-3)),
    f"{BEST}-mixed": (BEST, {"noise": {"time": "mixed", "stratified": True}}),
    # where coarse tokens are many
    f"128-{ADAMW}": (ADAMW, AT_128),
    f"128-{ADAMW}-masked": (f"128-{ADAMW}", MASKED),
    # other pictures
    "photographs-dit": ("dit", PHOTOGRAPHS),
    f"photographs-{BEST}": (BEST, PHOTOGRAPHS),
    f"photographs-{BEST}-stratified": (f"{BEST}-stratified", PHOTOGRAPHS),
    f"photographs-{BEST}-overlap": (f"{BEST}-overlap", PHOTOGRAPHS),
    "fashion-dit": ("dit", FASHION),
    f"fashion-{BEST}": (BEST, merged(FASHION, {"space": {"patch": 2}})),
    # MaskDM as published, against the same without its first stage
    "maskdm": (
        "ddpm",
        {
            "stages": {
                "masked": MASKED["stages"]["masked"]
                | {"batch": 256, "learning_rate": 2e-4, "warmup": 0, "schedule": "constant"},
                "whole": {"keep_optimizer": False},
            },
            "study": MASKED["study"],
        },
    ),
    "maskdm-batch-4": ("maskdm", {"stages": {"masked": {"batch": 16}, "whole": {"batch": 4}}}),
    "maskdm-batch-4-quarter": ("maskdm-batch-4", {"study": {"budget": BUDGET / 4}}),
    "maskdm-batch-4-tenth": ("maskdm-batch-4", {"study": {"budget": BUDGET / 10}}),
}
UNITS |= {
    f"end-{name}-{seed}": (
        parent,
        {
            "train": {"seed": seed},
            "study": {"budget": budget, "half": "B", "error": 1024, "frechet": 500, "steps": 20},
        },
    )
    for name, (parent, budget) in ENDS.items()
    for seed in (1, 2, 3)
}

# what `underpaint plan` chooses from (`evidence.py`): six networks at most, at one budget or more
CANDIDATES = (
    "dit",
    "patch-8",
    "hourglass",
    "hourglass-64",
    ADAMW,
    f"{BEST}-stratified",
)


def settings(unit: str) -> dict[str, Any]:
    """Everything that a unit sets, its parents' settings among it."""
    parent, changes = UNITS[unit]
    return merged(settings(parent), changes) if parent else changes


def recipe(unit: str, scale: float) -> Any:
    """The run of a unit: as long as its FLOPs allow."""
    import studies.ladder.detail
    import studies.ladder.overlap  # noqa: F401  (their networks)
    from underpaint import config
    from underpaint.compare import study

    asked = dict(settings(unit))
    about = asked.pop("study")
    run = config.from_dict(config.Run, asked, f"ladder: {unit}: ", units.base("default"))
    height, width, channels, labels = about["images"]
    return study.scaled(
        run, about["shares"], about["budget"], scale, (height, width), channels, labels
    )


def do(unit: str, work: Path, scale: float) -> dict[str, Any]:
    """Train one, begun or gone on with, and score it; a grid of its samples stays beside it."""
    from underpaint import model
    from underpaint.compare import split_scoring
    from underpaint.pictures import grid

    folder, about = work / unit, settings(unit)["study"]
    spent = units.trained(recipe(unit, scale), folder)
    loaded = model.load(folder, device="cpu")
    grid(loaded.sample(24, seed=0), 8).save(work / f"{unit}.png")

    def score(name: str, **sampling: Any) -> float:
        most = about["error"] if name == "held-out loss" else about["frechet"]
        return split_scoring.measure(
            folder, name, about["half"], most=most, extractor="mobilenetv2", **sampling
        )

    found = {"error": score("held-out loss"), "frechet": score("FD")}
    if about["steps"]:
        found["frechet_converged"] = score("FD", steps=about["steps"])
    parameters = sum(p.numel() for p in loaded.backbone.parameters())
    shutil.rmtree(folder / "checkpoints")
    return {**spent, "parameters": parameters, **found}


def table(names: list[str]) -> str:
    """What there is to do: images, FLOPs an image and core-minutes of each unit."""
    lines, total = [], 0.0
    for unit in names:
        run = recipe(unit, 1.0)
        images = sum(stage.images for stage in run.stages.values())
        budget = settings(unit)["study"]["budget"]
        minutes = budget / RATE / 60
        total += minutes
        lines.append(
            f"{unit:26} {images:9,} images {budget / images / 1e9:6.2f} GFLOP each "
            f"{minutes:5.1f} core-minutes"
        )
    return "\n".join([*lines, f"{total:.0f} core-minutes, and half as much again to score them"])


def write(work: Path, out: Path, scale: float) -> None:
    """The JSON of all units that are done."""
    results = units.gather(UNITS, work, lambda unit: {"parent": UNITS[unit][0], **UNITS[unit][1]})
    for result in results.values():  # of processes that shared a machine with other work
        result.pop("seconds", None), result.pop("stage_seconds", None)
    told = {**units.made(), "precision": "fp32", "scale": scale, "budget": BUDGET}
    units.write_json(out, {**told, "units": results})


if __name__ == "__main__":
    raise SystemExit(units.main(__doc__ or "", UNITS, HERE / "results.json", do, write, table))
