"""Which recipe draws the best pictures of 32×32 in four and a half minutes of one core?

    python -m studies.minutes.run --seconds        time all recipes, once, on a quiet machine
    python -m studies.minutes.run                  as many processes as there are cores

Drawn heads (avatars:lorelei), 9,000 to learn from and 1,000 held out. Every recipe sees as many
images as fit in the same seconds of one thread; seconds an image are timed beforehand, all recipes
in turn (`seconds.json`), so that what else the machine does meanwhile changes nothing. One seed,
float32. A unit changes what its name says of its parent in `UNITS`. `again` is `hourglass-x0-muon`
by the network of today, which has GELU itself in place of its tanh approximation and no averaged
values; units named after it see as many images:

    error      mean squared error of x0 of 500 held-out images over eight noise levels
    frechet    distance in MobileNetV2 features (never an FID) of 1,000 samples, by Heun in ten
               steps, to the 1,000 held-out images
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from studies.ladder.run import MUON, X0, merged, options, whole
from studies.lib import units

HERE = Path(__file__).parent
SECONDS, HELD_OUT = 270.0, 1000
SPEEDS = HERE / "seconds.json"
DIT: dict[str, Any] = {  # the quick start as it was, but for the sampler
    "data": {"source": "avatars:lorelei", "size": 32, "held_out": str(HELD_OUT)},
    "space": {"patch": 4},
    "network": {"kind": "dit", "width": 128, "depth": 5, "heads": 4},
    "noise": {"time": "mixed", "stratified": True},
    "stages": {
        "masked": None,
        "whole": {
            "minutes": 0,
            "images": 8,
            "batch": 8,
            "learning_rate": 2e-3,
            "warmup": 1000,
            "schedule": "cooldown",
        },
    },
    "train": {"threads": 1, "precision": "fp32", "sample_every": -1, "check_every": -1},
    "sampling": {"sampler": "heun", "steps": 10, "grid": "uniform"},
    "study": {"whole": 1.0},  # shares of the seconds
}
MASKED: dict[str, Any] = {
    "stages": {"masked": {"mask": "patch", "rate": 0.75, "batch": 32, "minutes": 0}},
    "study": {"masked": 0.4, "whole": 0.6},
}
HOURGLASS: dict[str, Any] = {
    "space": {"patch": 2},
    "network": {"kind": "hourglass", "width": 64, "depth": 3},
    "noise": {"time": "logit-normal", "stratified": False},
}
EDM: dict[str, Any] = {
    "noise": {"process": "edm", "prediction": "edm", "time": "log-normal", "sigma_data": 0.5},
    "sampling": {"grid": "karras"},
}


# unit → its parent and what it changes
UNITS: dict[str, tuple[str | None, dict[str, Any]]] = {
    "dit": (None, DIT),
    "dit-masked": ("dit", MASKED),
    "dit-logit-normal": ("dit", {"noise": {"time": "logit-normal", "stratified": False}}),
    "hourglass": ("dit", HOURGLASS),
    "hourglass-edm": ("hourglass", EDM),
    "hourglass-patch-1": (
        "hourglass",
        {"space": {"patch": 1}, "network": {"width": 32, "options": {"levels": 2}}},
    ),
    "hourglass-x0": ("hourglass", X0),
    "hourglass-x0-batch-4": ("hourglass-x0", whole(batch=4)),
    "hourglass-x0-mixed": ("hourglass-x0", {"noise": {"time": "mixed", "stratified": True}}),
    "hourglass-x0-levels-2": ("hourglass-x0", options(levels=2)),
    "hourglass-x0-patch-4": ("hourglass-x0", {"space": {"patch": 4}}),
    "hourglass-x0-patch-4-128": ("hourglass-x0-patch-4", {"network": {"width": 128}}),
    "hourglass-x0-muon": ("hourglass-x0", {**MUON, **whole(batch=16, learning_rate=4e-3)}),
    "hourglass-x0-muon-rate-8e-3": ("hourglass-x0-muon", whole(learning_rate=8e-3)),
    "hourglass-x0-muon-batch-32": ("hourglass-x0-muon", whole(batch=32, learning_rate=6e-3)),
    "again": ("hourglass-x0-muon", {}),
    "again-cooldown-half": ("again", whole(cooldown=0.5)),
    "again-stratified": ("again", {"noise": {"stratified": True}}),
    **{
        f"{unit}-seed-{seed}": (unit, {"train": {"seed": seed}})
        for seed in (2,)
        for unit in ("again", "again-stratified")
    },
    "hourglass-muon": ("hourglass", {**MUON, **whole(batch=16, learning_rate=4e-3)}),
    "dit-muon": ("dit-logit-normal", {**MUON, **whole(batch=16, learning_rate=4e-3)}),
    "hourglass-x0-96": ("hourglass-x0", {"network": {"width": 96}}),
}


def settings(unit: str) -> dict[str, Any]:
    """Everything that a unit sets, its parents' settings among it."""
    parent, changes = UNITS[unit]
    return merged(settings(parent), changes) if parent else changes


