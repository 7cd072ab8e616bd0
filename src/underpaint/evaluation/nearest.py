"""Nearest training images of samples, by exact search over pixels or features, and near copies.

    ‖a − b‖² = ‖a‖² + ‖b‖² − 2 a·b

block by block, so that memory stays bounded whatever the number of images. Decoded pixels are
whole numbers from 0 to 255, and float64 holds the sums exactly (65025·d < 2⁵³ for any image here):
there is no cancellation, an exact copy has distance 0.0, and equal distances are equal. Features
are rounded: equal ones may come out as far apart as 1e-7 of their length.

Every image has a nearest training image; a copy has one that is *much* nearer than the others. With
d1 ≤ d2 ≤ … the distances of a sample to the training images

    second  d1/d2                     next  d1/mean(d2 … d51)

is below 1/3 for a near copy (Yoon et al. 2023; Carlini et al. 2023, arXiv 2301.13188, divide by the
mean of the next 50).
"""

import itertools
from collections.abc import Callable
from contextlib import ExitStack
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from underpaint.core.alpha import premultiplied
from underpaint.data import cache
from underpaint.data.streamed import Streamed
from underpaint.progress import doing

Images = NDArray[np.uint8] | NDArray[np.float32]
Searched = Images | Streamed

THIRD = 1 / 3
NEXT = 50  # images after the nearest that make the background


def nearest(
    samples: Images,
    images: Searched,
    ids: NDArray[np.int64],
    k: int = 1,
    *,
    memory: int = 1 << 25,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The `k` nearest of `images[ids]` for each of `samples`, nearest first.

    `samples` uint8 [n, H, W, C]; `images` uint8 [m, H, W, C], may be mapped from a file, or
    streamed; or float32 features [n, D] and [m, D]. `ids`: the rows of `images` to search. Returns
    Euclidean distances, of pixels in grey levels (with transparency: of premultiplied colours and
    alpha), [n, k] and ids [n, k]; among equal distances the one that comes first in `ids`.
    `memory`: bytes for a block of each.
    Raises ValueError for other shapes and for k beyond the number of ids.
    """
    if samples.shape[1:] != images.shape[1:]:
        raise ValueError(f"samples are {samples.shape[1:]}, images are {images.shape[1:]}")
    if not 1 <= k <= len(ids):
        raise ValueError(f"{k} nearest of {len(ids)} images")
    rows = max(1, memory // (8 * int(np.prod(images.shape[1:]))))
    squares = np.empty((len(samples), k))
    found = np.empty((len(samples), k), np.int64)
    blocks, done = -(-len(samples) // rows) * -(-len(ids) // rows), itertools.count(1)
    with ExitStack() as closing:
        # one block takes no time worth showing
        at = closing.enter_context(doing("comparing images", blocks)) if blocks > 1 else None

        def compared() -> None:
            if at is not None:
                at(next(done))

        for start in range(0, len(samples), rows):
            part = slice(start, start + rows)
            one = _flat(samples[part])
            squares[part], found[part] = _nearest(one, images, ids, k, rows, compared)
    return np.sqrt(np.maximum(squares, 0)), found  # below 0 by rounding of features alone


class Ratios(NamedTuple):
    """How much nearer the nearest training image is than the others, for each of n images."""

    second: NDArray[np.float64]  # [n]
    next: NDArray[np.float64]  # [n]
    distances: NDArray[np.float64]  # [n] to the nearest
    ids: NDArray[np.int64]  # [n] of the nearest

    def copies(self) -> NDArray[np.bool_]:
        """Which are near copies by the ratio `second`; one that equals a training image is."""
        return (self.distances == 0) | (self.second < THIRD)


def distance_ratios(
    samples: Images,
    images: Searched,
    ids: NDArray[np.int64],
    *,
    background: int = NEXT,
    skip: int = 0,
) -> Ratios:
    """The ratios of `samples` to `images[ids]`; `background`: how many images `next` averages.

    `skip` 1: `samples` are among `images[ids]`, and the nearest is each image itself.
    Raises ValueError for fewer than two images beyond those skipped.
    """
    distances, found = nearest(samples, images, ids, min(len(ids), background + 1 + skip))
    if distances.shape[1] < 2 + skip:
        raise ValueError(f"{len(ids)} images: a ratio of distances needs {2 + skip}")
    first, others = distances[:, skip], distances[:, skip + 1 :]

    def ratio(base: NDArray[np.float64]) -> NDArray[np.float64]:
        # zero where training images are equal: then the nearest does not stand out
        return np.divide(first, base, out=np.ones_like(first), where=base > 0)

    return Ratios(ratio(others[:, 0]), ratio(others.mean(1)), first, found[:, skip])


def _nearest(
    a: NDArray[np.float64],
    images: Searched,
    ids: NDArray[np.int64],
    k: int,
    rows: int,
    compared: Callable[[], None],
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Squared distances and ids of the nearest of `a` [n, d]; `compared` after each block."""
    best = np.empty((len(a), 0))
    best_ids = np.empty((len(a), 0), np.int64)
    squared_norms = np.square(a).sum(1, keepdims=True)
    for start in range(0, len(ids), rows):
        block = ids[start : start + rows]
        b = _flat(images[block])
        cache.give_back(images)
        squares = squared_norms + np.einsum("rd,rd->r", b, b) - 2 * (a @ b.T)  # [n, rows]
        del b  # before the next one is made
        # earlier blocks stand first and the sort is stable: that settles ties
        squares = np.concatenate([best, squares], 1)
        candidates = np.concatenate([best_ids, np.broadcast_to(block, (len(a), len(block)))], 1)
        order = np.argsort(squares, axis=1, kind="stable")[:, :k]
        best = np.take_along_axis(squares, order, 1)
        best_ids = np.take_along_axis(candidates, order, 1)
        compared()
    return best, best_ids


def _flat(images: Images) -> NDArray[np.float64]:
    if images.ndim == 4:  # images: features may be four numbers, too
        images = premultiplied(cast(NDArray[np.uint8], images))
    return images.reshape(len(images), -1).astype(np.float64)
