"""Does a model that learned from parts complete pictures better?

    python -m studies.lib.draw; python -m studies.lib.photographs     the pictures, once
    python -m studies.paint.run --table                               what there is to do
    python -m studies.paint.run                                       one or two processes

The recipe `hourglass-64-x0-muon` of studies/ladder, on drawn heads and on photographs of 64×64, in
two arms of equal training FLOPs: on whole images alone (`whole`), or half of the FLOPs on a tenth
of each image and the rest on whole ones (`parts`). Three seeds each. Then a part of held-out
images is erased and drawn anew, as `underpaint edit` does, with Heun in ten steps:

    centre   a square of a quarter of the area
    blocks   half of the area, in squares of 16×16 at random
    right    the right half

and what was drawn is compared with what was there:

    error     mean squared error of the erased pixels (from −1 to 1)
    features  distance of each whole repainted picture to the truth in MobileNetV2's features, mean
    frechet   Fréchet distance of all of them to all of the truths in the same features, no FID

How often each step has to be taken is asked of a DiT of heads (`resample-1` to `-10`): 64
held-out heads of 32×32, the centre.

`filled` in the JSON is the same of the mean colour of what is kept: what needs no model. The effect
is the ratio parts / whole as a geometric mean over seeds, with a t-interval on its logarithm.
"""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from studies.ladder import run as ladder
from studies.lib import units
from studies.paint import page as paint_page

HERE = Path(__file__).parent
RECIPE = "hourglass-64-x0-muon"
BUDGET = 4e12  # training FLOPs
COUNT = 96  # held-out images that are repainted
SHOWN = 6  # of them in the figure
BLOCK = 16  # pixels a side
HOW: dict[str, Any] = {"resample": 5, "soft": 0}
SETS: dict[str, dict[str, Any]] = {"heads": {}, "photographs": ladder.PHOTOGRAPHS}
ARMS: dict[str, dict[str, Any]] = {
    "whole": {},
    "parts": ladder.merged(
        ladder.MASKED,
        # four times the images of a whole step, at the same learning rate
        {"stages": {"masked": {"batch": 64, "learning_rate": 4e-3, "warmup": 667}}},
    ),
}
SEEDS = (1, 2, 3)
UNITS = [f"{which}-{arm}-{seed}" for seed in SEEDS for which in SETS for arm in ARMS]
RESAMPLED = {f"resample-{times}": times for times in (1, 2, 5, 10)}
RESAMPLED_COUNT = 64


def settings(unit: str) -> dict[str, Any]:
    """Everything that a unit sets."""
    if unit in RESAMPLED:
        return {"model": "heads", "count": RESAMPLED_COUNT, **HOW} | {"resample": RESAMPLED[unit]}
    which, arm, seed = unit.split("-")
    found = ladder.settings(RECIPE)
    for changes in (SETS[which], ARMS[arm], {"train": {"seed": int(seed)}}):
        found = ladder.merged(found, changes)
    about = {key: found["study"][key] for key in ("shares", "images")}
    return found | {"study": about | {"budget": BUDGET, "half": "B", "count": COUNT}}


def recipe(unit: str, scale: float) -> Any:
    """The run of a unit: as long as its FLOPs allow."""
    from underpaint import config
    from underpaint.compare import study

    asked = settings(unit)
    about = asked.pop("study")
    run = config.from_dict(config.Run, asked, f"paint: {unit}: ", units.base("default"))
    height, width, channels, labels = about["images"]
    return study.scaled(
        run, about["shares"], about["budget"], scale, (height, width), channels, labels
    )


