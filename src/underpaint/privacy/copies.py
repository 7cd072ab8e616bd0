"""Memorisation: how many samples are copies of training images, by pixels and, if asked, features?

A sample is a copy where its nearest training image is much nearer than the others: by the ratios of
`evaluation.nearest`, below 1/3, and below that of all but 0.1 % of the held-out images, which no
model can have copied. Exact duplicates among the training images are removed first, for two equal
images would hide each other's copies; near duplicates are shown, since models copy them most.

In features a copy is found that was shifted or recoloured, as far as the network does not care; it
was made for photographs, so the threshold that counts there is the one of the held-out images.
"""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from underpaint.data import Dataset
from underpaint.evaluation import feature_cache, features, nearest
from underpaint.evaluation.intervals import of_proportion
from underpaint.evaluation.nearest import THIRD, Ratios, distance_ratios
from underpaint.privacy.calibration import AttackSetup
from underpaint.privacy.membership import Subset
from underpaint.progress import doing
from underpaint.training.distributed import World
from underpaint.training.training_set import ImageSet

QUANTILE = 0.001
SHOWN = 16  # images with the lowest ratios
SEARCHED = 10_000  # images whose near-duplicates are looked for
LEAST = 3  # training images: a nearest, a second nearest and one more

ImagePair = tuple[NDArray[np.uint8], NDArray[np.uint8], float]  # sample, training image, ratio


class Nearest(NamedTuple):
    """Images and the training image nearest to each, by rising ratio."""

    which: NDArray[np.int64]  # [k] positions among what was searched
    ids: NDArray[np.int64]  # [k] of the training images
    ratios: NDArray[np.float64]  # [k]
    distances: NDArray[np.float64]  # [k] grey levels, root mean square over the numbers


class Copies(NamedTuple):
    """The result of a search."""

    result: dict[str, Any]  # numbers for the JSON
    worst: Nearest  # by the ratio `second`


def find_copies(
    setup: AttackSetup,
    members: Subset,
    samples: int,
    extractor: features.Extractor | None,
    phase: Callable[[str], contextlib.AbstractContextManager[None]],
) -> tuple[dict[str, Any], dict[str, list[ImagePair]]]:
    """Sample with the labels of members, and search all `members` for what the samples copy.

    Returns the numbers by space, and in each space the pairs with the lowest ratios. `phase` is
    entered with the name of each phase.
    """
    loaded, seed, non_members = setup.loaded, setup.seed, setup.subsets[1]
    assert isinstance(members.images, ImageSet)  # sealed images are not whole
    assert isinstance(non_members.images, ImageSet)
    dataset, held_out = members.images.dataset, non_members.images.dataset
    labels = members.labels(loaded)
    chosen: list[str | int] | None = None
    if labels is not None:
        rng = np.random.default_rng(seed)
        chosen = [int(labels[i]) for i in rng.integers(0, len(labels), samples)]
    with phase("samples"):
        sampled = loaded.sample(samples, seed=seed, labels=chosen, batch=setup.batch)
    ids = members.different().ids
    images = dataset.images
    with phase("copies"), doing("comparing samples with training images"):
        spaces = {"pixels": search(sampled, held_out.batch(non_members.ids), images, ids)}
        near = near_duplicates(images, ids)
    if extractor is not None:
        with phase("features"):
            of_held_out = _features(held_out, non_members.ids, extractor)
            of_members = _features(dataset, ids, extractor)
            of_samples = extractor(sampled)
            found = search(of_samples, of_held_out, of_members, np.arange(len(ids)))
            worst = found.worst._replace(ids=ids[found.worst.ids])
            spaces[extractor.name] = found._replace(worst=worst)
    shown = [part[:SHOWN].tolist() for part in near[:3]]
    result: dict[str, Any] = {
        "samples": samples,
        "training_images": len(ids),
        "spaces": {space: copies.result for space, copies in spaces.items()},
        "extractor": None if extractor is None else extractor.identity(dataset.channels),
        "removed_duplicates": len(members.ids) - len(ids),
        "near_duplicates_searched": min(len(ids), SEARCHED),
        "near_duplicate_pairs": len(near.ids),
        "near_duplicates": [
            [dataset.names[i], dataset.names[j], ratio] for i, j, ratio in zip(*shown, strict=True)
        ],
    }
    pairs = {
        space: [
            (sampled[i], images[j], float(ratio)) for i, j, ratio in zip(*worst[:3], strict=True)
        ]
        for space, (_, worst) in spaces.items()
    }
    pairs["near duplicates"] = [
        (images[i], images[j], ratio) for i, j, ratio in zip(*shown, strict=True)
    ]
    return result, pairs


