"""Features of many images, block by block on disk, so that images are never held together.

    FOLDER/000000256.npy    features float32 [count, D] of the images from 256 on

What image i is depends on i alone, so a block can be computed by any process at any time: what was
stopped goes on with the missing blocks, more images later add blocks, and the processes of a
`torchrun` share what is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from underpaint.data import cache
from underpaint.evaluation.features import Extractor
from underpaint.io import replacing
from underpaint.training.distributed import World

__all__ = ["BLOCK", "fill", "read"]

BLOCK = 256  # images

Draw = Callable[[int, int], np.ndarray]  # (first image, count) → uint8 [count, H, W, C]


def fill(
    folder: Path,
    count: int,
    draw: Draw,
    extractor: Extractor,
    world: World,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Compute the missing blocks of the first `count` images, all processes together.

    `progress` is called with the number of images that are done, as far as this process knows.
    """
    with cache.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    blocks = [(start, min(BLOCK, count - start)) for start in range(0, count, BLOCK)]
    missing = [(start, size) for start, size in blocks if _read(folder, start, size) is None]
    world.barrier()  # all have the same list before the first block is written
    there = count - sum(size for _, size in missing)
    if progress:
        progress(there)
    for i, (start, size) in enumerate(missing[world.rank :: world.size]):
        features = extractor(draw(start, size))
        _write(_path(folder, start), features)
        if progress:
            others = missing[: (i + 1) * world.size]
            progress(there + sum(size for _, size in others))
    world.barrier()


def read(folder: Path, count: int) -> np.ndarray:
    """The features of the first `count` images, after `fill`."""
    parts = []
    for start in range(0, count, BLOCK):
        part = _read(folder, start, min(BLOCK, count - start))
        if part is None:
            raise FileNotFoundError(_path(folder, start))
        parts.append(part)
    return np.concatenate(parts)


def _path(folder: Path, start: int) -> Path:
    return folder / f"{start:09}.npy"


def _read(folder: Path, start: int, size: int) -> np.ndarray | None:
    """A block, or None if it is missing, damaged or shorter than `size`."""
    try:
        features = np.load(_path(folder, start), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return features[:size] if features.ndim == 2 and len(features) >= size else None


def _write(path: Path, features: np.ndarray) -> None:
    with cache.writing(path.parent), replacing(path) as part, part.open("wb") as file:
        np.save(file, features)
