"""Features of many images, block by block on disk, so that images are never held together.

    FOLDER/000000256.npy    features float32 [count, D] of the images from 256 on

What image i is depends on i alone, so a block can be computed by any process at any time: what was
stopped goes on with the missing blocks, more images later add blocks, and the processes of a
`torchrun` share what is missing.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from underpaint.bounded import DAMAGE
from underpaint.data import Dataset, cache
from underpaint.evaluation.features import Extractor
from underpaint.evaluation.results import digest
from underpaint.io import replacing
from underpaint.training.distributed import World

BLOCK = 256  # images

Draw = Callable[[int, int], np.ndarray]  # (first image, count) → uint8 [count, H, W, C]


class Store(NamedTuple):
    """The features of the images that `draw` gives, in a folder."""

    folder: Path
    draw: Draw
    extractor: Extractor

    @classmethod
    def of(cls, dataset: Dataset, ids: np.ndarray, extractor: Extractor) -> Self:
        """Of the images `ids`; in the cache, by content."""
        what = json.dumps([dataset.key, extractor.identity(dataset.channels)])
        key = digest(what, ids.astype(np.int64).tobytes())

        def draw(start: int, count: int) -> np.ndarray:
            return dataset.batch(ids[start : start + count])

        return cls(cache.root() / "features" / key, draw, extractor)

    def fill(
        self, count: int, world: World, at: Callable[[int], object] = lambda done: None
    ) -> None:
        """Compute the missing blocks of the first `count` images, all processes together.

        `at` is called with the number of images that are done, as far as this process knows.
        """
        with cache.writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        missing = [(start, n) for start, n in _blocks(count) if self._read(start, n) is None]
        world.barrier()  # all have the same list before the first block is written
        there = count - sum(n for _, n in missing)
        at(there)
        for i, (start, n) in enumerate(missing[world.rank :: world.size], 1):
            features = self.extractor(self.draw(start, n))
            path = self._path(start)
            with cache.writing(self.folder), replacing(path) as part, part.open("wb") as file:
                np.save(file, features)
            at(there + sum(n for _, n in missing[: i * world.size]))
        world.barrier()

    def read(self, count: int) -> np.ndarray:
        """The features of the first `count` images, after `fill`."""
        parts = []
        for start, n in _blocks(count):
            part = self._read(start, n)
            if part is None:
                raise FileNotFoundError(self._path(start))
            parts.append(part)
        return np.concatenate(parts)

    def _path(self, start: int) -> Path:
        return self.folder / f"{start:09}.npy"

    def _read(self, start: int, size: int) -> np.ndarray | None:
        """A block, or None if it is missing, damaged or shorter than `size`."""
        try:
            features = np.load(self._path(start), allow_pickle=False)
        except DAMAGE:
            return None
        if not isinstance(features, np.ndarray):  # of an .npz
            return None
        return features[:size] if features.ndim == 2 and len(features) >= size else None


def _blocks(count: int) -> list[tuple[int, int]]:
    """First image and number of images of each block."""
    return [(start, min(BLOCK, count - start)) for start in range(0, count, BLOCK)]
