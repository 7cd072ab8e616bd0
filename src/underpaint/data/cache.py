"""The decoded images on disk: built once, then mapped into memory by everyone.

    ROOT/images/KEY/pixels.bin   uint8, n × H × W × C
    ROOT/images/KEY/index.npz    per image: label, part, sha256 of file and pixels, name
    ROOT/images/KEY/about.json   shape, label names, report of the decoding
    ROOT/files, ROOT/splits      remembered digests; which images are held out

KEY hashes the bytes of all files, the options and FORMAT, so a changed image makes another entry.
"""

import contextlib
import errno
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from underpaint.errors import RunFailed, UserError
from underpaint.io import appearing, left, remove

FORMAT = "2"  # raise it when the same bytes and options would give other pixels
FILES = ("about.json", "index.npz", "pixels.bin", "moments.bin")  # the last: of latents

T = TypeVar("T")
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


def save(folder: Path, about: dict[str, Any], names: Sequence[str], **arrays: Any) -> None:
    """Write what an entry knows of its images, beside their pixels."""
    text = "\0".join(names).encode("utf-8", "surrogateescape")
    np.savez(folder / "index.npz", names=np.frombuffer(text, np.uint8), **arrays)
    (folder / "about.json").write_text(json.dumps(about, indent=1))


def built(
    folder: Path, load: Callable[[Path], T | None], build: Callable[[Path], None], force: bool
) -> tuple[T, bool]:
    """What `load` finds in the entry `folder`, and whether it was there before.

    Else, or with `force`, `build` fills a temporary folder, renamed at the end, under a lock that
    dies with its process: an interrupted build is begun anew, a second process waits for the first.
    """
    entry = None if force else load(folder)
    if entry is not None:
        return entry, True
    with locked(folder.with_name(f"{folder.name}.lock")):
        entry = None if force else load(folder)  # built while we waited
        if entry is not None:
            return entry, True
        with writing(folder.parent):
            for path in left(folder.parent, folder.name.__eq__):  # of a build that was interrupted
                remove(path)
            with appearing(folder, FILES) as part:
                build(part)
                if load(part) is None:  # verified before it gets its name
                    raise RunFailed(f"the cache entry {part} was damaged while written; run again")
    entry = load(folder)
    if entry is None:
        raise RunFailed(f"the cache entry {folder} vanished while it was written; run again")
    return entry, False
