"""Do the packaged weights help with few images, by the recipe of `default`?

    python -m studies.starts.run                as many processes as there are cores

The task and scores of studies/transfer, with the network that won since and one seed: 1,000 or 100
heads of another style (avatars:pixel-art, 32×32), whole images at a constant learning rate, from
`pretrained:lorelei` (`packaged`), from 32,000 images of photographs at 32×32 by the same recipe
(`camera`; `python -m studies.lib.photographs`) or from nothing (`scratch`), at the recipe's
learning rate, a `half` or a `quarter` of it. Each run is scored at its points by 500 samples of its
averaged weights, with labels, against 500 held-out images: half A chooses the best rate at each
point and the best point, half B is reported.

`photographs` asks for images of another size: 300 photographs of 64×64, for which the weights'
patches are resampled from 2×2 to 4×4 pixels.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

from studies.lib import samples, units

HERE = Path(__file__).parent
PACKAGED = "pretrained:lorelei"
COUNT = 500  # samples, and images of a half
HEADS = {"source": "avatars:pixel-art", "size": 32, "held_out": "2000"}
PHOTOGRAPHS = {
    "source": "runs/data/photographs-64.zip",
    "held_out": "runs/data/photographs-64-held-out.zip",
    "size": 64,
    "limit": 300,
}
TASKS: dict[str, tuple[dict[str, Any], int, tuple[int, ...]]] = {  # data, patch, points
    "1000": (HEADS | {"limit": 1000}, 2, (8_000, 16_000, 32_000)),
    "100": (HEADS | {"limit": 100}, 2, (2_000, 4_000, 8_000, 16_000)),
    "photographs": (PHOTOGRAPHS, 4, (4_000, 8_000)),
}
ARMS = ("packaged", "scratch")
CAMERA = "camera"  # the weights of another subject
LEARNED = 32_000  # images that they have seen
RATES = {"half": 0.5, "quarter": 0.25}  # of the recipe's learning rate
FEW = ("1000", "100")
UNITS = [f"{task}-{arm}" for task in TASKS for arm in ARMS]
UNITS += [f"{task}-{CAMERA}" for task in FEW]
UNITS += [f"{task}-{arm}-{rate}" for task in FEW for rate in RATES for arm in ARMS]


def recipe(unit: str, scale: float) -> tuple[Any, list[int]]:
    """The run of a unit, and its points."""
    from underpaint import config

    task, _, *rate = unit.split("-")
    data, patch, points = TASKS[task]
    run = config.preset("default")
    batch, factor = run.last.batch, math.prod(RATES[name] for name in rate)
    scaled = [max(1, round(scale * point / batch)) * batch for point in points]
    changes = {
        "data": data,
        "space": {"patch": patch},
        "noise": units.INDEPENDENT,
        "stages": {
            "whole": {
                "images": scaled[-1],
                "schedule": "constant",
                "learning_rate": factor * run.last.learning_rate,
            }
        },
        "train": {
            "threads": 1,
            "seed": 1,
            "precision": "fp32",
            "sample_every": -1,
            "check_every": -1,
            "checkpoint_every": math.gcd(*scaled),
            "keep": 1000,
        },
    }
    return config.from_dict(config.Run, changes, "starts: ", run), scaled


def camera(work: Path, scale: float) -> str:
    """The run whose weights `camera` begins with, trained where it is not there."""
    from underpaint import config

    batch = config.preset("default").last.batch
    changes = {
        "data": {"source": PHOTOGRAPHS["source"], "held_out": "1000", "size": 32},
        "space": {"patch": 2},
        "noise": units.INDEPENDENT,
        "stages": {"whole": {"images": max(1, round(scale * LEARNED / batch)) * batch}},
        "train": {"threads": 1, "precision": "fp32", "sample_every": -1, "check_every": -1},
    }
    run = config.from_dict(config.Run, changes, "starts: ", config.preset("default"))
    return units.shared(run, work / CAMERA)


def do(unit: str, work: Path, scale: float) -> dict[str, Any]:
    """Train one, begun or gone on with, and score every point."""
    run, points = recipe(unit, scale)
    arm = unit.split("-")[1]
    start = PACKAGED if arm == "packaged" else camera(work, scale) if arm == CAMERA else None
    spent = units.trained(run, work / unit, start)
    curve = [{"images": n, **scored(work / unit, n)} for n in points]
    shutil.rmtree(work / unit / "checkpoints")
    best = min(curve, key=lambda point: point["frechet_A"])
    found = {"best": best["images"], "frechet": best["frechet_B"], "error": best["held_out"]}
    return {"images": spent["images"], "flops": spent["flops"], **found, "curve": curve}


def scored(folder: Path, images: int) -> dict[str, float]:
    """What `samples.scored` measures."""
    return samples.scored(folder, images, COUNT)


def answer(results: dict[str, dict[str, Any]]) -> str:
    """The ratio of the distances of each task that is done, at best and at equal points."""
    said = []
    for task in TASKS:
        scratch = _points(results, f"{task}-scratch")
        for arm, weights in (("packaged", "heads"), (CAMERA, "photographs")):
            one = _points(results, f"{task}-{arm}")
            if not one or not scratch:
                continue
            points = ", ".join(f"{one[n][1] / scratch[n][1]:.2f} after {n:,}" for n in one)
            (_, mine), (_, other) = min(one.values()), min(scratch.values())
            real = results[f"{task}-{arm}"]["curve"][0]["floor"]
            images = "300 photographs" if task == "photographs" else f"{int(task):,} heads"
            said.append(
                f"{images}, from weights of {weights}: {mine / other:.2f} of the distance from "
                f"scratch ({mine:.1f} against {other:.1f}, real images {real:.1f}; {points} images)"
            )
    return "; ".join(said) + ". One seed." if said else "Too few units are done."


def _points(results: dict[str, dict[str, Any]], arm: str) -> dict[int, tuple[float, float]]:
    """After so many images the distances to halves A and B of an arm at its best rate there."""
    curves = [found["curve"] for unit, found in results.items() if f"{unit}-".startswith(f"{arm}-")]
    return {
        points[0]["images"]: min((point["frechet_A"], point["frechet_B"]) for point in points)
        for points in zip(*curves, strict=True)
    }


def write(work: Path, out: Path, scale: float) -> None:
    """The JSON of all units that are done."""
    results = units.gather(UNITS, work)
    about = {**units.made(), "precision": "fp32", "scale": scale, "count": COUNT}
    units.write_json(out, {**about, "answer": answer(results), "units": results})


if __name__ == "__main__":
    raise SystemExit(units.main(__doc__ or "", UNITS, HERE / "results.json", do, write))
