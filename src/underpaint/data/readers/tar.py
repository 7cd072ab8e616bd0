"""WebDataset tars, plain or gzipped.

The files of one sample share the path up to the first dot; `.cls` or `.json` holds the label.
"""

import json
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from underpaint.data.readers.base import Contents, Item, Source, is_image
from underpaint.errors import UserError


def find(path: Path) -> Source | None:
    """A file named .tar, .tar.gz or .tgz."""
    if not path.name.lower().endswith((".tar", ".tar.gz", ".tgz")):
        return None
    return Source(str(path), [path], partial(_open, path))


def _open(path: Path) -> Contents:
    """Read twice from front to back (labels, then images): a compressed one is never rewound."""
    labels: dict[str, str | None] = {}
    total = 0
    for name, data in _members(path, lambda name: name.endswith((".cls", ".json"))):
        total += is_image(PurePosixPath(name).name)
        if data is not None:
            label = _label(path, name, data)
            if label is not None:
                labels[_sample(name)] = label
    if not total:
        raise UserError(f"data '{path}': the archive holds no images (PNG, JPEG, WebP, ...)")
    items = (
        Item(name, partial(bytes, data), labels.get(_sample(name)))
        for name, data in _members(path, lambda name: is_image(PurePosixPath(name).name))
        if data is not None
    )
    return Contents(total, items)


def _members(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes | None]]:
    """All files of a tar in their order, with the bytes of those that are wanted."""
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                if member.isfile():
                    file = archive.extractfile(member) if wanted(member.name) else None
                    yield member.name, file.read() if file else None
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"data '{path}' cannot be read as a tar ({error}); copy it again") from None


def _sample(name: str) -> str:
    folder, _, base = name.rpartition("/")
    return f"{folder}/{base.partition('.')[0]}"


def _label(path: Path, name: str, data: bytes) -> str | None:
    try:
        text = data.decode().strip()
        if name.endswith(".cls"):
            return text or None
        record = json.loads(text)
    except ValueError:
        raise UserError(f"data '{path}': '{name}' is not valid text or JSON") from None
    if not isinstance(record, dict):
        return None
    value = record.get("label", record.get("cls"))
    return None if value is None else str(value)
