"""WebDataset tars and tars of folders, plain or compressed (gzip, bzip2, xz).

An image's label is in the `.cls` or `.json` that shares its path without the suffix, else the one
that shares it up to the first dot (WebDataset's key). Where there are none, folders are the labels.

Python's tarfile takes a header that it cannot read for the end of an archive. Here only blocks of
zeros are the end, as POSIX has it, and nothing may follow them.
"""

import bz2
import gzip
import io
import json
import lzma
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from underpaint.bounded import DAMAGE, FILE, PIECE, Readable, Stream, open_regular
from underpaint.data.readers.base import (
    HEAD,
    Contents,
    Item,
    Source,
    check_distinct,
    choose,
    folder_labels,
    head_of,
    kind_of,
)
from underpaint.errors import UserError

OPENERS: dict[str, Callable[[Any], Any]] = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}
LABEL = 1 << 20  # bytes of a .cls or a .json
BLOCK = tarfile.BLOCKSIZE


class _Header(tarfile.TarInfo):
    """A member's header, which is whole or ends the reading."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "_Header":
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.InvalidHeaderError as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"{error} at byte {archive.offset:,}") from None
        except tarfile.HeaderError:
            raise tarfile.ReadError("it was cut off: nothing marks its end") from None


def find(path: Path) -> Source | None:
    """A tar by its content, or a file that is named .tar, .tar.gz or .tgz."""
    if path.is_dir():
        return None
    named = path.name.lower().endswith((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"))
    if not named and kind_of(head_of(path)) != "tar" and not _is_packed(path):
        return None
    return Source(str(path), str(path.parent), [path.name], partial(contents, path))


def _is_packed(path: Path) -> bool:
    """Whether a compressed file holds a tar."""
    opener = OPENERS.get(kind_of(head_of(path)))
    try:
        with open_regular(path) as file:
            return opener is not None and kind_of(opener(file).read(HEAD)) == "tar"
    except DAMAGE:
        return False


def contents(path: Path, origin: str | None = None, folders: bool = True) -> Contents:
    """Read twice from front to back (names, then images): a compressed one is never rewound.

    `origin`: what errors name, if not `path`. `folders`: whether they are labels where there are no
    others.
    """
    origin = origin or str(path)
    beside: dict[str, bytes] = {}
    heads: dict[str, bytes] = {}
    links: list[str] = []
    for name, data, _ in _members(path, origin, _beside, HEAD):
        if data is None:
            links.append(name)
        elif _beside(name):
            beside[name] = data
        else:
            heads[name] = data[:HEAD]
    names, unread = choose(heads, heads.__getitem__)
    unread |= {"link": links} if links else {}
    if not names:
        raise UserError(f"data '{origin}': the archive holds no images (PNG, JPEG, WebP, ...)")
    labels = _labels(origin, names, beside)
    if labels is None:
        labels = folder_labels(names) if folders else [None] * len(names)
    wanted = dict(zip(names, labels, strict=True))
    items = (
        Item(name, partial(bytes, data), wanted[name], (offset, len(data)))
        for name, data, offset in _members(path, origin, wanted.__contains__, 0)
        if name in wanted and data is not None
    )
    return Contents(len(names), items, unread=unread)


def _members(
    path: Path, origin: str, whole: Callable[[str], bool], most: int
) -> Iterator[tuple[str, bytes | None, int]]:
    """All files of a tar in their order: their bytes if wanted whole, else `most`; None: a link.

    And where their bytes begin in the unpacked tar.
    """
    try:
        with open_regular(path) as raw:
            size = path.stat().st_size
            opener = OPENERS.get(kind_of(raw.read(HEAD)))
            raw.seek(0)
            stream = _Forward(Stream(opener(raw), size)) if opener else _Forward(raw, raw)
            with tarfile.open(fileobj=stream, mode="r:", tarinfo=_Header) as files:
                yield from _read(origin, files, whole, most, None if opener else size)
                if any(any(part) for part in iter(partial(stream.read, PIECE), b"")):
                    raise tarfile.ReadError("more follows its end: are these several in one file?")
    except DAMAGE as error:
        reason = str(error) or type(error).__name__
        raise UserError(
            f"data '{origin}' cannot be read as a tar ({reason}); copy it again"
        ) from None


def _read(
    origin: str,
    files: tarfile.TarFile,
    whole: Callable[[str], bool],
    most: int,
    size: int | None,
) -> Iterator[tuple[str, bytes | None, int]]:
    seen: list[str] = []
    for member in files:
        files.members.clear()  # type: ignore[attr-defined]  # else it keeps them all
        if member.islnk() or member.issym():
            yield member.name, None, 0
        if not member.isfile():
            continue
        seen.append(member.name)
        limit = LABEL if _beside(member.name) else FILE
        if member.size > limit or (size is not None and member.size > size):
            raise tarfile.ReadError(f"'{member.name}' is said to have {member.size:,} bytes")
        file = files.extractfile(member)
        assert file is not None  # it is a file
        wanted = member.size if whole(member.name) else min(most, member.size)
        yield member.name, file.read(wanted), member.offset_data
    check_distinct(origin, seen)


class _Forward(io.RawIOBase):
    """A stream as tarfile needs it, which reads in pieces and, packed, only forwards.

    What is passed over is read; one byte back is remembered, which tarfile goes to see the end.
    """

    def __init__(self, file: Readable, origin: BinaryIO | None = None) -> None:
        self.file, self.origin = file, origin
        self.place, self.last, self.again = 0, b"", b""

    def read(self, size: int = -1) -> bytes:
        if size > FILE:
            raise OSError(f"a header says {size:,} bytes")
        parts, self.again = [self.again[:size]], self.again[size:]
        size -= len(parts[0])
        while size > 0 and (part := self.file.read(min(size, PIECE))):
            parts.append(part)
            size -= len(part)
        data = b"".join(parts)
        self.place += len(data)
        self.last = data[-1:] or self.last
        return data

    def seek(self, place: int, whence: int = 0) -> int:
        if whence == io.SEEK_CUR:  # where are we?
            return self.place
        if self.origin is not None:
            self.place, self.again = self.origin.seek(place), b""
        elif place == self.place - 1 and not self.again:
            self.place, self.again = place, self.last
        while self.place < place and self.read(min(PIECE, place - self.place)):
            pass
        if self.place > place:
            raise OSError("it would have to be read backwards")
        return self.place


def _beside(name: str) -> bool:
    return name.endswith((".cls", ".json"))


def _labels(origin: str, names: list[str], beside: dict[str, bytes]) -> list[str | None] | None:
    """The label of each image, from the files beside them; None if these say none."""
    texts = {name: _label(origin, name, data) for name, data in beside.items()}
    given = {name: text for name, text in texts.items() if text is not None}
    if not given:
        return None
    exact: dict[str, set[str]] = {}
    keys: dict[str, set[str]] = {}
    for name, text in given.items():
        exact.setdefault(name.rpartition(".")[0], set()).add(text)
        keys.setdefault(_key(name), set()).add(name)
    found: list[str | None] = []
    for name in names:
        labels = exact.get(name.rpartition(".")[0], set())
        files = keys.get(_key(name), set())
        if len(labels) > 1 or (not labels and len(files) > 1):
            raise UserError(
                f"data '{origin}': '{name}' has several labels beside it, as in '{min(files)}' and "
                f"'{max(files)}'; name each label as its image"
            )
        found.append(min(labels) if labels else given[min(files)] if files else None)
    return found


def _key(name: str) -> str:
    """WebDataset's key: the path up to the first dot of the file's name."""
    folder, _, base = name.rpartition("/")
    return f"{folder}/{base.partition('.')[0]}"


def _label(origin: str, name: str, data: bytes) -> str | None:
    try:
        text = data.decode().strip()
        if name.endswith(".cls"):
            return text or None
        record = json.loads(text)
    except (ValueError, RecursionError):
        raise UserError(f"data '{origin}': '{name}' is not valid text or JSON") from None
    if not isinstance(record, dict):
        return None
    value = record.get("label", record.get("cls"))
    return None if value is None else str(value)
