"""Does augmentation that the network is given as a condition show in samples, and does it pay?

    python -m studies.augment.run                  as many processes as there are cores

1,000 drawn heads of 32×32, all upright, 64 epochs of a small hourglass; or 300 of them, 320 epochs.
1,000 others are held out. One seed, float32. The learning rate is constant for three quarters of
the images; then comes a cool-down:

    none               no augmentation
    throughout         each change with probability 0.2 (of 300: 0.4), in the cool-down, too
    until-cooldown     the cool-down's images are as they are

    turned     share of 1,000 samples that are most like the mean head when that is turned by a
               quarter or more; of the held-out heads for comparison
    frechet    distance in MobileNetV2 features (never an FID) of the samples to the held-out heads
    error      mean squared error of x0 of 500 held-out heads over eight noise levels
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from studies.lib import units
from studies.minutes import run as minutes

HERE = Path(__file__).parent
HELD_OUT = 1000
EPOCHS = {1000: 64, 300: 320}
ARMS = {  # images, probability of each change before and in the cool-down
    "none": (1000, 0.0, 0.0),
    "throughout": (1000, 0.2, 0.2),
    "until-cooldown": (1000, 0.2, 0.0),
    "none-300": (300, 0.0, 0.0),
    "until-cooldown-300": (300, 0.4, 0.0),
    "throughout-300": (300, 0.4, 0.4),
}


def recipe(arm: str, scale: float) -> Any:
    """The run of an arm."""
    from underpaint import config

    count, *augments = ARMS[arm]
    asked = minutes.settings("hourglass-x0-patch-4")
    whole = dict(asked["stages"]["whole"])
    batches = int(count * EPOCHS[count] * scale) // whole["batch"]
    parts = (batches * 3 // 4, batches - batches * 3 // 4)
    early, late = (
        whole | {"images": part * whole["batch"], "augment": augment}
        for part, augment in zip(parts, augments, strict=True)
    )
    early |= {"schedule": "constant"}
    late |= {"schedule": "cosine", "warmup": 0}
    changes = {key: value for key, value in asked.items() if key != "study"} | {
        "data": asked["data"] | {"limit": count},
        "stages": {"masked": None, "whole": None, "early": early, "late": late},
    }
    return config.from_dict(config.Run, changes, f"augment: {arm}: ", units.base("default"))


def turned(images: np.ndarray, mean: np.ndarray) -> float:
    """Share of images uint8 [n, S, S, C] that are nearest to `mean` turned by a quarter or more."""
    turns = np.stack([np.rot90(mean, k) for k in range(4)]).reshape(4, -1)
    flat = images.reshape(len(images), -1).astype(np.float64)
    flat = (flat - flat.mean(1, keepdims=True)) / flat.std(1, keepdims=True)
    turns = (turns - turns.mean(1, keepdims=True)) / turns.std(1, keepdims=True)
    return float(((flat @ turns.T).argmax(1) > 0).mean())


def do(arm: str, work: Path, scale: float) -> dict[str, Any]:
    """Train one, begun or gone on with, and score it; a grid of its samples stays beside it."""
    import torch

    from underpaint import data, model
    from underpaint.compare import split_scoring
    from underpaint.evaluation import features, metrics
    from underpaint.pictures import grid

    folder, run = work / arm, recipe(arm, scale)
    spent = units.trained(run, folder)
    loaded = model.load(folder, device="cpu")
    heads, network = data.prepare(run.data), features.load("mobilenetv2")
    ids = heads.held_out_ids[:HELD_OUT]
    samples = loaded.sample(len(ids), seed=0, labels=[int(one) for one in heads.labels[ids]])
    grid(samples[:32], 8).save(work / f"{arm}.png")
    real, drawn = (torch.from_numpy(network(images)) for images in (heads.batch(ids), samples))
    mean = heads.batch(heads.train_ids).astype(np.float64).mean(0)
    error = split_scoring.measure(folder, "held-out loss", "A", most=500, extractor="mobilenetv2")
    shutil.rmtree(folder / "checkpoints")
    return {
        "images": spent["images"],
        "turned": turned(np.asarray(samples), mean),
        "turned_held_out": turned(heads.batch(ids), mean),
        "frechet": float(metrics.frechet_distance(real, drawn)),
        "error": error,
    }


def answer(results: dict[str, dict[str, Any]]) -> str:
    """What augmentation did to the distance and to the share of turned samples."""
    told = []
    for count in EPOCHS:
        alike = {arm: results[arm] for arm in ARMS if ARMS[arm][0] == count and arm in results}
        each = ", ".join(
            f"`{arm}` {one['frechet']:.1f} ({one['turned']:.1%} turned)"
            for arm, one in alike.items()
        )
        told += [f"{count:,} images: {each}."] if alike else []
    return "Distances. " + " ".join(told)


def write(work: Path, out: Path, scale: float) -> None:
    """The JSON of all arms that are done."""
    results = units.gather(ARMS, work, lambda arm: {"arm": ARMS[arm]})
    about = {**units.made(), "precision": "fp32", "scale": scale, "held_out": HELD_OUT}
    told = {"answer": answer(results)} if results else {}
    units.write_json(out, {**about, **told, "units": results})


if __name__ == "__main__":
    raise SystemExit(units.main(__doc__ or "", ARMS, HERE / "results.json", do, write))
