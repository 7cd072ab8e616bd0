"""Sealed data sets: of each image the visible patches of one mask, and nothing else.

    byte 0   8       b"UPSEALED"
    8        4       version, uint32
    12       32      sha256 of the first 65,536 bytes without these 32
    44       65,492  JSON (`FIELDS`), filled up with spaces
    65,536           arrays in numpy's .npy format, one behind the other, nothing between them:
                     labels int32 [n] (only if labels were kept; -1: none), positions uint16 [n, V]
                     (ascending), patches uint8 [n, V, P] (in the order of `spaces.Pixels`),
                     held_out bool [n], checksums uint8 [k, 32]

Images are in random order. Each .npy header takes 128 bytes and is determined by the JSON, which
also says where each array's data begin, so that they can be mapped into memory. Numbers are
little-endian, and each array is aligned to its type. `checksums` are sha256 of a chunk of images of
one array, the .npy header included in its first chunk; their own sha256 is in the JSON. So every
byte of a file has one checksum and one meaning. docs/sealed.md is the page for those who hold or
give such a file.

An image's mask is drawn from HMAC-SHA256(key, sha256 of its pixels): with the key anybody who has
the image can draw it again, without it nobody can. The key is in no file that is written here.
"""

import hashlib
import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from underpaint.bounded import open_regular
from underpaint.data import digests
from underpaint.data.source import SEALED
from underpaint.data.source import is_sealed as is_sealed
from underpaint.errors import UserError

VERSION = 2
HEADER = 65_536
NPY = 128  # bytes of an .npy header
CHUNK = 1 << 20  # bytes of patches that share a checksum, about
KINDS = ("patch", "block", "crop")  # salient masks would reveal the contrast of hidden patches

FIELDS = {  # of the JSON, all of them and no others
    "images": int,  # n
    "size": list,  # height, width in pixels
    "channels": int,
    "patch": int,  # side in pixels
    "visible": int,  # V
    "patch_dim": int,  # P = channels · patch²
    "kind": str,  # of the mask
    "rate": float,  # asked
    "block": int,
    "multiple": int,  # sides and corners of a crop are multiples of so many patches
    "label_names": list,  # empty: there is no array of labels
    "held_out": int,  # how many images
    "bleed": int,  # pixels by which resampling may have carried a neighbour into a patch
    "duplicates": dict,  # numbers named as in DUPLICATES
    "arrays": dict,  # the byte at which each array's data begin
    "checksums": str,  # sha256 of the array `checksums`, its .npy header included
}
JOINT = ("joint_coverage_mean", "joint_coverage_largest")
DUPLICATES = ("groups", "images", "largest", *JOINT, "exact", "dropped")


class Block(NamedTuple):
    """An array of a sealed file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int  # of its .npy header

    @property
    def offset(self) -> int:
        """The byte at which its data begin."""
        return self.start + NPY

    @property
    def row(self) -> int:
        """Bytes of one image."""
        return np.dtype(self.dtype).itemsize * math.prod(self.shape[1:])

    @property
    def end(self) -> int:
        """The first byte after it."""
        return self.offset + self.shape[0] * self.row

    def npy_header(self) -> bytes:
        """As numpy writes it, but of the same length in all numpy versions."""
        text = f"{{'descr': '{self.dtype}', 'fortran_order': False, 'shape': {self.shape}, }}"
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", NPY - 10) + f"{text:<117}\n".encode()


def blocks(n: int, visible: int, patch_dim: int, labelled: bool) -> list[Block]:
    """The arrays of a file of n images, in their order; that of the checksums is the last."""
    arrays: list[tuple[str, str, tuple[int, ...]]] = [
        ("labels", "<i4", (n,)),
        ("positions", "<u2", (n, visible)),
        ("patches", "|u1", (n, visible, patch_dim)),
        ("held_out", "|b1", (n,)),
    ][not labelled :]
    k = len(arrays) * math.ceil(n / _chunk(visible, patch_dim))
    start, placed = HEADER, []
    for name, dtype, shape in [*arrays, ("checksums", "|u1", (k, 32))]:
        placed.append(Block(name, dtype, shape, start))
        start = placed[-1].end
    return placed


def chunks(arrays: list[Block]) -> Iterator[tuple[Block, int, int, int, int]]:
    """What has a checksum: array, first and last + 1 of its images, first and last + 1 byte.

    In the order of the checksums, which is that of the file.
    """
    _, visible, patch_dim = next(block.shape for block in arrays if block.name == "patches")
    for block in arrays[:-1]:
        begin, n = block.start, block.shape[0]
        for first in range(0, n, _chunk(visible, patch_dim)):
            last = min(n, first + _chunk(visible, patch_dim))
            end = block.offset + last * block.row
            yield block, first, last, begin, end
            begin = end


def _chunk(visible: int, patch_dim: int) -> int:
    """How many images share a checksum."""
    return max(1, CHUNK // (visible * patch_dim))


@dataclass(frozen=True)
class Sealed:
    """A sealed data set, read from end to end and verified."""

    patches: NDArray[np.uint8]  # [n, V, P], mapped
    positions: NDArray[np.uint16]  # [n, V], mapped
    about: dict[str, Any]  # FIELDS
    size: tuple[int, int]  # height and width, in pixels, of the images that were sealed
    channels: int
    label_names: tuple[str, ...]  # empty if no labels were kept
    labels: NDArray[np.int64]  # [n]; -1: none
    train_ids: NDArray[np.int64]
    held_out_ids: NDArray[np.int64]
    key: str  # names the content

    def batch(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Patches [B, V, P] of the images `ids`, and their positions [B, V]."""
        positions = np.take(self.positions, ids, axis=0).astype(np.int64)
        return np.take(self.patches, ids, axis=0), positions

    def digest(self, image: int) -> str:
        """sha256 of the positions and patches of an image."""
        data = self.positions[image].tobytes() + self.patches[image].tobytes()
        return hashlib.sha256(data).hexdigest()