def search(
    samples: nearest.Images,
    held_out: nearest.Images | None,
    images: nearest.Searched,
    ids: NDArray[np.int64],
) -> Copies:
    """Look for copies of `images[ids]`, all different, among `samples` [n, H, W, C] (or [n, D]).

    Raises ValueError for fewer than three training images.
    """
    if len(ids) < LEAST:
        raise ValueError(f"{len(ids)} training images: a ratio of distances needs {LEAST}")
    ratios = distance_ratios(samples, images, ids)
    base = (
        distance_ratios(held_out, images, ids) if held_out is not None and len(held_out) else None
    )
    result: dict[str, Any] = {
        "samples": len(samples),
        "training_images": len(ids),
        "held_out": 0 if base is None else len(base.ids),
        "exact": int((ratios.distances == 0).sum()),
        "ratios": {
            "second": _counts(ratios.second, base and base.second),
            "next": _counts(ratios.next, base and base.next),
        },
    }
    order = np.argsort(ratios.second, kind="stable")[:SHOWN]
    return Copies(result, _ordered(np.arange(len(samples)), ratios, ratios.second, order, images))


def near_duplicates(images: nearest.Searched, ids: NDArray[np.int64]) -> Nearest:
    """Training images that stand out as near to another: d1/mean(d2 … d51) below 1/3.

    Of more than SEARCHED images a random SEARCHED are compared with all.
    """
    chosen = ids
    if len(ids) > SEARCHED:
        chosen = np.sort(np.random.default_rng(0).choice(ids, SEARCHED, replace=False))
    ratios = distance_ratios(images[chosen], images, ids, skip=1)
    order = np.argsort(ratios.next, kind="stable")
    order = order[ratios.next[order] < THIRD]
    both = np.sort(np.stack([chosen[order], ratios.ids[order]], 1), 1)
    order = order[np.sort(np.unique(both, axis=0, return_index=True)[1])]  # each pair once
    return _ordered(chosen, ratios, ratios.next, order, images)


def _ordered(
    which: NDArray[np.int64],
    ratios: Ratios,
    values: NDArray[np.float64],
    order: NDArray[np.int64],
    images: nearest.Searched,
) -> Nearest:
    rms = ratios.distances[order] / np.sqrt(np.prod(images.shape[1:]))
    return Nearest(which[order], ratios.ids[order], values[order], rms)


def _counts(values: NDArray[np.float64], background: NDArray[np.float64] | None) -> dict[str, Any]:
    """Copies by the fixed threshold and by that of held-out images, and how far beyond chance.

    `p_value` of `third` is Fisher's, one-sided: more samples than held-out images lie below 1/3.
    """
    n = len(values)
    below = int((values < THIRD).sum())
    result: dict[str, Any] = {"third": {**_share(below, n), "threshold": THIRD}, "quantile": None}
    if background is None:
        return result
    m = len(background)
    expected = int((background < THIRD).sum())
    table = np.array([[below, n - below], [expected, m - expected]])
    result["third"] |= {
        "held_out_count": expected,
        "p_value": float(stats.fisher_exact(table, "greater").pvalue),
    }
    threshold = float(np.quantile(background, QUANTILE, method="lower"))
    count = int((values < threshold).sum())
    result["quantile"] = {
        **_share(count, n),
        "threshold": threshold,
        "p_value": _below(count, n, int((background < threshold).sum()), m),
    }
    return result


def _below(count: int, n: int, rank: int, m: int) -> float:
    """P(so many of `n` lie below the one of `m` that has `rank` others of the `m` below it).

    The threshold is one of the `m` itself, so that this is no binomial: `count` come before it if
    among the first count + rank of all in their order there are at most `rank` of the `m`.
    """
    return 1.0 if count == 0 else float(stats.hypergeom.cdf(rank, n + m, m, count + rank))


def _share(count: int, trials: int) -> dict[str, Any]:
    share = of_proportion(count, trials)
    return {"count": count, "share": share.value, "low": share.low, "high": share.high}


def _features(
    dataset: Dataset, ids: NDArray[np.int64], extractor: features.Extractor
) -> NDArray[np.float32]:
    """Features [n, D] of the images `ids`, kept in the cache by content."""
    store, n = feature_cache.Store.of(dataset, ids, extractor), len(ids)
    with doing("features", n) as at:
        store.fill(n, World(0, 1, extractor.device), at)
    return store.read(n)
