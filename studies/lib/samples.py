"""Scores of a checkpoint's samples, for the studies that draw them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, get_args

from underpaint.compare import split_scoring
from underpaint.evaluation import features, metrics

__all__ = ["scored"]


def scored(folder: Path, images: int, count: int) -> dict[str, float]:
    """`count` samples of the checkpoint at `images`, against `count` held-out images of each half.

    `frechet_A`, `frechet_B`, `kernel_A`, `kernel_B`: distances of MobileNetV2 features to a half;
    `floor`: the Fréchet distance of the halves to each other; `held_out`: the error of the averaged
    weights on half B.
    """
    import torch

    from underpaint import config, data, model
    from underpaint.evaluation.validation import OverfitCheck
    from underpaint.training.training_set import Array

    dataset = data.prepare(config.load(folder / "config.yaml").data)
    loaded = model.load(folder / "checkpoints" / f"{images:012d}", device="cpu")
    names = len(loaded.label_names)
    labels = [i % names for i in range(count)] if names else None
    drawn = torch.from_numpy(_features()(loaded.sample(count, seed=0, labels=labels)))
    found: dict[str, float] = {}
    for half in get_args(split_scoring.Half):
        ids = split_scoring.half(dataset, half, count)
        real = _real(dataset, half, count)
        found[f"frechet_{half}"] = metrics.frechet_distance(real, drawn)
        found[f"kernel_{half}"] = metrics.kernel_distance(real, drawn)[0]
    found["floor"] = metrics.frechet_distance(
        _real(dataset, "A", count), _real(dataset, "B", count)
    )
    check = OverfitCheck(
        Array(dataset.batch(ids[:256]), loaded.space),
        None,
        loaded.space,
        loaded.denoiser.process,
        seed=0,
        train_labels=dataset.labels[ids[:256]],
    )
    return found | {"held_out": float(check.measure(loaded.denoiser)["train_mean"])}


@functools.cache
def _features() -> Any:
    return features.load("mobilenetv2")


_halves: dict[bytes, Any] = {}  # features of held-out halves, which all runs on the data share


def _real(dataset: Any, half: split_scoring.Half, count: int) -> Any:
    """Features of the images of a half."""
    import torch

    ids = split_scoring.half(dataset, half, count)
    key = dataset.pixel_digests[ids].tobytes()
    if key not in _halves:
        _halves[key] = torch.from_numpy(_features()(dataset.batch(ids)))
    return _halves[key]