def header(about: dict[str, Any]) -> bytes:
    """The first bytes of a file. Raises UserError if label names are too long for it."""
    text = json.dumps(about).encode()
    room = HEADER - 44
    if len(text) > room:
        raise UserError(
            f"the names of {len(about['label_names']):,} labels do not fit into a sealed file's "
            "header; leave --labels out"
        )
    front, body = SEALED + struct.pack("<I", VERSION), text.ljust(room)
    return front + hashlib.sha256(front + body).digest() + body


def read(path: str | Path) -> Sealed:
    """Verify a sealed file, all of it, and map it into memory. UserError as `verify`."""
    file = Path(path).expanduser().resolve()
    return _read(file, digests.stamp(file))


@lru_cache(4)
def _read(path: Path, stamp: digests.Stamp) -> Sealed:
    """`stamp` changes when the file does, so it is verified once."""
    about, held_out, labels = _verified(path)
    mapped = {
        block.name: np.asarray(np.memmap(path, block.dtype, "r", block.offset, block.shape))
        for block in _blocks(about)
    }
    return Sealed(
        patches=mapped["patches"],
        positions=mapped["positions"],
        about=about,
        size=(about["size"][0], about["size"][1]),
        channels=about["channels"],
        label_names=tuple(about["label_names"]),
        labels=labels,
        train_ids=np.flatnonzero(~held_out),
        held_out_ids=np.flatnonzero(held_out),
        key=hashlib.sha256(header(about)).hexdigest(),
    )


def verify(path: str | Path) -> dict[str, Any]:
    """Read a sealed file from end to end; what it holds, for `underpaint seal --verify`.

    Raises UserError naming the place if a byte is missing, changed or too many.
    """
    file = Path(path).expanduser().resolve()
    about, _, _ = _verified(file)
    arrays, patches = _blocks(about), math.prod(_grid(about))
    sizes = {block.name: block.end - block.offset for block in arrays}
    return {
        "file": str(file),
        "version": VERSION,
        **{name: about[name] for name in FIELDS if name not in ("arrays", "checksums")},
        "patches": patches,
        "hidden": 1 - about["visible"] / patches,
        "bytes": {"header": HEADER + NPY * len(arrays), "labels": 0}
        | sizes
        | {"all": arrays[-1].end},
        "checksums": f"all {arrays[-1].shape[0] + 2:,} hold",
    }


