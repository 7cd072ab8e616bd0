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
import mmap
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from underpaint.bounded import DAMAGE, Is, checked
from underpaint.data import digests, index
from underpaint.data.streamed import Streamed
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

    pixels: "Rows | Streamed"  # [n, H, W, C], in a file or streamed
    label: NDArray[np.int64]  # [n]; -1: none
    part: NDArray[np.uint8]  # [n]: 0 the data, 1 the source of held-out images
    file_sha: NDArray[np.uint8]  # [n, 32]
    pixel_sha: NDArray[np.uint8]  # [n, 32]
    names: Sequence[str]
    about: dict[str, Any]


class Rows:
    """An array in a file: mapped as a whole into memory, and single rows read.

    Pages of a map that were used count as memory of the process as long as there is room: a run
    would take as much as all its images. Of rows that are read nothing is left; who goes through
    all of the map gives its pages back.
    """

    def __init__(self, path: Path, dtype: Any, shape: tuple[int, ...]) -> None:
        """Raises ValueError if the file has another length."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if path.stat().st_size != size:  # past its end one would read nothing but SIGBUS
            raise ValueError(f"{path} has not {size:,} bytes")
        self._opened = path, dtype, shape
        self.array: NDArray[Any] = np.asarray(np.memmap(path, dtype, "r", shape=shape))
        self._file = os.open(path, os.O_RDONLY)  # which stays when the entry is built anew
        weakref.finalize(self, os.close, self._file)

    def __reduce__(self) -> Any:
        return type(self), self._opened

    def take(self, ids: Iterable[int]) -> NDArray[Any]:
        """A copy of these rows, [n, …]; in any thread. Raises OSError where they cannot be read."""
        ids = list(ids)
        rows = np.empty((len(ids), *self.array.shape[1:]), self.array.dtype)
        for row, i in zip(rows, ids, strict=True):
            if os.preadv(self._file, [row.data], i * row.nbytes) != row.nbytes:
                raise OSError(errno.EIO, "has been cut", str(self._opened[0]))
        return rows

    def have(self, sums: digests.Sums, ids: Iterable[int]) -> bool:
        """Whether the rows `ids` are those of these digests [n, 32]."""
        return all(digests.of_array(self.take([i])[0]) == sums[i].tobytes() for i in ids)


def give_back(array: object) -> None:
    """Of a file that is mapped to be read hold no pages any more: they come back when used."""
    holder: Any = array
    while isinstance(holder, np.ndarray):
        if holder.flags.writeable:  # what was written would be lost
            return
        holder = holder.base
    if isinstance(holder, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        holder.madvise(mmap.MADV_DONTNEED)


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
        pixels = Rows(folder / "pixels.bin", np.uint8, shape)
        entry = Entry(pixels, names=names, about=about, **arrays)
        there = pixels.have(entry.pixel_sha, range(n) if every else some(n))
        return entry if there else None
    except DAMAGE:
        return None  # whatever is wrong with it, building it anew is the answer


def save(folder: Path, about: dict[str, Any], names: Sequence[str], **arrays: Any) -> None:
    """Write what an entry knows of its images, beside their pixels."""
    texts = index.Texts.of(names)
    index.write(folder / INDEX, arrays | {"names": texts.text, "ends": texts.ends}, about)


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
