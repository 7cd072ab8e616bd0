"""Image files in a folder and its sub-folders, whose names are the labels."""

import os
from pathlib import Path

from underpaint.data.readers.base import Contents, Source, is_hidden, is_image, labelled
from underpaint.errors import UserError


def find(path: Path) -> Source | None:
    """A folder with at least one image file somewhere below it."""
    files = _image_files(path) if path.is_dir() else []

    def read() -> Contents:
        names = [file.relative_to(path).as_posix() for file in files]
        return labelled(names, lambda name: (path / name).read_bytes())

    return Source(str(path), files, read) if files else None


def _image_files(root: Path) -> list[Path]:
    """All image files below a folder, sorted; hidden ones are left out, links followed once."""
    images, seen = [], set()

    def refuse(error: OSError) -> None:
        raise UserError(f"data '{error.filename}': cannot be read ({error.strerror})")

    for folder, below, names in os.walk(root, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link back to where we have been
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(name for name in below if not is_hidden(name))
        images += [Path(folder, name) for name in names if is_image(name)]
    return sorted(images)
