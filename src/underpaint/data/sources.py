"""Where images come from: a source string → files on disk and the images inside them.

A source knows its files (whose bytes identify it) before anything is decoded; `open` then yields
the images one by one as (name, how to read it, label). Image files are returned as bytes, arrays
and tables as what they hold. Unlabelled images have the label None.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from underpaint.data.decode import Unreadable
from underpaint.errors import UserError
from underpaint.sealed.format import is_sealed

__all__ = ["AVATARS", "IMAGE_SUFFIXES", "Contents", "Item", "Source", "find", "image_files"]

AVATARS = Path(__file__).parent / "avatars"
HAIR = ("black", "brown", "chestnut", "blonde", "orange", "pink", "blue", "purple")
IMAGE_SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff")
)
LARGEST_FILE = 1 << 30  # bytes of one image inside a zip, against zip bombs
KINDS = "a folder, .zip, .tar, .npy, .npz, IDX .gz, .csv, .parquet or avatars:STYLE"


class Item(NamedTuple):
    """One image of a source, not yet read."""

    name: str
    read: Callable[[], bytes | NDArray[np.uint8]]
    label: str | None


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


def find(text: str) -> Source:
    """Tell the kind of a source string. Raises UserError if there is nothing to read."""
    from underpaint.data import arrays, tables

    if not text:
        raise UserError(f"no images given: add --data with {KINDS}")
    if text.startswith("avatars:"):
        return _avatars(text)
    path = Path(text).expanduser()
    if not path.exists():
        raise UserError(f"data '{text}': there is no such file or folder; give {KINDS}")
    path = path.resolve()
    if path.is_dir():
        images = image_files(path)
        if images:
            return Source(str(path), images, partial(_folder, path, images))
        if files := arrays.idx_files(path):
            return Source(str(files[0]), files, partial(arrays.idx, files))
        if files := tables.table_files(path):
            return Source(str(path), files, partial(tables.table, path, files))
        raise UserError(
            f"data '{text}': the folder holds no images; expected PNG, JPEG, WebP, BMP, GIF or "
            "TIFF files in it or its sub-folders"
        )
    name = path.name.lower()
    if is_sealed(path):
        raise UserError(
            f"data '{text}' is sealed: it holds visible patches and no whole image, so it serves "
            "the masked stages of pretrain alone"
        )
    if name.endswith(".zip"):
        return Source(str(path), [path], partial(_zip, path))
    if name.endswith((".tar", ".tar.gz", ".tgz")):
        return Source(str(path), [path], partial(_tar, path))
    if name.endswith((".npy", ".npz")):
        return Source(str(path), [path], partial(arrays.numpy_file, path))
    if name.endswith(".csv"):
        rows = _rows(path)
        files = [path, *sorted({p for p, _, _ in rows if p.is_file()})]
        return Source(str(path), files, partial(_csv, rows))
    if name.endswith((".parquet", ".arrow")):
        return Source(str(path), [path], partial(tables.table, path.parent, [path]))
    if "idx3" in name or name.endswith(".gz"):
        files = arrays.with_labels(path)
        return Source(str(files[0]), files, partial(arrays.idx, files))
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise UserError(f"data '{text}' is a single image; give the folder of all your images")
    raise UserError(f"data '{text}' is of no known kind; give {KINDS}")


# --- folders and zips ------------------------------------------------------------------------


def image_files(root: Path) -> list[Path]:
    """All image files below a folder, sorted; hidden ones are left out, links followed once."""
    found, seen = [], set()

    def refuse(error: OSError) -> None:
        raise UserError(f"data '{error.filename}': cannot be read ({error.strerror})")

    for folder, below, names in os.walk(root, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link back to where we have been
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(name for name in below if not _hidden(name))
        found += [Path(folder, name) for name in names if _is_image(name)]
    return sorted(found)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_image(name: str) -> bool:
    return not _hidden(name) and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _folder(root: Path, files: list[Path]) -> Contents:
    names = [file.relative_to(root).as_posix() for file in files]
    labels = _folder_labels(names)
    items = (
        Item(name, file.read_bytes, label)
        for name, file, label in zip(names, files, labels, strict=True)
    )
    return Contents(len(names), items)


def _folder_labels(names: list[str]) -> list[str | None]:
    """The first folder in which the paths differ; no labels if it is the same for all.

    `set/cats/1.png`, `set/dogs/new/2.png` → cats, dogs.
    """
    parents = [PurePosixPath(name).parent.parts for name in names]
    first, last = min(parents), max(parents)  # what these two share is shared by all
    common = 0
    while common < len(first) and first[common] == last[common]:
        common += 1
    labels = [parts[common] if len(parts) > common else None for parts in parents]
    return labels if len(set(labels) - {None}) > 1 else [None] * len(labels)


def _zip(path: Path) -> Contents:
    archive = _open_zip(path)
    names = sorted(
        name
        for name in archive.namelist()
        if _is_image(PurePosixPath(name).name)
        and not any(_hidden(part) for part in PurePosixPath(name).parts)
    )
    if not names:
        raise UserError(f"data '{path}': the archive holds no images (PNG, JPEG, WebP, ...)")
    labels = _folder_labels(names)
    items = (
        Item(name, partial(_zip_bytes, archive, name), label)
        for name, label in zip(names, labels, strict=True)
    )
    return Contents(len(names), items)


def _zip_bytes(archive: zipfile.ZipFile, name: str) -> bytes:
    if archive.getinfo(name).file_size > LARGEST_FILE:
        raise Unreadable(f"is larger than {LARGEST_FILE >> 20} MiB")
    return archive.read(name)  # from several threads: ZipFile locks its file


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"data '{path}' cannot be read as a zip ({error}); copy it again") from None


def _avatars(text: str) -> Source:
    style = text.removeprefix("avatars:")
    styles = sorted(file.name.removesuffix("-32.zip") for file in AVATARS.glob("*-32.zip"))
    if style not in styles:
        close = difflib.get_close_matches(style, styles, 1)
        hint = f"did you mean 'avatars:{close[0]}'?" if close else f"known: {', '.join(styles)}"
        raise UserError(f"data '{text}': there are no such avatars; {hint}")
    path = AVATARS / f"{style}-32.zip"

    def contents() -> Contents:
        archive = _open_zip(path)
        rows = list(csv.DictReader(io.StringIO(archive.read("labels.csv").decode())))
        items = (
            Item(row["filename"], partial(archive.read, row["filename"]), row["hair_colour"])
            for row in rows
        )
        return Contents(len(rows), items, HAIR)

    return Source(text, [path], contents)


# --- WebDataset tars -------------------------------------------------------------------------


def _tar(path: Path) -> Contents:
    """Files of one sample share the path up to the first dot; `.cls` or `.json` holds the label.

    Read twice from front to back (labels, then images), so that a compressed one is never rewound.
    """
    labels: dict[str, str | None] = {}
    total = 0
    for name, data in _members(path, lambda name: name.endswith((".cls", ".json"))):
        total += _is_image(PurePosixPath(name).name)
        if data is not None:
            label = _tar_label(path, name, data)
            if label is not None:
                labels[_sample(name)] = label
    if not total:
        raise UserError(f"data '{path}': the archive holds no images (PNG, JPEG, WebP, ...)")
    items = (
        Item(name, partial(bytes, data), labels.get(_sample(name)))
        for name, data in _members(path, lambda name: _is_image(PurePosixPath(name).name))
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


def _tar_label(path: Path, name: str, data: bytes) -> str | None:
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


# --- CSV -------------------------------------------------------------------------------------


def _rows(path: Path) -> list[tuple[Path, str, str | None]]:
    """Rows as (file, name as written, label)."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            if "path" not in (reader.fieldnames or ()):
                shown = ",".join(reader.fieldnames or ())[:60]
                raise UserError(
                    f"data '{path}': its first line must be 'path,label', not '{shown}'"
                )
            rows = [(row["path"] or "", (row.get("label") or "").strip()) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"data '{path}' is not a CSV text in UTF-8 ({error})") from None
    except OSError as error:
        raise UserError(f"data '{path}' cannot be read ({error.strerror})") from None
    if not rows:
        raise UserError(f"data '{path}' has no rows below its first line 'path,label'")
    return [(path.parent / name, name, label or None) for name, label in rows]


def _csv(rows: list[tuple[Path, str, str | None]]) -> Contents:
    return Contents(len(rows), (Item(name, file.read_bytes, label) for file, name, label in rows))
