"""The decoded images on disk: built once, then mapped into memory by everyone.

    ROOT/images/KEY/pixels.bin   uint8, n × H × W × C
    ROOT/images/KEY/index.npz    per image: label, part, sha256 of file and pixels, name
    ROOT/images/KEY/about.json   shape, label names, report of the decoding
    ROOT/files, ROOT/splits      remembered digests; which images are held out

KEY hashes the bytes of all files, the options and FORMAT, so a changed image makes another entry.
An entry is built beside its place and renamed at the end, under a lock that the system drops if
its process dies: an interrupted build is begun anew, a second process waits and finds the entry.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from underpaint.errors import RunFailed, UserError
from underpaint.io import discard

__all__ = ["FORMAT", "Entry", "Index", "Write", "load", "locked", "root", "store", "writing"]

FORMAT = "1"  # raise it when the same bytes and options would give other pixels


Write = Callable[[memoryview], Any]


class Entry(NamedTuple):
    """A cache entry: per image its pixels, and what is known of it."""

    pixels: NDArray[np.uint8]  # [n, H, W, C], mapped
    label: NDArray[np.int64]  # [n]; -1: none
    part: NDArray[np.uint8]  # [n]: 0 the data, 1 the source of held-out images
    file_sha: NDArray[np.uint8]  # [n, 32]
    pixel_sha: NDArray[np.uint8]  # [n, 32]
    names: list[str]
    about: dict[str, Any]


class Index(NamedTuple):
    """What a build knows of its images, beside their pixels. `about` goes into about.json."""

    label: list[int]
    part: list[int]
    file_sha: list[bytes]
    pixel_sha: list[bytes]
    names: list[str]
    about: dict[str, Any]


def root() -> Path:
    """$UNDERPAINT_CACHE, else $XDG_CACHE_HOME/underpaint, else ~/.cache/underpaint."""
    if chosen := os.environ.get("UNDERPAINT_CACHE"):
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).absolute() / "underpaint"


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn the ways in which writing the cache can fail into a sentence."""
    advice = "point UNDERPAINT_CACHE at another folder"
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(
                f"no space left for the decoded images in {folder}; free some, or {advice}"
            ) from None
        raise UserError(
            f"the cache folder {folder} cannot be written ({error.strerror or error}); {advice}"
        ) from None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock between processes; waits for it. The system frees it if we are killed."""
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def load(folder: Path) -> Entry | None:
    """The entry in `folder`, or None if there is none or it is damaged."""
    try:
        about = json.loads((folder / "about.json").read_text())
        shape = tuple(about["shape"])
        with np.load(folder / "index.npz", allow_pickle=False) as index:
            arrays = {name: index[name] for name in index.files}
        if (folder / "pixels.bin").stat().st_size != int(np.prod(shape)):
            return None
        pixels = np.memmap(folder / "pixels.bin", np.uint8, "r", shape=shape)
        names = arrays.pop("names").tobytes().decode("utf-8", "surrogateescape").split("\0")
        return Entry(pixels, names=names, about=about, **arrays)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None  # whatever is wrong with it, building it anew is the answer


def store(folder: Path, fill: Callable[[Write], Index]) -> Entry:
    """Build the entry `folder`: `fill(write)` writes all pixels and returns what it knows of them.

    The caller holds the entry's lock. Nothing is left behind if `fill` raises.
    """
    part = folder.with_name(f"{folder.name}.part")
    with writing(folder.parent):
        if part.exists():  # of a build that was interrupted
            shutil.rmtree(part)
        part.mkdir(parents=True)
    try:
        with writing(folder.parent):
            with (part / "pixels.bin").open("wb") as file:
                index = fill(file.write)
                _sync(file)
            _write_index(part, index)
            if load(part) is None:  # verified before it gets its name
                raise RunFailed(f"the cache entry {part} was damaged while written; run again")
            if folder.exists():
                discard(folder)
            os.rename(part, folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    entry = load(folder)
    if entry is None:
        raise RunFailed(f"the cache entry {folder} vanished while it was written; run again")
    return entry


def _write_index(folder: Path, index: Index) -> None:
    names = "\0".join(index.names).encode("utf-8", "surrogateescape")
    with (folder / "index.npz").open("wb") as file:
        np.savez(
            file,
            label=np.array(index.label, np.int64),
            part=np.array(index.part, np.uint8),
            file_sha=np.frombuffer(b"".join(index.file_sha), np.uint8).reshape(-1, 32),
            pixel_sha=np.frombuffer(b"".join(index.pixel_sha), np.uint8).reshape(-1, 32),
            names=np.frombuffer(names, np.uint8),
        )
        _sync(file)
    with (folder / "about.json").open("w") as text:
        json.dump(index.about, text, indent=1)
        _sync(text)


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
