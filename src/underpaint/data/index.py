"""What is known of many files or images, as arrays in one file that is mapped into memory.

The file is a safetensors file. Its metadata hold `about` (JSON) and `sha256`, which covers that and
the arrays with their types and shapes, so that damage is always noticed.
"""

import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from underpaint.bounded import PIECE, TEXT, open_regular
from underpaint.io import replacing

DTYPES = {"U8": np.uint8, "I8": np.int8, "I32": np.int32, "I64": np.int64}
Arrays = dict[str, NDArray[Any]]


class Index(NamedTuple):
    """The arrays, read-only, and what else was written beside them."""

    arrays: Arrays
    about: dict[str, Any]


class Texts(Sequence[str]):
    """Many short texts, end to end in one array."""

    def __init__(self, text: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        """Raises ValueError for ends that are none of `text`."""
        if text.ndim != 1 or ends.ndim != 1 or (ends[-1] if len(ends) else 0) != len(text):
            raise ValueError("texts that do not end where their array does")
        self.text, self.ends = text, ends

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Texts":
        """Names of files may be in no encoding at all: what cannot be decoded is kept."""
        parts = [text.encode("utf-8", "surrogateescape") for text in texts]
        ends = np.fromiter(itertools.accumulate(map(len, parts)), np.int64, len(parts))
        return cls(np.frombuffer(b"".join(parts), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, i: int) -> str: ...

    @overload
    def __getitem__(self, i: slice) -> list[str]: ...

    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        i = range(len(self))[i]
        start = self.ends[i - 1] if i else 0
        return self.text[start : self.ends[i]].tobytes().decode("utf-8", "surrogateescape")

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Texts):
            return np.array_equal(self.ends, other.ends) and np.array_equal(self.text, other.text)
        return isinstance(other, list) and list(self) == other

    def __repr__(self) -> str:
        return repr(list(self))


def write(path: Path, arrays: Arrays, about: dict[str, Any]) -> None:
    """Replace the file in one step: a reader sees the old or the new one."""
    text = json.dumps(about)
    kinds = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
    blocks: dict[str, Any] = {}
    data: list[Any] = []
    place = 0
    for name in sorted(arrays, key=lambda name: -arrays[name].itemsize):  # so all are aligned
        array = np.ascontiguousarray(arrays[name])
        offsets = [place, place := place + array.nbytes]
        blocks[name] = {"dtype": kinds[array.dtype], "shape": [*array.shape]}
        blocks[name]["data_offsets"] = offsets
        data.append(array.reshape(-1).view(np.uint8).data)
    known = {"about": text, "sha256": _sum(text, blocks, data)}
    header = json.dumps({"__metadata__": known} | blocks).encode()
    header += b" " * (-len(header) % 8)
    with replacing(path) as part, part.open("wb") as file:
        file.writelines([len(header).to_bytes(8, "little"), header, *data])


def read(path: Path) -> Index:
    """Map what `write` wrote. Raises one of `bounded.DAMAGE` for anything else."""
    with open_regular(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if length > TEXT:
            raise ValueError(f"a header of {length:,} bytes")
        blocks = json.loads(file.read(length))
        known = blocks.pop("__metadata__")
        if known["sha256"] != _sum(known["about"], blocks, iter(lambda: file.read(PIECE), b"")):
            raise ValueError("its checksum is another")
        empty = file.tell() == 8 + length
        data = np.empty(0, np.uint8) if empty else np.memmap(file, np.uint8, "r", 8 + length)
    return Index(
        {name: _array(data, **b) for name, b in blocks.items()}, json.loads(known["about"])
    )


def _array(
    data: NDArray[np.uint8], dtype: str, shape: list[int], data_offsets: list[int]
) -> NDArray[Any]:
    begin, end = data_offsets
    return np.asarray(data[begin:end]).view(DTYPES[dtype]).reshape(shape)


def _sum(about: str, blocks: dict[str, Any], data: Iterable[Any]) -> str:
    digest = hashlib.sha256(json.dumps([about, blocks]).encode())
    for part in data:
        digest.update(part)
    return digest.hexdigest()
