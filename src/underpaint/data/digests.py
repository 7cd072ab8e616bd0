"""What identifies images: the sha256 of each file, and of the pixels.

The sums of a source's files are remembered with each file's size, mtime and ctime (nanoseconds), as
git does. As there, a file changed less than two seconds before it was hashed is not: it could
change once more within the clock's resolution.
"""

import hashlib
import json
import os
import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from underpaint.bounded import DAMAGE, pieces
from underpaint.data import index
from underpaint.data.index import Texts

Sums = NDArray[np.uint8]  # [n, 32]; zeros: of a file that cannot be read
Stamp = tuple[int, int, int]
Stamps = NDArray[np.int64]  # [n, 3]

SETTLED = 2_000_000_000  # nanoseconds
CHUNK = 256  # files a task of the pool
BLOCK = 1 << 14  # texts that are hashed together
UNREADABLE = bytes(32)


class Files(NamedTuple):
    """The files of a source by their paths from `base`, and what they are."""

    base: str
    names: Sequence[str]
    stamps: Stamps
    sums: Sums
    damaged: bool = False  # whether what was remembered was, so that all were hashed

    def texts(self) -> Iterator[str]:
        """What makes these files others: of each its path and its sum."""
        sums = self.sums.tobytes()
        for i, name in enumerate(self.names):
            sha = sums[32 * i : 32 * i + 32]
            inside = ".." not in name and name[0] != "/"
            yield name if inside else os.path.relpath(os.path.join(self.base, name), self.base)
            yield "unreadable" if sha == UNREADABLE else sha.hex()


class Identities(NamedTuple):
    """What is known of images: the sha256 of their files and of their pixels."""

    files: Sums
    pixels: Sums

    @classmethod
    def none(cls) -> "Identities":
        """Of images that nobody knows."""
        return cls(np.empty((0, 32), np.uint8), np.empty((0, 32), np.uint8))


def of_text(*parts: str) -> str:
    """One digest of several texts; their boundaries count."""
    return of_texts(parts)


def of_texts(texts: Iterable[str]) -> str:
    """The same of many, which are not held at once: the sha256 of their list in JSON."""
    digest, texts, comma = hashlib.sha256(b"["), iter(texts), ""
    while some := list(islice(texts, BLOCK)):
        digest.update(f"{comma}{json.dumps(some)[1:-1]}".encode())
        comma = ", "
    digest.update(b"]")
    return digest.hexdigest()


def of_array(pixels: NDArray[Any]) -> bytes:
    """Digest of an image's pixels and shape."""
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()


def keys(sums: Sums) -> NDArray[np.bytes_]:
    """One value for each digest, which numpy sorts and compares: [n]."""
    return np.ascontiguousarray(sums).view("S32").reshape(len(sums))


def order(sums: Sums) -> NDArray[np.int64]:
    """In which order the digests ascend, equal ones as they stand: [n]."""
    heads = np.ascontiguousarray(sums[:, :8]).view(">u8").reshape(len(sums)).astype(np.uint64)
    found = np.argsort(heads, kind="stable")  # far quicker than of all their bytes
    heads = heads[found]
    same = np.flatnonzero(heads[1:] == heads[:-1])
    if (sums[found[same]] != sums[found[same + 1]]).any():  # two whose first bytes alone are equal
        return np.argsort(keys(sums), kind="stable")
    return found


