"""Which sampler, in how many steps? Heads of a DiT and of the packaged weights, in many ways.

    python -m studies.samplers.run              as many processes as there are cores

A DiT of heads (`units.heads`) draws the same 500 seeds, with the labels of 500 held-out images, in
every way: Euler (DDIM), Heun and DPM-Solver++ 2M at the uniform levels of the presets with at most
4 to 50 evaluations of the network a picture, and at Karras's and at log-SNR levels with 20. Of each
way:

    calls       evaluations of the network for one picture
    frechet     distance (MobileNetV2 features, no FID) to these held-out images, `low` to `high`:
                its 95 % interval by the delete-group jackknife
    difference  to `euler-30`, the way of presets before, or of the packaged weights to
                `heun-10-packaged`, that of today, in the same seeds and against the same images,
                with its interval: chance that both ways share cancels
    flat        share of neighbouring pixels that differ by at most 2 of 255; grain lowers it
    error       root mean square distance of the first 64 samples, in 255ths, to those of the same
                seeds by Heun in 160 steps: how far from the end of the equation that all solve

Nearer to that end is not nearer to real heads: what small networks get wrong at the lowest noise
levels shows as grain, of which few steps leave less. `real` in the JSON is the same of 500 training
images: what a perfect model would have. Ways that end in `-packaged` are those of an hourglass,
`pretrained:lorelei`; with guidance each step evaluates the network twice.

Presets keep `heun-10`, of the DiT's ways the best; `dpm++-20` is a little nearer for the hourglass,
and cannot edit images, which takes steps that stand alone.
"""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from studies.lib import units
from underpaint.evaluation import features, metrics

HERE = Path(__file__).parent
COUNT = 500
EVALUATIONS = (20, 30, 10, 15, 50, 8, 6, 4)
END, COMPARED = 160, 64  # steps of the reference, samples of it
NEAR = 2  # of 255
ENDS = ("", "_low", "_high")  # of an interval
HOW = ("sampler", "steps", "grid", "guidance")


class Way(NamedTuple):
    """Sampler, steps and levels."""

    sampler: str
    steps: int
    grid: str = "uniform"
    guidance: float = 1.0
    packaged: bool = False

    @property
    def calls(self) -> int:
        """Of the network, for one image: Heun makes two a step, and one in the last."""
        calls = 2 * self.steps - 1 if self.sampler == "heun" else self.steps
        return calls if self.guidance == 1.0 else 2 * calls

    @property
    def name(self) -> str:
        """As in the results."""
        name = f"{self.sampler}-{self.steps}" + ("" if self.grid == "uniform" else f"-{self.grid}")
        name += "" if self.guidance == 1.0 else f"-guidance-{self.guidance:g}"
        return name + "-packaged" * self.packaged

    @property
    def first(self) -> str:
        """The way that it is compared with."""
        return PACKAGED if self.packaged else FIRST


