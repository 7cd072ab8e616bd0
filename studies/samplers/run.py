"""Which sampler should presets draw with? Eight ways on four networks.

    python -m studies.samplers.run              as many processes as there are cores

The package's primer, and the network and images of `underpaint quickstart` with three seeds, in
1.3e13 training FLOPs (what its main run spends in three minutes of two cores). Each draws the same
500 seeds in every way, on the preset's levels unless the way has others. Of each way:

    calls     of the network for one image
    frechet   distance (MobileNetV2 features, no FID) to 500 held-out images, the same for all
    flat      share of neighbouring pixels that differ by at most 2 of 255; grain lowers it
    error     root mean square distance of the first 64 samples, in 255ths, to those of the same
              seeds by Heun in 160 steps: how far from the end of the equation that all solve

The held-out images' own `flat` stands beside them. Ratios of the Fréchet distance are to `euler-30`
in the same network, geometric means with a t-interval over networks.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from studies.lib import units
from underpaint.compare import study
from underpaint.evaluation import features, metrics

HERE = Path(__file__).parent
FLOPS, SHARE, COUNT = 1.3e13, 0.32, 500
END, COMPARED = 160, 64  # steps of the reference, samples of it
NEAR = 2  # of 255


class Way(NamedTuple):
    """Sampler, steps and levels."""

    sampler: str
    steps: int
    grid: str = "uniform"

    @property
    def calls(self) -> int:
        """Of the network, for one image: Heun makes two a step, and one in the last."""
        return 2 * self.steps - 1 if self.sampler == "heun" else self.steps


WAYS = {
    "euler-20": Way("euler", 20),
    "euler-30": Way("euler", 30),
    "euler-60": Way("euler", 60),
    "heun-10": Way("heun", 10),
    "heun-15": Way("heun", 15),
    "heun-30": Way("heun", 30),
    "heun-10-karras": Way("heun", 10, "karras"),
    "dpm++-20": Way("dpm++", 20),
}
FIRST = "euler-30"  # of the presets before this study
UNITS = ["primer", *(f"quickstart_{seed}" for seed in (1, 2, 3))]


def recipe(seed: int, scale: float) -> Any:
    """The quick start of a seed, in FLOPs instead of minutes."""
    from underpaint import config

    alone = {"threads": 1, "seed": seed, "sample_every": -1, "check_every": -1}
    stages = {"masked": {"minutes": 0, "images": 32}, "whole": {"minutes": 0, "images": 8}}
    run = config.from_dict(
        config.Run, {"stages": stages, "train": alone}, "samplers: ", config.preset("quickstart")
    )
    shares = {"masked": SHARE, "whole": 1 - SHARE}
    return study.scaled(run, shares, FLOPS, scale, (32, 32), 3, 8)


def do(unit: str, work: Path, scale: float) -> dict[str, Any]:
    """Train the network, if it is none of the package, and draw from it in every way."""
    from underpaint import model

    spent: dict[str, Any] = {}
    source: str | Path = "pretrained:lorelei"
    if unit != "primer":
        source = work / unit
        spent = units.trained(recipe(int(unit.split("_")[1]), scale), source)
    loaded = model.load(source, device="cpu", precision="auto")
    labels = [i % len(loaded.label_names) for i in range(COUNT)] if loaded.label_names else None
    reference = _drawn(loaded, Way("heun", END), COMPARED, labels)
    ways = {}
    for name, way in WAYS.items():
        images = _drawn(loaded, way, COUNT, labels)
        ways[name] = {
            "calls": way.calls,
            "frechet": distance(images),
            "flat": flat(images),
            "error": error(images[:COMPARED], reference),
        }
    return {**spent, "ways": ways}


def _drawn(loaded: Any, way: Way, count: int, labels: list[int] | None) -> NDArray[np.uint8]:
    images: NDArray[np.uint8] = loaded.sample(
        count, seed=0, labels=labels, sampler=way.sampler, steps=way.steps, grid=way.grid
    )
    return images


def flat(images: NDArray[np.uint8]) -> float:
    """Share of neighbours in a row, of images [n, H, W, C], that differ by at most `NEAR`."""
    steps = np.abs(np.diff(images.astype(np.int16), axis=2))
    return float((steps <= NEAR).mean())


def error(images: NDArray[np.uint8], reference: NDArray[np.uint8]) -> float:
    """Root mean square difference."""
    away = images.astype(np.float64) - reference.astype(np.float64)
    return float(np.sqrt((away**2).mean()))


def distance(images: NDArray[np.uint8]) -> float:
    """Fréchet distance of the features to those of the held-out images."""
    import torch

    network, _, real = _held_out()
    return float(metrics.frechet_distance(real, torch.from_numpy(network(images))))


@functools.cache
def _held_out() -> tuple[Any, NDArray[np.uint8], Any]:
    """The feature network, the held-out images, and their features."""
    import torch

    from underpaint import config, data

    network = features.load("mobilenetv2")
    dataset = data.prepare(config.preset("quickstart").data)
    images = dataset.batch(dataset.held_out_ids[:COUNT])
    return network, images, torch.from_numpy(network(images))


def ratios(results: dict[str, Any]) -> dict[str, Any]:
    """Of each way: its Fréchet distance over that of `FIRST`, mean and interval over networks."""
    from underpaint.evaluation.intervals import of_mean

    told = {}
    for name in WAYS:
        logs = [
            math.log(found["ways"][name]["frechet"] / found["ways"][FIRST]["frechet"])
            for found in results.values()
        ]
        if name != FIRST and len(logs) > 1:
            spread = of_mean(logs)
            assert spread is not None  # two values at least
            told[name] = [math.exp(v) for v in (spread.value, spread.low, spread.high)]
    return told


def write(work: Path, out: Path, scale: float) -> None:
    """The JSON of all networks that are done."""
    results = units.gather(UNITS, work)
    told = {**units.made(), "scale": scale, "count": COUNT, "held_out_flat": flat(_held_out()[1])}
    units.write_json(out, {**told, "ratios": ratios(results), "units": results})


if __name__ == "__main__":
    raise SystemExit(units.main(__doc__ or "", UNITS, HERE / "results.json", do, write))