def distinct(sums: Sums) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first of each digest [g], which ascend, and which of these every one is [n]."""
    rising = order(sums)
    new = np.ones(len(sums), bool)
    new[1:] = (sums[rising[1:]] != sums[rising[:-1]]).any(1)
    group = np.empty(len(sums), np.int64)
    group[rising] = np.cumsum(new) - 1
    return rising[new], group


def places(sums: Sums, known: NDArray[np.bytes_]) -> NDArray[np.int64]:
    """Where each digest is among `known`, ascending keys; −1 where it is not: [n]."""
    rising = order(sums)  # in which they are found far quicker
    wanted = keys(sums)[rising]
    there = np.searchsorted(known, wanted)
    there[there == len(known)] = 0
    found = np.full(len(wanted), -1, np.int64)
    if len(known):
        found[rising] = np.where(known[there] == wanted, there, -1)
    return found


def among(sums: Sums, others: Sums) -> NDArray[np.bool_]:
    """Whether each digest is one of `others`: [n]."""
    return places(sums, keys(others)[order(others)]) >= 0


def stamp(file: str | Path) -> Stamp:
    """Size and times: if they are the same, so are the bytes. Zeros for a file that is gone."""
    try:
        status = os.stat(file)
    except OSError:
        return (0, 0, 0)
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def stamps(base: str, names: Sequence[str]) -> Stamps:
    """The stamp of each file: [n, 3]."""
    found, start = array("q"), os.path.join(base, "")
    for name in names:
        found.extend(stamp(name if name[0] == "/" else start + name))
    return np.frombuffer(found, np.int64).reshape(-1, 3)


def of_files(base: str, names: Sequence[str], memory: Path, workers: int) -> Files:
    """Stamp and sum of each file. `memory`: where they are remembered, which only saves time."""
    began = time.time_ns()
    files, new, texts = _remembered(base, names, memory)
    if new is None:
        return files
    files.sums[new] = _hashed([os.path.join(base, names[i]) for i in new.tolist()], workers)
    then = files.stamps[new]
    settled = (stamps(base, [names[i] for i in new.tolist()]) == then).all(1)
    settled &= files.sums[new].any(1)
    settled &= began - then[:, 1:].max(1, initial=0) > SETTLED
    kept = files.stamps.copy()
    kept[new[~settled]] = -1
    known: index.Arrays = {
        "names": texts.text,
        "ends": texts.ends,
        "stamps": kept,
        "sums": files.sums,
    }
    index.write(memory, known, {})
    return files


def remembered(base: str, names: Sequence[str], memory: Path) -> Files | None:
    """The same without hashing anything; None where something has to be."""
    files, new, _ = _remembered(base, names, memory)
    return files if new is None else None


def _remembered(
    base: str, names: Sequence[str], memory: Path
) -> tuple[Files, NDArray[np.int64] | None, Texts]:
    """What is known of the files, those that have to be hashed (None: none at all), and `names`."""
    now, texts, n, damaged = stamps(base, names), Texts.of(names), len(names), False
    known, sums, same = np.full((n, 3), -1, np.int64), np.zeros((n, 32), np.uint8), False
    try:
        old = index.read(memory).arrays
        before = Texts(old["names"], old["ends"])
        if same := before == texts:
            known, sums = old["stamps"], old["sums"]
        elif len(before):
            place = {name: i for i, name in enumerate(before)}
            found = np.array([place.get(name, -1) for name in names], np.int64)
            known = np.where(found[:, None] < 0, -1, old["stamps"][found])
            sums = old["sums"][found]
    except FileNotFoundError:
        pass
    except DAMAGE:
        damaged = True
    new = np.flatnonzero((known != now).any(1))
    if same and not len(new):
        return Files(base, names, now, sums), None, texts
    return Files(base, names, now, sums.copy(), damaged), new, texts


def _hashed(files: list[str], workers: int) -> Sums:
    """The sum of each file: [n, 32]."""
    chunks = [files[i : i + CHUNK] for i in range(0, len(files), CHUNK)]
    with ThreadPoolExecutor(workers) as pool:
        sums = [*(map if workers == 1 else pool.map)(_hash_all, chunks)]
    return np.frombuffer(b"".join(sums), np.uint8).reshape(-1, 32)


def _hash_all(files: list[str]) -> bytes:
    return b"".join(map(_hash, files))


def _hash(file: str) -> bytes:
    digest = hashlib.sha256()
    try:
        for part in pieces(file):
            digest.update(part)
    except OSError:
        return UNREADABLE
    return digest.digest()
