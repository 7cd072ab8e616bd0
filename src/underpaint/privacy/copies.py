"""Samples of a model against its training images, over pixels and, if asked, over features.

`memorisation` has the ratios and the counts; here is what they are counted of. In features a copy
is found that was shifted or recoloured, as far as the network does not care; it was made for
photographs, so the threshold that counts there is the one of the held-out images.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from underpaint import model
from underpaint.data import Dataset, cache
from underpaint.evaluation import feature_cache, features
from underpaint.evaluation.results import digest
from underpaint.privacy import memorisation
from underpaint.privacy.membership import Images
from underpaint.training.distributed import World

__all__ = ["Pair", "copies"]

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8], float]  # sample, training image, ratio
Progress = Callable[[str, int, int], None]


def copies(
    loaded: model.Model,
    one: Images,
    others: Images,
    samples: int,
    *,
    seed: int = 0,
    batch: int = 64,
    extractor: features.Extractor | None = None,
    phase: Callable[[str], contextlib.AbstractContextManager[None]],
    progress: Progress | None = None,
) -> tuple[dict[str, Any], dict[str, list[Pair]]]:
    """Draw samples, with the labels of members, and search all members for what they copy.

    Returns the numbers by space, and in each space the worst pairs. `phase` is entered with the
    name of what is done, `progress` called with a name, images done and images in all.
    """
    dataset, held_out = one.dataset, others.dataset
    if not isinstance(dataset, Dataset) or not isinstance(held_out, Dataset):
        raise TypeError("sealed images are not whole")
    labels = one.labels(loaded)
    rng = np.random.default_rng(seed)
    chosen: list[str | int] | None = None
    if labels is not None:
        chosen = [int(labels[i]) for i in rng.integers(0, len(labels), samples)]
    with phase("samples"):
        drawn = loaded.sample(
            samples,
            seed=seed,
            labels=chosen,
            batch=batch,
            progress=progress and partial(progress, "samples"),
        )
    ids = memorisation.distinct(dataset, one.ids)
    images = dataset.images
    with phase("copies"):
        spaces = {"pixels": memorisation.search(drawn, held_out.batch(others.ids), images, ids)}
        twins = memorisation.near_duplicates(images, ids)
    if extractor is not None:
        with phase("features"):
            spaces[extractor.name] = memorisation.search(
                extractor(drawn),
                _features(held_out, others.ids, extractor, None),
                _features(dataset, ids, extractor, progress),
                np.arange(len(ids)),
            )
    result: dict[str, Any] = {
        "samples": samples,
        "training_images": len(ids),
        "spaces": {space: found.result for space, found in spaces.items()},
        "extractor": None if extractor is None else extractor.identity,
        "removed_duplicates": len(one.ids) - len(ids),
        "near_duplicates_searched": min(len(ids), memorisation.SEARCHED),
        "near_duplicate_pairs": len(twins.ids),
        "near_duplicates": [
            [dataset.names[i], dataset.names[j], ratio]
            for i, j, ratio in zip(
                twins.which[: memorisation.SHOWN].tolist(),
                twins.ids[: memorisation.SHOWN].tolist(),
                twins.ratios[: memorisation.SHOWN].tolist(),
                strict=True,
            )
        ],
    }
    pairs = {}
    for space, found in spaces.items():
        worst = found.worst
        there = worst.ids if space == "pixels" else ids[worst.ids]
        pairs[space] = [
            (drawn[i], images[j], float(ratio))
            for i, j, ratio in zip(worst.which, there, worst.ratios, strict=True)
        ]
    pairs["near duplicates"] = [
        (images[i], images[j], float(ratio))
        for i, j, ratio in zip(twins.which, twins.ids, twins.ratios, strict=True)
    ][: memorisation.SHOWN]
    return result, pairs


def _features(
    dataset: Dataset,
    ids: NDArray[np.int64],
    extractor: features.Extractor,
    progress: Progress | None,
) -> NDArray[np.float32]:
    """Features [n, D] of the images `ids`, kept in the cache by content."""
    key = digest(json.dumps([dataset.key, extractor.identity]), ids.astype(np.int64).tobytes())
    folder = cache.root() / "features" / key
    alone = World(0, 1, extractor.device)

    def said(done: int) -> None:
        if progress:
            progress("features", done, len(ids))

    def read(start: int, count: int) -> NDArray[np.uint8]:
        return dataset.batch(ids[start : start + count])

    feature_cache.fill(folder, len(ids), read, extractor, alone, said)
    return feature_cache.read(folder, len(ids))
