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
    names, unread = choose(there, lambda name: head_of(f"{path}/{name}"))
    unread |= {"link to a folder that is read already": again} if again else {}
    if not names:
        return None

    def read() -> Contents:
        items = (
            Item(name, partial(read_regular, f"{path}/{name}"), label)
            for name, label in zip(names, folder_labels(names), strict=True)
        )
        return Contents(len(names), items)

    return Source(str(path), str(path), names, read, unread)


def _names(root: Path) -> tuple[list[str], list[str]]:
    """All files below a folder by their paths in it, sorted as paths; links are followed once.

    And the links that were not followed again.
    """
    found: list[str] = []
    again: list[str] = []
    seen: set[tuple[int, int]] = set()
    waiting = [("", True)]  # the next one last: path, whether it is a folder
    while waiting:
        path, below = waiting.pop()
        if not below:
            found.append(path)
            continue
        folder = f"{root}/{path}" if path else str(root)
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:  # a link back to where we have been
                again.append(path)
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                there = sorted(((e.name, _is_folder(e)) for e in entries), reverse=True)
        except OSError as error:
            raise UserError(f"data '{folder}': cannot be read ({error.strerror})") from None
        start = f"{path}/" if path else ""
        waiting += [(start + name, below) for name, below in there]
    return found, again


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder, or a link to one; no link that leads nowhere."""
    try:
        return entry.is_dir()
    except OSError:
        return False
