"""Sealed data sets: of each image the visible patches of one mask, and nothing else.

    byte 0   8       b"UPSEALED"
    8        4       version, uint32
    12       32      sha256 of the first 65,536 bytes without these 32
    44       65,492  JSON (`FIELDS`), filled up with spaces
    65,536   n · R   the records, in random order
             32 · k  sha256 of each chunk of records, k = ⌈n / chunk⌉

A record is V positions (uint16, ascending), V patches of P uint8 (in the order of `spaces.Pixels`),
one byte that is 1 if the image is held out and, where labels were asked for, the label (int32).
Numbers are little-endian. docs/sealed.md is the page for those who hold or give such a file.

An image's mask is drawn from HMAC-SHA256(key, sha256 of its pixels): with the key anybody who has
the image can draw it again, without it nobody can. The key is in no file that is written here.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from underpaint.data import digests
from underpaint.errors import UserError

__all__ = [
    "FIELDS",
    "HEADER",
    "KINDS",
    "VERSION",
    "Sealed",
    "header",
    "is_sealed",
    "mask_seed",
    "read",
    "read_key",
    "record_type",
    "verify",
]

MAGIC = b"UPSEALED"
VERSION = 1
HEADER = 65_536
KINDS = ("patch", "block", "crop")  # salient masks would tell of the contrast of hidden patches
KEY_BYTES = 16  # the least

FIELDS = {  # of the JSON, all of them and no others
    "images": int,
    "size": list,  # height, width in pixels
    "channels": int,
    "patch": int,  # side in pixels
    "visible": int,  # V
    "patch_dim": int,  # P = channels · patch²
    "kind": str,  # of the mask
    "rate": float,  # asked
    "block": int,
    "multiple": int,  # sides and corners of a crop are multiples of so many patches
    "label_names": list,  # empty: records have no label
    "held_out": int,  # how many images
    "bleed": int,  # pixels by which resampling may have carried a neighbour into a patch
    "duplicates": dict,  # numbers alone, see `seal`
    "record": int,  # R
    "chunk": int,  # records
    "checksums": str,  # sha256 of the table at the end
}


@dataclass(frozen=True)
class Sealed:
    """A sealed data set that has been read through and found whole."""

    rows: NDArray[np.uint8]  # [n, R], mapped
    about: dict[str, Any]  # FIELDS
    labels: NDArray[np.int64]  # [n]; -1: none
    train_ids: NDArray[np.int64]
    held_out_ids: NDArray[np.int64]
    key: str  # names the content

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, in pixels, of the images that were sealed."""
        return (self.about["size"][0], self.about["size"][1])

    @property
    def channels(self) -> int:
        """1 or 3."""
        return int(self.about["channels"])

    @property
    def label_names(self) -> tuple[str, ...]:
        """Empty if no labels were kept."""
        return tuple(self.about["label_names"])

    def batch(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Patches [B, V, P] of the images `ids`, and their positions [B, V]."""
        V, P = self.about["visible"], self.about["patch_dim"]
        rows = np.take(self.rows, ids, axis=0)
        positions = rows[:, : 2 * V].copy().view("<u2").astype(np.int64)
        return rows[:, 2 * V : 2 * V + V * P].reshape(-1, V, P), positions


def mask_seed(key: bytes, pixel_sha: bytes) -> int:
    """63 bits from which an image's mask is drawn."""
    digest = hmac.digest(key, pixel_sha, "sha256")
    return int.from_bytes(digest[:8], "big") >> 1


def read_key(path: str | Path) -> bytes:
    """The bytes of a key file. Raises UserError if there are fewer than 16."""
    try:
        key = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise UserError(
            f"key '{path}' cannot be read ({error.strerror}); "
            "make one with: head -c 32 /dev/urandom > FILE"
        ) from None
    if len(key) < KEY_BYTES:
        raise UserError(f"key '{path}' has {len(key)} bytes; give a file of {KEY_BYTES} or more")
    return key


def record_type(visible: int, patch_dim: int, labelled: bool) -> np.dtype[np.void]:
    """A record as numpy reads it; no padding."""
    fields: list[Any] = [
        ("positions", "<u2", (visible,)),
        ("patches", "u1", (visible, patch_dim)),
        ("held_out", "u1"),
    ]
    return np.dtype(fields + ([("label", "<i4")] if labelled else []))


def header(about: dict[str, Any]) -> bytes:
    """The first bytes of a file. Raises UserError if label names are too long for it."""
    text = json.dumps(about, ensure_ascii=False).encode()
    room = HEADER - 44
    if len(text) > room:
        raise UserError(
            f"the names of {len(about['label_names']):,} labels do not fit into a sealed file's "
            "header; leave --labels out"
        )
    front, body = MAGIC + struct.pack("<I", VERSION), text.ljust(room)
    return front + hashlib.sha256(front + body).digest() + body


def is_sealed(path: str | Path) -> bool:
    """Whether this is a file that begins as a sealed one does."""
    try:
        with Path(path).expanduser().open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read(path: str | Path) -> Sealed:
    """Verify a sealed file, all of it, and map it into memory. UserError as `verify`."""
    file = Path(path).expanduser().resolve()
    return _read(file, digests.stamp(file))


@lru_cache(4)
def _read(path: Path, stamp: digests.Stamp) -> Sealed:
    """`stamp` changes when the file does, so it is verified once."""
    about, held_out, labels = _verified(path)
    n, size = about["images"], about["record"]
    rows = np.memmap(path, np.uint8, "r", offset=HEADER, shape=(n, size))
    with path.open("rb") as file:
        key = hashlib.sha256(file.read(HEADER)).hexdigest()
    return Sealed(
        rows=np.asarray(rows),
        about=about,
        labels=labels,
        train_ids=np.flatnonzero(~held_out),
        held_out_ids=np.flatnonzero(held_out),
        key=key,
    )


def verify(path: str | Path) -> dict[str, Any]:
    """Read a sealed file from end to end; what was found, for `underpaint seal --verify`.

    Raises UserError naming the place if a byte is missing, changed or too many.
    """
    file = Path(path).expanduser().resolve()
    about, _, _ = _verified(file)
    h, w = _grid(about)
    V, P, labelled = about["visible"], about["patch_dim"], bool(about["label_names"])
    chunks = math.ceil(about["images"] / about["chunk"])
    return {
        "file": str(file),
        "version": VERSION,
        **{name: about[name] for name in FIELDS if name not in ("record", "chunk", "checksums")},
        "patches": h * w,
        "hidden": 1 - V / (h * w),
        "bytes": {
            "header": HEADER,
            "positions": 2 * V * about["images"],
            "patches": V * P * about["images"],
            "held_out": about["images"],
            "labels": 4 * labelled * about["images"],
            "checksums": 32 * chunks,
            "all": file.stat().st_size,
        },
        "checksums": f"all {chunks + 2:,} hold",
    }


def _verified(path: Path) -> tuple[dict[str, Any], NDArray[np.bool_], NDArray[np.int64]]:
    """What the header says, who is held out [n], labels [n]; every byte of the file was read."""
    where = f"sealed data '{path}'"
    try:
        with path.open("rb") as file:
            about = _header(where, file.read(HEADER))
            n, R, chunk = about["images"], about["record"], about["chunk"]
            chunks = math.ceil(n / chunk)
            expected, found = HEADER + n * R + 32 * chunks, path.stat().st_size
            if found != expected:
                change = "truncated" if found < expected else "longer than it was"
                raise UserError(
                    f"{where} is {change}: {found:,} bytes, where {n:,} images need {expected:,}; "
                    "copy it again"
                )
            file.seek(HEADER + n * R)
            table = file.read()
            if hashlib.sha256(table).hexdigest() != about["checksums"]:
                raise _changed(where, "its table of checksums", HEADER + n * R, expected)
            file.seek(HEADER)
            parts = []
            for i in range(chunks):
                first, last = i * chunk, min(n, (i + 1) * chunk)
                data = file.read((last - first) * R)
                if hashlib.sha256(data).digest() != table[32 * i : 32 * i + 32]:
                    what = f"images {first:,} to {last - 1:,}"
                    raise _changed(where, what, HEADER + first * R, HEADER + last * R)
                parts.append(_checked(where, about, data))
    except OSError as error:
        raise UserError(f"{where} cannot be read ({error.strerror})") from None
    held_out = np.concatenate([part[0] for part in parts])
    if int(held_out.sum()) != about["held_out"]:
        raise UserError(f"{where} holds out other images than it says; seal the data again")
    return about, held_out, np.concatenate([part[1] for part in parts])


def _header(where: str, data: bytes) -> dict[str, Any]:
    """The JSON of a header, if it is whole and of this version."""
    if data[: len(MAGIC)] != MAGIC:
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
            "install the one that wrote it, or seal the data again"
        )
    about = json.loads(body)
    named = isinstance(about, dict) and list(about) == list(FIELDS)
    if not named or not all(type(about[name]) is kind for name, kind in FIELDS.items()):
        raise UserError(f"{where} has a header with other fields than version {VERSION} has")
    V, P = about["visible"], about["patch_dim"]
    size = record_type(V, P, bool(about["label_names"])).itemsize
    h, w = _grid(about)
    if (
        about["channels"] * about["patch"] ** 2 != P
        or size != about["record"]
        or not 0 < V < h * w
        or min(about["images"], about["chunk"]) < 1
    ):
        raise UserError(f"{where} has a header that contradicts itself; seal the data again")
    return about


def _checked(
    where: str, about: dict[str, Any], data: bytes
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Held out and labels of a chunk; nothing in it may be anything but what its field means."""
    labelled = bool(about["label_names"])
    records = np.frombuffer(data, record_type(about["visible"], about["patch_dim"], labelled))
    positions, h_w = records["positions"].astype(np.int64), math.prod(_grid(about))
    labels = records["label"] if labelled else np.full(len(records), -1)
    if (
        (np.diff(positions, axis=1) <= 0).any()
        or (positions >= h_w).any()
        or (records["held_out"] > 1).any()
        or (labels < -1).any()
        or (labels >= max(1, len(about["label_names"]))).any()
    ):
        raise UserError(f"{where} holds records that are no patches at positions; seal it again")
    return records["held_out"].astype(bool), labels.astype(np.int64)


def _grid(about: dict[str, Any]) -> tuple[int, int]:
    height, width = about["size"]
    return (height // about["patch"], width // about["patch"])


def _changed(where: str, what: str, first: int, end: int) -> UserError:
    return UserError(
        f"{where} has been changed: the checksum of {what} (bytes {first:,} to {end - 1:,}) does "
        "not hold; copy it again"
    )
