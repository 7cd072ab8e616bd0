"""How should training times be drawn? Two laws, each alone or spread over the batch.

    python -m studies.times.run                 as many processes as there are cores

`logit-normal` times of the flow against `mixed` ones, of which a fifth are uniform; drawn
independently, or stratified: one in each of a batch's equally likely parts of the law. Each of
the four is tried with three seeds on two tasks:

    fresh   the quick start's network and stages on 10,000 heads, from nothing, 28,000 images
    few     100 of another style, from weights of a DiT on heads, 4,000 images in batches of 8

Scores: Fréchet distance of 500 samples to held-out images (MobileNetV2 features, no FID) and the
error on held-out images, of half B; there is nothing to choose. Effects are ratios to independent
logit-normal times, geometric means over seeds with a t-interval, paired by seed.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

from studies.lib import samples, units

HERE = Path(__file__).parent
LAWS = {
    "logit-normal": {"time": "logit-normal", "stratified": False},
    "logit-normal-stratified": {"time": "logit-normal", "stratified": True},
    "mixed": {"time": "mixed", "stratified": False},
    "mixed-stratified": {"time": "mixed", "stratified": True},
}
TASKS = {
    "fresh": {
        "data": {"source": "avatars:lorelei", "held_out": "2000"},
        "stages": {
            "masked": {"minutes": 0, "images": 20_000},
            "whole": {"minutes": 0, "images": 8_000},
        },
    },
    "few": {
        "data": {"source": "avatars:pixel-art", "held_out": "2000", "limit": 100},
        "stages": {
            "masked": None,
            "whole": {
                "minutes": 0,
                "images": 4_000,
                "batch": 8,
                "learning_rate": 4e-3,
                "schedule": "constant",
                "warmup": 1000,
            },
        },
    },
}
SEEDS = (1, 2, 3)
COUNT = 500  # samples, and images of a half
UNITS = [f"{task}_{law}_{seed}" for seed in SEEDS for task in TASKS for law in LAWS]


def do(unit: str, work: Path, scale: float) -> dict[str, Any]:
    """Train one, begun or gone on with, and score it."""
    from underpaint import config

    task, law, seed = unit.split("_")
    train = {"threads": 1, "seed": int(seed), "sample_every": -1, "check_every": -1}
    changes = TASKS[task] | {"noise": LAWS[law], "train": train, "sampling": units.EULER}
    run = config.from_dict(config.Run, changes, "times: ", units.base("quickstart"))
    for stage in run.stages.values():
        stage.images = max(1, int(stage.images * scale) // stage.batch) * stage.batch
    folder = work / unit
    spent = units.trained(run, folder, units.heads(work) if task == "few" else None)
    scores = samples.scored(folder, spent["images"], COUNT)
    shutil.rmtree(folder / "checkpoints")
    return {**spent, **scores}


def settings(unit: str) -> dict[str, Any]:
    """What the name of a unit stands for."""
    task, law, seed = unit.split("_")
    return {"task": task, **LAWS[law], "seed": int(seed)}


def effects(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Ratios of each law's scores to the first's, where two seeds of both are done."""
    from underpaint.evaluation.intervals import of_mean

    told = []
    first, *others = LAWS
    for task in TASKS:
        for law in others:
            pairs = [
                (results[f"{task}_{law}_{seed}"], results[f"{task}_{first}_{seed}"])
                for seed in SEEDS
                if {f"{task}_{law}_{seed}", f"{task}_{first}_{seed}"} <= results.keys()
            ]
            if len(pairs) < 2:
                continue
            found: dict[str, Any] = {"task": task, "law": law, "seeds": len(pairs)}
            for score in ("frechet_B", "held_out"):
                spread = of_mean([math.log(one[score] / two[score]) for one, two in pairs])
                assert spread is not None  # two values at least
                found[score] = [math.exp(v) for v in (spread.value, spread.low, spread.high)]
            told.append(found)
    return told


def write(work: Path, out: Path, scale: float) -> None:
    """The JSON of all units that are done."""
    results = units.gather(UNITS, work, settings)
    told = {**units.made(), "scale": scale, "count": COUNT, "effects": effects(results)}
    units.write_json(out, {**told, "units": results})


if __name__ == "__main__":
    raise SystemExit(units.main(__doc__ or "", UNITS, HERE / "results.json", do, write))
