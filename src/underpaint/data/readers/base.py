"""What a reader answers, and what several of them share.

A reader is a module with `find(path)`: the `Source` at `path`, or None if it is another kind of
container. A source knows its files before anything is decoded; `open` yields the images.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

IMAGE_SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff")
)


class Item(NamedTuple):
    """One image of a source, not yet read: `read` gives an image file's bytes, or an array."""

    name: str
    read: Callable[[], bytes | NDArray[np.uint8]]
    label: str | None  # None: unlabelled


class Contents(NamedTuple):
    """What a source holds. `label_names` fixes the order of the labels; None: natural order."""

    total: int
    items: Iterator[Item]
    label_names: tuple[str, ...] | None = None


class Source(NamedTuple):
    """`origin` names the place, the same tomorrow; `files` are all files whose bytes count."""

    origin: str
    files: list[Path]
    open: Callable[[], Contents]


Reader = Callable[[Path], Source | None]


def is_hidden(name: str) -> bool:
    """Whether a file or folder is left out: dot files, and what macOS adds to archives."""
    return name.startswith(".") or name == "__MACOSX"


def is_image(name: str) -> bool:
    """Whether a file of this name (without its folder) is taken for an image."""
    return not is_hidden(name) and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def labelled(names: list[str], read: Callable[[str], bytes]) -> Contents:
    """Image files by their paths, each labelled by the first folder in which the paths differ.

    set/cats/1.png, set/dogs/2.png: cats, dogs. No labels where all folders are alike.
    """
    parents = [PurePosixPath(name).parent.parts for name in names]
    first, last = min(parents), max(parents)  # what these two share is shared by all
    common = 0
    while common < len(first) and first[common] == last[common]:
        common += 1
    labels = [parts[common] if len(parts) > common else None for parts in parents]
    if len(set(labels) - {None}) < 2:
        labels = [None] * len(labels)
    items = (Item(n, partial(read, n), label) for n, label in zip(names, labels, strict=True))
    return Contents(len(names), items)
