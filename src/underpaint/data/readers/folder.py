"""Image files in a folder and its sub-folders, whose names are the labels."""

import os
from functools import partial
from pathlib import Path

from underpaint.bounded import read_regular
from underpaint.data.readers.base import Contents, Item, Source, choose, folder_labels, head_of
from underpaint.errors import UserError
from underpaint.io import MARK


def find(path: Path) -> Source | None:
    """A folder with at least one image file somewhere below it."""
    if not path.is_dir():
        return None
    if (path / MARK).is_file():
        raise UserError(f"data '{path}' is the folder of a run; give that of its images")
    there, again = _names(path)
    names, unread = choose(there, lambda name: head_of(path / name))
    unread |= {"link to a folder that is read already": again} if again else {}
    if not names:
        return None

    def read() -> Contents:
        items = (
            Item(name, partial(read_regular, path / name), label)
            for name, label in zip(names, folder_labels(names), strict=True)
        )
        return Contents(len(names), items)

    return Source(str(path), [path / name for name in names], read, unread)


def _names(root: Path) -> tuple[list[str], list[str]]:
    """All files below a folder by their paths in it, sorted as paths; links are followed once.

    And the links that were not followed again.
    """
    found: list[Path] = []
    seen: set[str] = set()
    again: list[str] = []

    def refuse(error: OSError) -> None:
        raise UserError(f"data '{error.filename}': cannot be read ({error.strerror})")

    for folder, below, names in os.walk(root, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link back to where we have been
            below.clear()
            again.append(Path(folder).relative_to(root).as_posix())
            continue
        seen.add(real)
        below.sort()
        found += [Path(folder, name).relative_to(root) for name in names]
    return [path.as_posix() for path in sorted(found)], again
