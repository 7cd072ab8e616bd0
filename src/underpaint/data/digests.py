"""What identifies a source: the sha256 of each of its files.

They are remembered with each file's size, mtime and ctime (nanoseconds), as git does. As there, a
file changed less than two seconds before it was hashed is not: it could change once more within the
clock's resolution.
"""

import hashlib
import json
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from underpaint.bounded import checked, open_regular, read_json
from underpaint.io import replace_text

Stamp = tuple[int, int, int]
LARGEST = 1 << 34  # bytes of what is remembered
UNREADABLE = "unreadable"
SETTLED = 2_000_000_000  # nanoseconds


def of_text(*parts: str) -> str:
    """One digest of several texts; their boundaries count."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def of_array(pixels: NDArray[Any]) -> bytes:
    """Digest of an image's pixels and shape."""
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()


def stamp(file: Path) -> Stamp:
    """Size and times: if they are the same, so are the bytes. Zeros for a file that is gone."""
    try:
        status = file.stat()
    except OSError:
        return (0, 0, 0)
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def of_files(files: Iterable[Path], memory: Path, workers: int) -> dict[Path, tuple[Stamp, str]]:
    """Stamp and sha256 (or `UNREADABLE`) of each file; `memory`: where they are remembered."""
    files = list(files)
    try:
        known = checked(read_json(memory, LARGEST), {}, more=True)
    except (OSError, ValueError):
        known = {}  # nothing is lost but time

    def digest(file: Path) -> tuple[Stamp, str, bool]:
        now = stamp(file)
        old = known.get(str(file))
        if isinstance(old, list) and len(old) == 4 and tuple(old[:3]) == now:
            return now, str(old[3]), True
        try:
            with open_regular(file) as opened:
                sha = hashlib.file_digest(opened, "sha256").hexdigest()
        except OSError:
            return now, UNREADABLE, False
        return now, sha, stamp(file) == now and time.time_ns() - max(now[1:]) > SETTLED

    with ThreadPoolExecutor(workers) as pool:
        digests = dict(zip(files, pool.map(digest, files, chunksize=64), strict=True))
    settled = {str(f): [*s, sha] for f, (s, sha, keep) in digests.items() if keep}
    if settled != known or not memory.exists():
        replace_text(memory, json.dumps(settled))
    return {file: (s, sha) for file, (s, sha, _) in digests.items()}