def within(sampler: str, calls: int, grid: str = "uniform") -> Way:
    """The way with the most steps that takes at most so many calls."""
    return Way(sampler, (calls + 1) // 2 if sampler == "heun" else calls, grid)


SAMPLERS = ("euler", "heun", "dpm++")
FIRST, PACKAGED = "euler-30", "heun-10-packaged"  # of the presets before, and of today
FOUND = [
    Way("euler", 30),
    *(within(sampler, calls) for calls in EVALUATIONS for sampler in SAMPLERS),
    *(within(sampler, 20, grid) for grid in ("karras", "log-snr") for sampler in SAMPLERS),
    *(Way("heun", steps, packaged=True) for steps in (10, 20, 40, 5, 8, 15)),
    *(Way("dpm++", steps, packaged=True) for steps in (10, 20, 40)),
    Way("euler", 20, packaged=True),
    *(Way("heun", steps, guidance=1.5, packaged=True) for steps in (10, 20)),
]
WAYS = {way.name: way for way in FOUND}


def do(unit: str, work: Path, scale: float) -> dict[str, Any]:
    """Draw in a way, and compare with what is real and with its `first`."""
    began, way = time.process_time(), WAYS[unit]
    images, drawn = _drawn(way, work, scale)
    _, real = _held_out(scale)
    result: dict[str, Any] = {"calls": way.calls, **scored(drawn, real)}
    if unit != way.first:
        first = _drawn(WAYS[way.first], work, scale)[1]
        found = metrics.frechet_difference(drawn, first, real)
        result |= {f"difference{end}": v for end, v in zip(ENDS, found, strict=True)}
    count = max(2, round(COMPARED * scale))
    end = _sampled(Way("heun", END, packaged=way.packaged), work, count, scale)
    result |= {"flat": flat(images), "error": error(images[:count], end)}
    return result | {"seconds": time.process_time() - began}


def scored(drawn: torch.Tensor, real: torch.Tensor) -> dict[str, Any]:
    """The Fréchet distance of features [n, D], and its interval."""
    value = metrics.frechet_distance(drawn, real)
    interval = metrics.jackknife(metrics.frechet_distance, drawn, real, value)
    return {"frechet": value, "low": interval.low, "high": interval.high}


def flat(images: NDArray[np.uint8]) -> float:
    """Share of neighbours in a row, of images [n, H, W, C], that differ by at most `NEAR`."""
    steps = np.abs(np.diff(images.astype(np.int16), axis=2))
    return float((steps <= NEAR).mean())


def error(images: NDArray[np.uint8], reference: NDArray[np.uint8]) -> float:
    """Root mean square difference."""
    away = images.astype(np.float64) - reference.astype(np.float64)
    return float(np.sqrt((away**2).mean()))


def _drawn(way: Way, work: Path, scale: float) -> tuple[NDArray[np.uint8], torch.Tensor]:
    """The samples of a way and their features, kept in `work`."""
    images = _sampled(way, work, _count(scale), scale)
    path = work / f"{way.name}-features.npy"
    if not path.is_file():
        np.save(path, _network()(images))
    return images, torch.from_numpy(np.load(path))


def _sampled(way: Way, work: Path, count: int, scale: float) -> NDArray[np.uint8]:
    from underpaint import model

    path = work / f"{way.name}.npy"
    if not path.is_file():
        work.mkdir(parents=True, exist_ok=True)
        source = "pretrained:lorelei" if way.packaged else units.heads(work)
        loaded = model.load(source, device="cpu", precision="auto")
        how: dict[str, Any] = {key: getattr(way, key) for key in HOW}
        labels = [int(label) for label in _held_out(scale)[0][:count]]
        np.save(path, loaded.sample(count, seed=0, labels=labels, **how))
    return np.asarray(np.load(path))


def _count(scale: float) -> int:
    return max(8, round(COUNT * scale))


@functools.cache
def _network() -> features.Extractor:
    return features.load("mobilenetv2")


@functools.cache
def _images() -> Any:
    from underpaint import config, data

    return data.prepare(config.preset("quickstart").data)


@functools.cache
def _held_out(scale: float) -> tuple[NDArray[np.int64], torch.Tensor]:
    """Labels of the held-out images, and their features."""
    dataset, ids = _images(), _images().held_out_ids[: _count(scale)]
    return dataset.labels[ids], torch.from_numpy(_network()(dataset.batch(ids)))


@functools.cache
def _real(scale: float) -> dict[str, Any]:
    """The scores of training images, as if a model had drawn them."""
    dataset = _images()
    ids = np.random.default_rng(0).permutation(dataset.train_ids)[: _count(scale)]
    images = dataset.batch(ids)
    found = scored(torch.from_numpy(_network()(images)), _held_out(scale)[1])
    return found | {"flat": flat(images)}


def answer(results: dict[str, Any], real: float) -> str:
    """What the ways that are done say, in a few sentences."""
    parts: dict[str, dict[str, Any]] = {FIRST: {}, PACKAGED: {}}
    for name, found in results.items():
        parts[WAYS[name].first][name] = found
    said = [_answer(part, first) for first, part in parts.items() if first in part]
    return " ".join([*said, f"Real images have {real:.1f}."])


def _answer(results: dict[str, Any], first: str) -> str:
    """The same of the ways of one network, with that which they are compared with."""

    def about(name: str) -> str:
        found = results[name]
        return f"{name} {found['frechet']:.1f} ({found['low']:.1f} to {found['high']:.1f})"

    few = [name for name, found in results.items() if found["calls"] <= 20]
    best, nearest = (min(names, key=lambda n: results[n]["frechet"]) for names in (few, results))
    said = f"At most 20 evaluations are spent best by {about(best)}"
    if best != first:
        low, high = (results[best][f"difference{end}"] for end in ENDS[1:])
        nearer = "nearer beyond chance" if high < 0 else "not nearer beyond chance"
        said += f". Beside {about(first)} that is {nearer}: by {-high:.1f} to {-low:.1f}"
    if nearest == best:
        return said + "; no way is nearer."
    return (
        said + f"; the nearest is {about(nearest)}, with {results[nearest]['calls']} evaluations."
    )


def write(work: Path, out: Path, scale: float) -> None:
    """The JSON of all ways that are done."""
    results, real = units.gather(WAYS, work), _real(scale)
    about = {**units.made(), "scale": scale, "count": _count(scale), "real": real}
    about["answer"] = answer(results, real["frechet"])
    units.write_json(out, {**about, "units": results})


if __name__ == "__main__":
    raise SystemExit(units.main(__doc__ or "", WAYS, HERE / "results.json", do, write))
