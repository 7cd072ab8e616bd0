"""Reading what a stranger may have written: regular files, bytes within bounds, JSON by a table.

A table says of each key what its value must be (`Is`); what it does not list is refused. Whatever
is wrong is one ValueError or OSError with a sentence, before memory is taken for it.
"""

import errno
import io
import json
import lzma
import math
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any, Protocol

TEXT = 1 << 26  # bytes of a JSON file
FILE = 1 << 29  # bytes of one image file, or of what an archive says it is
RATIO, FREE = 1_000, 1 << 24  # more than RATIO bytes from one are a bomb, beyond the first FREE
PIECE = 1 << 20
FIRST = 1 << 12  # bytes that are read of a file whose size is unknown
DAMAGE: tuple[type[Exception], ...] = (  # what reading a damaged archive or array can raise
    *(OSError, EOFError, ValueError, KeyError, TypeError, OverflowError, MemoryError),
    *(RuntimeError, SyntaxError, TokenError),  # encrypted, packed by an unknown method, too deep
    *(struct.error, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError),
)


def open_regular(path: str | Path) -> io.BufferedReader:
    """Open a file to read, never a pipe, a device or a folder. Raises OSError, at once."""
    return open(_opened(path)[0], "rb")


def _opened(path: str | Path) -> tuple[int, int]:
    """The descriptor of a regular file, and its size."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # which no pipe blocks
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    return descriptor, status.st_size


def pieces(path: str | Path, most: float = math.inf) -> Iterator[bytes]:
    """The bytes of a regular file of at most `most`; a small one in one piece. Raises OSError."""
    descriptor, size = _opened(path)
    done = 0
    try:
        # it may grow, or its size be said to be 0, as in /proc
        while size <= most and (part := os.read(descriptor, min(PIECE, max(size, FIRST)) + 1)):
            done += len(part)
            size = max(size, done)
            if size <= most:
                yield part
    finally:
        os.close(descriptor)
    if size > most:
        raise OSError(errno.EFBIG, f"is larger than {int(most) >> 20:,} MiB", str(path))


def read_regular(path: str | Path, most: int = FILE) -> bytes:
    """All bytes of a regular file of at most `most`. Raises OSError."""
    parts = [*pieces(path, most)]
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_json(path: str | Path, most: int = TEXT) -> Any:
    """What a JSON file holds. Raises OSError, or ValueError for what is no JSON or too deep."""
    try:
        return json.loads(read_regular(path, most))
    except RecursionError:
        raise ValueError("nested too deeply") from None


@dataclass(frozen=True)
class Is:
    """What a value must be: its type, the range of a number, the length and content of others."""

    kind: type | tuple[type, ...]
    least: float = 0
    most: float = 2**62  # of a text, a list or a dict: its length
    of: "Is | None" = None  # the items of a list, the values of a dict
    among: frozenset[Any] | None = None  # the values, or the keys of a dict
    optional: bool = False

    def refusal(self, value: Any) -> str:
        """Why `value` is not so; empty if it is."""
        kinds = self.kind if isinstance(self.kind, tuple) else (self.kind,)
        if type(value) not in kinds and not (float in kinds and type(value) is int):
            return f"is {_shown(value)}, not {' or '.join(kind.__name__ for kind in kinds)}"
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if not (self.least <= value <= self.most and math.isfinite(value)):
                return f"is {_shown(value)}"
        elif isinstance(value, (str, list, dict)) and not self.least <= len(value) <= self.most:
            return f"has a length of {len(value)}"
        keys = value if isinstance(value, dict) else (value,)
        if self.among is not None and any(key not in self.among for key in keys):
            return f"is {_shown(value)}"
        if self.of is not None and isinstance(value, (list, dict)):
            for item in value.values() if isinstance(value, dict) else value:
                if reason := self.of.refusal(item):
                    return f"holds what {reason}"
        return ""


def checked(values: Any, table: Mapping[str, Is], more: bool = False) -> dict[str, Any]:
    """`values`, if they are a dict as `table` says; `more`: other keys may be there too.

    Raises ValueError that names the first key that is wrong.
    """
    if not isinstance(values, dict):
        raise ValueError(f"it is {_shown(values)}, not a dict")
    for key, wanted in table.items():
        if key not in values:
            if wanted.optional:
                continue
            raise ValueError(f"'{key}' is missing")
        if reason := wanted.refusal(values[key]):
            raise ValueError(f"'{key}' {reason}")
    others = [] if more else [key for key in values if key not in table]
    if others:
        raise ValueError(f"'{_shown(others[0])}' is unknown")
    return values


def bomb(size: int, packed: int) -> bool:
    """Whether `size` bytes are too many to come of `packed` ones."""
    return size > FREE and size > RATIO * packed


class Readable(Protocol):
    """What can be read."""

    def read(self, size: int = -1, /) -> bytes: ...


class Stream:
    """A decompressed stream that ends, with an OSError, where it grows to a bomb.

    `packed`: the bytes that are behind it. Reads pieces, so that no claimed size takes memory.
    """

    def __init__(self, file: Readable, packed: int) -> None:
        self.file, self.packed, self.done = file, packed, 0

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes, all there are for -1."""
        parts = []
        while size:
            part = self.file.read(PIECE if size < 0 else min(size, PIECE))
            if not part:
                break
            self.done += len(part)
            if bomb(self.done, self.packed):
                raise OSError(errno.EFBIG, f"unpacks to more than {RATIO:,} times its size")
            parts.append(part)
            size -= len(part) if size > 0 else 0
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _shown(value: Any) -> str:
    if isinstance(value, (list, dict)):
        return f"a {type(value).__name__}"
    text = " ".join(f"{value!s:.200}".encode("utf-8", "replace").decode().split())
    return text if len(text) <= 40 else f"{text[:40]}…"