def recipe(unit: str) -> Any:
    """The run of a unit, but for its lengths."""
    from underpaint import config

    asked = {key: value for key, value in settings(unit).items() if key != "study"}
    run = config.from_dict(config.Run, asked, f"minutes: {unit}: ", units.base("default"))
    for stage in run.stages.values():
        stage.images = stage.batch
    return run


def lengths(unit: str, scale: float) -> Any:
    """The run of a unit, its stages as long as its seconds allow."""
    run, timed = recipe(unit), json.loads(SPEEDS.read_text(encoding="utf-8"))["seconds_an_image"]
    seconds = timed["hourglass-x0-muon" if unit.startswith("again") else unit]
    for name, share in settings(unit)["study"].items():
        stage, an_image = run.stages[name], seconds[name]
        stage.images = max(1, round(scale * share * SECONDS / an_image / stage.batch)) * stage.batch
        stage.warmup = min(stage.warmup, stage.images // 5)
    return run


def do(unit: str, work: Path, scale: float) -> dict[str, Any]:
    """Train one, begun or gone on with, and score it; a grid of its samples stays beside it."""
    import torch

    from underpaint import data, model
    from underpaint.compare import split_scoring
    from underpaint.evaluation import features, metrics
    from underpaint.pictures import grid

    folder, run = work / unit, lengths(unit, scale)
    spent = units.trained(run, folder)
    loaded = model.load(folder, device="cpu")
    grid(loaded.sample(32, seed=0), 8).save(work / f"{unit}.png")
    error = split_scoring.measure(folder, "held-out loss", "A", most=500, extractor="mobilenetv2")
    heads = data.prepare(run.data)
    ids, network = heads.held_out_ids, features.load("mobilenetv2")
    samples = loaded.sample(len(ids), seed=0, labels=[int(one) for one in heads.labels[ids]])
    real, drawn = (torch.from_numpy(network(images)) for images in (heads.batch(ids), samples))
    shutil.rmtree(folder / "checkpoints")
    return {
        "images": spent["images"],
        "flops": spent["flops"],
        "parameters": sum(p.numel() for p in loaded.backbone.parameters()),
        "error": error,
        "frechet": float(metrics.frechet_distance(real, drawn)),
    }


def answer(results: dict[str, dict[str, Any]]) -> str:
    """The nearest samples, and what a plain DiT had."""
    best = min(results, key=lambda unit: float(results[unit]["frechet"]))
    shown = {unit: f"`{unit}` {results[unit]['frechet']:.1f}" for unit in results}
    if "dit" not in results or best == "dit":
        return f"The lowest distance of {len(results)} recipes is that of {shown[best]}."
    return (
        f"The lowest distance of {len(results)} recipes is that of {shown[best]}, after "
        f"{results[best]['images']:,} images; {shown['dit']}, after {results['dit']['images']:,}. "
        "One seed each; error and distance do not always agree."
    )


def write(work: Path, out: Path, scale: float) -> None:
    """The JSON of all units that are done."""
    results = units.gather(UNITS, work, lambda unit: {"parent": UNITS[unit][0], **UNITS[unit][1]})
    about = {**units.made(), "precision": "fp32", "scale": scale, "seconds": SECONDS}
    told = {"answer": answer(results)} if results else {}
    units.write_json(out, {**about, **told, "units": results})


if __name__ == "__main__":
    if "--seconds" in sys.argv[1:]:
        from underpaint.compare import timing

        taken = timing.measured({u: recipe(u) for u in UNITS if not u.startswith("again")})
        units.write_json(SPEEDS, {"seconds_an_image": taken})
        raise SystemExit
    raise SystemExit(units.main(__doc__ or "", UNITS, HERE / "results.json", do, write))