def _verified(path: Path) -> tuple[dict[str, Any], NDArray[np.bool_], NDArray[np.int64]]:
    """What the header says, who is held out [n], labels [n]; every byte of the file was read."""
    where = f"sealed data '{path}'"
    held_out, labels = [], []
    try:
        with open_regular(path) as file:
            about = _header(where, file.read(HEADER))
            arrays, n = _blocks(about), about["images"]
            table, size = arrays[-1], path.stat().st_size
            if size != table.end:
                change = "truncated" if size < table.end else "longer than it was"
                raise UserError(
                    f"{where} is {change}: {size:,} bytes, where {n:,} images need {table.end:,}; "
                    "copy it again"
                )
            file.seek(table.start)
            checksums = file.read()
            if hashlib.sha256(checksums).hexdigest() != about["checksums"]:
                raise _changed(where, "its table of checksums", table.start, table.end)
            if checksums[:NPY] != table.npy_header():
                raise _contradicts(where)
            file.seek(HEADER)
            for i, (block, first, last, begin, end) in enumerate(chunks(arrays)):
                data = file.read(end - begin)
                if hashlib.sha256(data).digest() != checksums[NPY + 32 * i : NPY + 32 * i + 32]:
                    what = f"{block.name} of images {first:,} to {last - 1:,}"
                    raise _changed(where, what, begin, end)
                if begin == block.start:
                    if data[:NPY] != block.npy_header():
                        raise _contradicts(where)
                    data = data[NPY:]
                values = np.frombuffer(data, block.dtype).reshape(last - first, *block.shape[1:])
                if not _possible(about, block.name, values):
                    raise UserError(
                        f"{where} holds records that are no patches at positions; seal it again"
                    )
                if block.name == "held_out":
                    held_out.append(values)
                elif block.name == "labels":
                    labels.append(values.astype(np.int64))
    except OSError as error:
        raise UserError(f"{where} cannot be read ({error.strerror})") from None
    if sum(int(part.sum()) for part in held_out) != about["held_out"]:
        raise UserError(f"{where} holds out other images than it says; seal the data again")
    return about, np.concatenate(held_out), np.concatenate(labels or [np.full(n, -1)])


def _header(where: str, data: bytes) -> dict[str, Any]:
    """The JSON of a header, if it is whole and of this version."""
    if data[: len(SEALED)] != SEALED:
        raise UserError(f"{where} is not a sealed file; make one with underpaint seal")
    if len(data) < HEADER:
        raise UserError(f"{where} is truncated: it ends within its header; copy it again")
    front, body = data[:12], data[44:]
    if hashlib.sha256(front + body).digest() != data[12:44]:
        raise _changed(where, "its header", 0, HEADER)
    (version,) = struct.unpack("<I", front[8:])
    if version != VERSION:
        raise UserError(
            f"{where} is of version {version}, and this underpaint reads version {VERSION}; "
            "install the one that wrote it, or seal the images again"
        )
    try:
        about = json.loads(body)
    except (ValueError, RecursionError):
        about = None
    named = isinstance(about, dict) and list(about) == list(FIELDS)
    if not named or not all(type(about[name]) is kind for name, kind in FIELDS.items()):
        raise UserError(f"{where} has a header with other fields than version {VERSION} has")
    if not _consistent(about) or header(about) != data:
        raise _contradicts(where)
    return dict(about)


def _consistent(about: dict[str, Any]) -> bool:
    """Whether sealing can have written these values: nothing else may hide in a header."""
    size, duplicates, names = about["size"], about["duplicates"], about["label_names"]
    V, P, patch = about["visible"], about["patch_dim"], about["patch"]
    positive = [about[name] for name in ("images", "visible", "patch", "block", "multiple")]
    if len(size) != 2 or not all(type(x) is int and 0 < x < 1 << 48 for x in [*size, *positive]):
        return False
    h, w = _grid(about)
    return (
        size == [h * patch, w * patch]
        and V < h * w <= 1 << 16
        and about["channels"] in (1, 3, 4)
        and about["channels"] * patch**2 == P
        and about["kind"] in KINDS
        and 0 < about["rate"] < 1
        and all(type(name) is str for name in names)
        and len(set(names)) == len(names)
        and 0 <= about["held_out"] <= about["images"]
        and 0 <= about["bleed"] < 1 << 48
        and tuple(duplicates) == DUPLICATES
        and all(type(x) in (int, float) and 0 <= x < 1 << 48 for x in duplicates.values())
        and about["arrays"] == {block.name: block.offset for block in _blocks(about)}
    )


def _possible(about: dict[str, Any], name: str, values: NDArray[Any]) -> bool:
    """Whether all values of a chunk of an array are such as its field means."""
    if name == "positions":
        positions = values.astype(np.int64)
        return bool(
            (np.diff(positions, axis=1) > 0).all() and (positions < math.prod(_grid(about))).all()
        )
    if name == "labels":
        return bool((values >= -1).all() and (values < len(about["label_names"])).all())
    return name != "held_out" or bool((values.view(np.uint8) <= 1).all())


def _blocks(about: dict[str, Any]) -> list[Block]:
    labelled = bool(about["label_names"])
    return blocks(about["images"], about["visible"], about["patch_dim"], labelled)


def _grid(about: dict[str, Any]) -> tuple[int, int]:
    height, width = about["size"]
    return (height // about["patch"], width // about["patch"])


def _contradicts(where: str) -> UserError:
    return UserError(f"{where} has a header that contradicts itself; seal the data again")


def _changed(where: str, what: str, first: int, end: int) -> UserError:
    return UserError(
        f"{where} has been changed: the checksum of {what} (bytes {first:,} to {end - 1:,}) does "
        "not hold; copy it again"
    )
