"""The scores of one set of samples, and when two results may be compared.

    samples  against training images, against held-out images
    floor    held-out against each half of the training images: what equally many real images score
    twice    how far the Fréchet distance moves with twice the steps, of some samples

All sets have the same count, for every distance falls with more images. Samples that are nearer to
the training images than to the held-out ones, by more than the floor's parts differ, are the
first sign of copying.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from underpaint.bounded import read_json
from underpaint.data import cache
from underpaint.evaluation import features, metrics
from underpaint.io import replace_text

SAMPLING = ("sampler", "steps", "grid", "guidance", "clip", "eta", "corrections", "snr")


def score(real: Tensor, samples: Tensor, *, interval: bool = True) -> dict[str, Any]:
    """All scores of `samples` against `real`, features [n, D] on each side."""
    distance = metrics.frechet_distance(real, samples)
    kernel, deviation = metrics.kernel_distance(real, samples)
    result: dict[str, Any] = {
        "frechet": distance,
        "frechet_interval": None,
        "kernel": kernel,
        "kernel_std": deviation,
        "kernel_interval": None,
        **metrics.manifold(real, samples)._asdict(),
    }
    if interval:
        found = metrics.jackknife(metrics.frechet_distance, real, samples, distance)
        result["frechet_interval"] = [max(0.0, found.low), found.high]
        if deviation is None:  # one subset, which is all there is: nothing else tells its spread
            interval_of_kernel = metrics.jackknife(metrics.mmd2, real, samples, kernel)
            result["kernel_interval"] = [interval_of_kernel.low, interval_of_kernel.high]
    return result


def moved(samples: Tensor, twice: Tensor, real: Tensor, interval: bool) -> dict[str, Any]:
    """How far the Fréchet distance to `real` moves from samples to those in `twice` the steps.

    All three [m, D]; samples at a place have the same seed. m is small, and a distance falls with
    m: only the difference says something.
    """
    distances = [metrics.frechet_distance(z, real) for z in (samples, twice)]
    found: dict[str, Any] = {"frechet": distances[0], "frechet_twice": distances[1]}
    found |= {"difference": distances[1] - distances[0], "interval": None}
    if interval:
        found["interval"] = list(metrics.frechet_difference(twice, samples, real))[1:]
    return found


def score_all(
    samples: Tensor,
    found: dict[str, Tensor],
    count: int,
    content: list[str],
    network: features.Extractor,
    notes: list[str],
    interval: bool,
) -> dict[str, Any]:
    """`{scores: {train, held_out, floor}, warnings}` of `samples` [count, D].

    `found`: features of the real images, `train` (up to 2·count) and perhaps `held_out` (count);
    `content`: what names these images. `notes` begin the warnings.
    """
    parts = [found["train"][:count], found["train"][count:]]
    result = {"train": score(parts[0], samples, interval=interval)}
    if "held_out" in found:
        result["held_out"] = score(found["held_out"], samples, interval=interval)
    if len(parts[1]) == count:
        result["floor"] = _floor(parts, found.get("held_out"), count, content)
    else:
        notes.append(
            f"no noise floor: it needs two parts of {count:,} training images, and there are "
            f"{len(found['train']):,}"
        )
    width = samples.shape[1]
    if count <= width:
        notes.append(
            f"{count:,} images span less than the {width:,} features: {network.distance} is biased "
            "upwards; read it beside its floor, and compare it at this count only"
        )
    return {"scores": result, "warnings": notes}


def _floor(
    parts: list[Tensor], held: Tensor | None, count: int, content: list[str]
) -> dict[str, Any]:
    """Mean of the scores of real images; kept in the cache, for it is the same for every model."""

    def make() -> dict[str, Any]:
        pairs = [(parts[0], parts[1])] if held is None else [(half, held) for half in parts]
        each = [score(one, other, interval=False) for one, other in pairs]
        mean: dict[str, Any] = {}
        for name in each[0]:
            values = [part[name] for part in each]
            mean[name] = None if None in values else float(np.mean(values))
        return mean | {"frechet_halves": [part["frechet"] for part in each]}

    name = f"floor-{digest(json.dumps([content, count, 1]))}.json"
    return kept(cache.root() / "features" / name, make)[0]


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], bool]:
    """What `make` gives, kept in the file `path` of the cache, and whether it was there."""
    try:
        return dict(read_json(path)), True
    except (OSError, ValueError, TypeError):  # not there, or cut short
        values = make()
    with cache.writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(values))
    return values, False


def differences(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[str]:
    """What forbids to compare two results, from their protocols: `count: 500 and 1000`.

    Empty where they are comparable. Other seeds and other weights are what one compares; another
    extractor, resize rule, count, reference, way of sampling or averaging is not.
    """
    single = ("extractor_sha256", "resize", "grounds", "count", "weights", "ema")
    values = [(name, one.get(name), two.get(name)) for name in single]
    groups: dict[str, tuple[str, ...]] = {
        "reference": ("key", "train", "held_out"),
        "sampling": (*SAMPLING, "labels", "precision"),
    }
    for group, names in groups.items():
        of_one, of_two = one.get(group) or {}, two.get(group) or {}
        values += [(f"{group}.{name}", of_one.get(name), of_two.get(name)) for name in names]

    def shown(value: Any) -> str:
        return "unknown" if value is None else str(value)

    return [f"{name}: {shown(a)} and {shown(b)}" for name, a, b in values if a != b]


def digest(*parts: str | bytes) -> str:
    """16 hex digits of the sha256 of `parts`."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part.encode() if isinstance(part, str) else part)
    return found.hexdigest()[:16]
