"""The decoded images on disk: built once, then mapped into memory by everyone.

    ROOT/images/KEY/pixels.bin         uint8, n × H × W × C
    ROOT/images/KEY/index.safetensors  per image: label, part, sha256 of file and pixels, name;
                                       shape, label names, report of the decoding
    ROOT/files, ROOT/splits            remembered digests; which images are held out

KEY hashes the bytes of all files, the options and FORMAT, so a changed image makes another entry.
"""

import contextlib
import errno
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from underpaint.bounded import DAMAGE, Is, checked
from underpaint.data import digests, index
from underpaint.data.streamed import Images
from underpaint.errors import RunFailed, UserError
from underpaint.io import appearing, left, remove

FORMAT = "2"  # raise it when the same bytes and options would give other pixels
INDEX = "index.safetensors"
FILES = (INDEX, "pixels.bin", "about.json", "index.npz", "moments.bin")  # the last: of latents
SAMPLE = 32  # images whose pixels are hashed each time that an entry is opened
ABOUT = {  # what an entry must say of itself
    "shape": Is(list, 4, 4, Is(int, 1, 2**40)),
    "label_names": Is(list, of=Is(str)),
    "sizes": Is(dict, of=Is(int)),
    "unreadable": Is(list, of=Is(dict)),
    "unread": Is(dict, of=Is(list, of=Is(str))),
    "outside": Is(list, of=Is(str)),
    "duplicates": Is(int),
    "near_constant": Is(int),
    "transparent": Is(int),
    "brightest": Is(int, 0, 255),
    "seconds": Is(float),
}

T = TypeVar("T")
Write = Callable[[memoryview], Any]


class Entry(NamedTuple):
    """A cache entry: per image its pixels, and what is known of it."""

    pixels: Images  # [n, H, W, C], mapped or streamed
    label: NDArray[np.int64]  # [n]; -1: none
    part: NDArray[np.uint8]  # [n]: 0 the data, 1 the source of held-out images
    file_sha: NDArray[np.uint8]  # [n, 32]
    pixel_sha: NDArray[np.uint8]  # [n, 32]
    names: Sequence[str]
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


def load(folder: Path, every: bool = False) -> Entry | None:
    """The entry in `folder`, or None if there is none or it is damaged.

    What is known of the images has a checksum; of their pixels some are hashed, or `every`.
    """
    try:
        arrays, about = index.read(folder / INDEX)
        n, *_ = shape = tuple(checked(about, ABOUT, more=True)["shape"])
        names = index.Texts(arrays.pop("names"), arrays.pop("ends"))
        if len(names) != n or any(len(array) != n for array in arrays.values()):
            return None
        pixels = mapped(folder / "pixels.bin", np.uint8, shape)
        entry = Entry(np.asarray(pixels), names=names, about=about, **arrays)
        for i in range(n) if every else some(n):
            if digests.of_array(pixels[i]) != entry.pixel_sha[i].tobytes():
                return None
        return entry
    except DAMAGE:
        return None  # whatever is wrong with it, building it anew is the answer


def save(folder: Path, about: dict[str, Any], names: Sequence[str], **arrays: Any) -> None:
    """Write what an entry knows of its images, beside their pixels."""
    texts = index.Texts.of(names)
    index.write(folder / INDEX, arrays | {"names": texts.text, "ends": texts.ends}, about)


def mapped(path: Path, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """A file of an array, mapped into memory. Raises ValueError if it has another length."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if path.stat().st_size != size:  # past its end one would read nothing but SIGBUS
        raise ValueError(f"{path} has not {size:,} bytes")
    return np.memmap(path, dtype, "r", shape=shape)


def some(n: int) -> list[int]:
    """Numbers of a few of n images, others each time."""
    return sorted(np.random.default_rng().choice(n, min(n, SAMPLE), replace=False).tolist())


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
