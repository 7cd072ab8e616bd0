"""Memorisation: how many samples are copies of training images?

Every image has a nearest training image; a copy has one that is *much* nearer than the others. With
d1 ≤ d2 ≤ … the distances of a sample to the training images (exact, over pixels or over features)

    second  d1/d2                     next  d1/mean(d2 … d51)

A sample is counted where its ratio lies below that of all but 0.1 % of the held-out images, which
no model can have copied, and beside it where the ratio lies below 1/3 (Yoon et al. 2023; Carlini et
al. 2023, arXiv 2301.13188, divide by the mean of the next 50). Exact duplicates among the training
images are removed first, for two equal images would hide each other's copies; near duplicates are
found and shown, since they are what models copy most.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from underpaint.data import Dataset
from underpaint.evaluation.nearest import Images, nearest
from underpaint.privacy.statistics import clopper_pearson

__all__ = ["THIRD", "Copies", "Pairs", "distinct", "near_duplicates", "search"]

THIRD = 1 / 3
NEXT = 50  # images after the nearest that make the background
QUANTILE = 0.001
SHOWN = 16  # worst pairs
SEARCHED = 10_000  # images whose near-duplicates are looked for
LEAST = 3  # training images: a nearest, a second nearest and one more


class Pairs(NamedTuple):
    """Images and the training image nearest to each, worst first."""

    which: NDArray[np.int64]  # [k] positions among what was searched
    ids: NDArray[np.int64]  # [k] of the training images
    ratios: NDArray[np.float64]  # [k]
    distances: NDArray[np.float64]  # [k] grey levels, root mean square over the numbers


class Copies(NamedTuple):
    """What the search found."""

    result: dict[str, Any]  # numbers for the JSON
    worst: Pairs  # by the ratio `second`


def distinct(dataset: Dataset, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """`ids` with the first alone of those whose pixels are equal, ascending."""
    digests = np.ascontiguousarray(dataset.pixel_digests[ids]).view("V32").reshape(len(ids))
    return np.sort(ids[np.unique(digests, return_index=True)[1]])


def search(
    samples: Images, held_out: Images | None, images: Images, ids: NDArray[np.int64]
) -> Copies:
    """Look for copies of `images[ids]`, all different, among `samples` [n, H, W, C] (or [n, D]).

    Raises ValueError for fewer than three training images.
    """
    if len(ids) < LEAST:
        raise ValueError(f"{len(ids)} training images: a ratio of distances needs {LEAST}")
    own, distances, found = ratios(samples, images, ids)
    base = ratios(held_out, images, ids)[0] if held_out is not None and len(held_out) else None
    result: dict[str, Any] = {
        "samples": len(samples),
        "training_images": len(ids),
        "held_out": 0 if base is None else len(next(iter(base.values()))),
        "exact": int((distances == 0).sum()),
        "ratios": {},
    }
    for name, values in own.items():
        background = None if base is None else base[name]
        result["ratios"][name] = _counts(values, background)
    order = np.argsort(own["second"], kind="stable")[:SHOWN]
    rms = distances[order] / np.sqrt(np.prod(images.shape[1:]))
    return Copies(result, Pairs(order, found[order], own["second"][order], rms))


def ratios(
    images: Images, train: Images, ids: NDArray[np.int64]
) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.float64], NDArray[np.int64]]:
    """The ratios [n] by name, the nearest distances [n] and the nearest ids [n]."""
    distances, found = nearest(images, train, ids, min(len(ids), NEXT + 1))
    first = distances[:, 0]
    # zero only where equal training images were not removed: then the nearest does not stand out
    own = {"second": first / distances[:, 1], "next": first / distances[:, 1:].mean(1)}
    return own, first, found[:, 0]


def near_duplicates(images: Images, ids: NDArray[np.int64], most: int = SEARCHED) -> Pairs:
    """Training images that stand out as near to another: d1/mean(d2 … d51) below 1/3.

    Of more than `most` images a random `most` are compared with all.
    """
    every = ids
    if len(ids) > most:
        ids = np.sort(np.random.default_rng(0).choice(ids, most, replace=False))
    distances, found = nearest(images[ids], images, every, min(len(every), NEXT + 2))
    distances, found = distances[:, 1:], found[:, 1:]  # the first is the image itself
    own = distances[:, 0] / distances[:, 1:].mean(1)
    order = np.argsort(own, kind="stable")
    order = order[own[order] < THIRD]
    # each pair once
    _, first = np.unique(
        np.sort(np.stack([ids[order], found[order, 0]], 1), 1), axis=0, return_index=True
    )
    order = order[np.sort(first)]
    rms = distances[order, 0] / np.sqrt(np.prod(images.shape[1:]))
    return Pairs(ids[order], found[order, 0], own[order], rms)


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
    """P(so many of `n` lie below the one of `m` that has `rank` of its own below it), by chance.

    The threshold is one of the `m` itself, so that this is no binomial: `count` come before it if
    among the first count + rank of all in their order there are at most `rank` of the `m`.
    """
    if count == 0:
        return 1.0
    return float(stats.hypergeom.cdf(rank, n + m, m, count + rank))


def _share(count: int, trials: int) -> dict[str, Any]:
    low, high = clopper_pearson(count, trials)
    return {"count": count, "share": count / trials, "low": low, "high": high}