def masks(count: int, side: int) -> dict[str, NDArray[np.bool_]]:
    """What is kept of each picture: bool [count, side, side], the same for all arms."""
    quarter, half = side // 4, side // 2
    centre, right = np.ones((2, count, side, side), np.bool_)
    centre[:, quarter : quarter + half, quarter : quarter + half] = False
    right[:, :, half:] = False
    n = max(2, side // BLOCK)
    order = np.random.default_rng(0).random((count, n * n)).argsort(1)
    blocks = (order < n * n // 2).reshape(count, n, n).repeat(side // n, 1).repeat(side // n, 2)
    return {"centre": centre, "blocks": blocks, "right": right}


def do(unit: str, work: Path, scale: float) -> dict[str, Any]:
    """Train one, begun or gone on with, and repaint; the first pictures stay beside it."""
    from underpaint import config, data, model
    from underpaint.compare import split_scoring

    if unit in RESAMPLED:
        return resampled(RESAMPLED[unit], work, scale)
    folder = work / unit
    spent = units.trained(recipe(unit, scale), folder)
    loaded = model.load(folder, device="cpu")
    dataset = data.prepare(config.load(folder / "config.yaml").data)
    ids = split_scoring.half(dataset, "B", max(8, round(COUNT * scale)))
    truth = np.array(dataset.batch(ids))
    labels = [int(label) for label in dataset.labels[ids]] if loaded.label_names else None
    found: dict[str, Any] = {}
    shown: dict[str, NDArray[Any]] = {"truth": truth[:SHOWN]}
    for name, keep in masks(len(ids), truth.shape[1]).items():
        drawn = loaded.inpaint(truth, keep, seed=0, labels=labels, **HOW)
        found[name] = scored(drawn, truth, keep) | {
            "filled": scored(filled(truth, keep), truth, keep)
        }
        shown |= {f"{name} kept": keep[:SHOWN], name: drawn[:SHOWN]}
    np.savez_compressed(work / f"{unit}.npz", **shown)  # type: ignore[arg-type]
    shutil.rmtree(folder / "checkpoints")
    return {**spent, "masks": found}


def resampled(times: int, work: Path, scale: float) -> dict[str, Any]:
    """A DiT of heads (`units.heads`), each step taken so often."""
    from underpaint import config, data, model

    loaded = model.load(units.heads(work), device="cpu")
    dataset = data.prepare(config.preset("quickstart").data)
    ids = dataset.held_out_ids[: max(8, round(RESAMPLED_COUNT * scale))]
    truth, labels = np.array(dataset.batch(ids)), [int(label) for label in dataset.labels[ids]]
    keep = masks(len(ids), truth.shape[1])["centre"]
    drawn = loaded.inpaint(truth, keep, seed=0, labels=labels, **HOW | {"resample": times})
    return {"masks": {"centre": scored(drawn, truth, keep)}}


def filled(images: NDArray[np.uint8], keep: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Erased pixels in the mean colour of those that are kept."""
    found = images.copy()
    for image, kept in zip(found, keep, strict=True):
        image[~kept] = np.rint(image[kept].mean(0))
    return found


def scored(
    drawn: NDArray[np.uint8], truth: NDArray[np.uint8], keep: NDArray[np.bool_]
) -> dict[str, float]:
    """How far repainted pictures uint8 [n, H, W, C] are from the truth."""
    import torch

    from underpaint.evaluation import metrics

    squares = ((drawn.astype(np.float64) - truth) / 127.5) ** 2
    one, two = (_network()(images) for images in (drawn, truth))
    return {
        "error": float(squares[~keep].mean()),
        "features": float(np.linalg.norm(one - two, axis=1).mean()),
        "frechet": float(metrics.frechet_distance(torch.from_numpy(two), torch.from_numpy(one))),
    }


@functools.cache
def _network() -> Any:
    from underpaint.evaluation import features

    return features.load("mobilenetv2")


def table(names: list[str]) -> str:
    """What there is to do: images of each stage, and core-minutes of training."""
    lines = []
    trained = [unit for unit in names if unit not in RESAMPLED]
    for unit in trained:
        stages = recipe(unit, 1.0).stages
        images = ", ".join(f"{name} {stage.images:,} images" for name, stage in stages.items())
        lines.append(f"{unit:22} {images}")
    minutes = len(trained) * BUDGET / ladder.RATE / 60
    return "\n".join([*lines, f"{minutes:.0f} core-minutes, and as much again to repaint"])


def write(work: Path, out: Path, scale: float) -> None:
    """The JSON of all units that are done, and the figure."""
    results = units.gather([*UNITS, *RESAMPLED], work, settings)
    for result in results.values():  # of processes that shared a machine with other work
        result.pop("seconds", None), result.pop("stage_seconds", None)
    about = {**units.made(), "precision": "fp32", "scale": scale, "recipe": RECIPE}
    about |= {"budget": BUDGET, "how": HOW}
    effects = paint_page.effects(results)
    units.write_json(out, {**about, "count": COUNT, "effects": effects, "units": results})
    paint_page.draw(work, out.with_name("repainted.png"))


if __name__ == "__main__":
    raise SystemExit(
        units.main(__doc__ or "", [*UNITS, *RESAMPLED], HERE / "results.json", do, write, table)
    )
