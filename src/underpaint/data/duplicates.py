"""Groups of images that are equal or nearly so, found once and remembered in the cache.

Nearly equal is what `near_duplicates` says: an image saved again, at another size or quality, or a
little brighter. Groups are chains: a and c are in one if both are near to b.
"""

import numpy as np
from numpy.typing import NDArray

from underpaint.bounded import DAMAGE
from underpaint.data import cache
from underpaint.data.near_duplicates import NearDuplicates
from underpaint.io import replacing
from underpaint.progress import doing


def first_of_each(images: NDArray[np.uint8], key: str) -> NDArray[np.int64]:
    """Of each of `images` [n, H, W, C] the first image of its group, itself if alone: [n].

    `key`: names the images in the cache, where the answer is kept.
    """
    path = cache.root() / "duplicates" / f"{key}.npy"
    try:
        found = np.load(path, allow_pickle=False)
    except DAMAGE:
        found = None
    if isinstance(found, np.ndarray) and found.shape == (len(images),):
        return found.astype(np.int64)
    computed = _first_of_each(images)
    with cache.writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part, part.open("wb") as file:
            np.save(file, computed)
    return computed


def _first_of_each(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    n, height, width, channels = images.shape
    near, first = NearDuplicates((height, width), channels, n), np.arange(n)

    def root(i: int) -> int:
        while first[i] != i:
            i = int(first[i])
        return i

    with doing("looking for duplicates", n) as at:
        for i, image in enumerate(images):
            for other in near.near(image):
                one, two = sorted((root(other), root(i)))
                first[two] = one
            near.add(image)
            if i % 64 == 0:
                at(i)
    return np.array([root(i) for i in range(n)], np.int64)


def groups(first: NDArray[np.int64]) -> list[list[int]]:
    """The groups of two and more, each in order."""
    members: dict[int, list[int]] = {}
    for i in np.flatnonzero(np.bincount(first, minlength=len(first))[first] > 1).tolist():
        members.setdefault(int(first[i]), []).append(i)
    return list(members.values())


def kept(
    train_ids: NDArray[np.int64], held_out_ids: NDArray[np.int64], first: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Of each group one image of `train_ids`, and none where another of it is held out."""
    seen = set(first[held_out_ids].tolist())
    chosen = []
    for i in train_ids.tolist():
        if first[i] not in seen:
            seen.add(int(first[i]))
            chosen.append(i)
    return np.array(chosen, np.int64)
