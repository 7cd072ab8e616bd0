"""Images that come as arrays: `.npy`, `.npz`, and IDX files (MNIST's format; plain or gzipped).

IDX: two zero bytes, the type (8: uint8), the number of dimensions d, d sizes as big-endian uint32,
then the values. The labels of `train-images-idx3-ubyte.gz` are in `train-labels-idx1-ubyte.gz`.
"""

import gzip
import math
import struct
import zipfile
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from underpaint.bounded import DAMAGE, FILE, RATIO, Readable, Stream, bomb, open_regular
from underpaint.data.readers.base import Contents, Item, Source, head_of, kind_of
from underpaint.errors import UserError

PAIRS = (("images", "labels"), ("x", "y"), ("x_train", "y_train"), ("data", "labels"))


class Array(NamedTuple):
    """An array that is not read yet: what its header says, and its rows in their order."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    rows: Iterable[NDArray[Any]]


def find(path: Path) -> Source | None:
    """A file named .npy or .npz; an IDX file, or a folder that holds some."""
    name = path.name.lower()
    kind = "" if path.is_dir() else kind_of(head_of(path))
    if not path.is_dir() and (name.endswith((".npy", ".npz")) or kind == "npy"):
        return Source(str(path), str(path.parent), [path.name], partial(_open_numpy, path))
    if path.is_dir():
        files = _idx_files(path)
    else:
        files = _with_labels(path) if "idx3" in name or kind in ("gz", "idx") else []
        files = files or (_with_labels(path) if name.endswith(".gz") else [])

    def open_idx() -> Contents:
        arrays = [_read_idx(file) for file in files]
        labels = np.array(list(arrays[1].rows)) if len(arrays) > 1 else None
        return _contents(files[0], arrays[0], labels)

    if not files:
        return None
    return Source(str(files[0]), str(files[0].parent), [file.name for file in files], open_idx)


def _open_numpy(path: Path) -> Contents:
    """uint8 [n, H, W] or [n, H, W, 1|3|4]; in an .npz `images` (or `x`) and `labels` (or `y`)."""
    try:
        if kind_of(head_of(path)) == "npy":
            mapped: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
            return _contents(path, Array(mapped.dtype, mapped.shape, mapped), None)
        archive = zipfile.ZipFile(open_regular(path))
        arrays = {m.filename.removesuffix(".npy"): _member(archive, m) for m in archive.infolist()}
        chosen = next((pair for pair in PAIRS if pair[0] in arrays), None)
        if chosen is None:
            alone = (n for n, a in arrays.items() if a.dtype == np.uint8 and len(a.shape) in (3, 4))
            if images := next(alone, ""):
                chosen = images, "labels" if "labels" in arrays else "y"
        if chosen is not None:
            images, labels = chosen
            others = [name for name in arrays if name not in chosen]
            found = _contents(path, arrays[images], _whole(arrays.get(labels)))
            return found._replace(unread={"array": others} if others else {})
    except DAMAGE as error:
        raise UserError(f"data '{path}' cannot be read as numpy arrays ({error})") from None
    raise UserError(
        f"data '{path}' holds {', '.join(arrays) or 'nothing'}; expected 'images' "
        "(uint8 [n, height, width, channels]) and, if there are any, 'labels'"
    )


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Array:
    """An array of an .npz by its header, which must say what the archive says of its size."""
    name = member.filename
    if bomb(member.file_size, member.compress_size):
        raise ValueError(f"'{name}' is said to unpack to more than {RATIO:,} times its size")
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        known = {(1, 0): "read_array_header_1_0", (2, 0): "read_array_header_2_0"}
        if version not in known:
            raise ValueError(f"'{name}' has version {version} of numpy's format")
        shape, fortran, dtype = getattr(np.lib.format, known[version])(file)
    with archive.open(member) as file:
        front = file.read(12)  # magic, version, length of the header: 2 or 4 bytes
        length = front[8:10] if version == (1, 0) else front[8:12]
        start = 8 + len(length) + int.from_bytes(length, "little")
    if dtype.hasobject:
        raise ValueError(f"'{name}' holds objects")
    if min(shape, default=0) < 0 or start + math.prod(shape) * dtype.itemsize != member.file_size:
        raise ValueError(f"'{name}' has another size than its header says")
    if fortran and len(shape) > 1:
        if member.file_size > FILE:
            raise ValueError(f"'{name}' is in Fortran's order; save it in C's")
        with archive.open(member) as file:
            array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
        return Array(dtype, shape, array)

    def rows() -> Iterator[NDArray[Any]]:
        with archive.open(member) as file:
            file.read(start)
            yield from _rows(file, dtype, shape)

    return Array(dtype, shape, _Once(rows))


class _Once:
    """Rows that are read anew each time they are asked for."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[NDArray[Any]]:
        found: Iterator[NDArray[Any]] = self.rows()
        return found


def _rows(file: Readable, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Iterator[NDArray[Any]]:
    """The rows [shape[1:]] of an array whose values are read in pieces. Raises ValueError."""
    size = dtype.itemsize * math.prod(shape[1:])
    if not 0 < size <= FILE:
        raise ValueError(f"an image of {size:,} bytes")
    for _ in range(shape[0]):
        data = Stream(file, size).read(size)
        if len(data) < size:
            raise ValueError("it ends early: it was cut off")
        yield np.frombuffer(data, dtype).reshape(shape[1:])


def _whole(array: Array | None) -> NDArray[Any] | None:
    """All values of a small array: labels. Raises ValueError for one that is large."""
    if array is None:
        return None
    if not array.shape or math.prod(array.shape) * array.dtype.itemsize > FILE:
        raise ValueError(f"labels of {math.prod(array.shape):,} values")
    return np.array(list(array.rows), array.dtype).reshape(array.shape)


def _idx_files(folder: Path) -> list[Path]:
    """The training images in a folder of IDX files, and their labels; empty if there are none."""
    images = sorted(p for p in folder.iterdir() if "images" in p.name and "idx3" in p.name)
    train = [p for p in images if "train" in p.name]
    chosen = train or images
    return _with_labels(chosen[0]) if chosen else []


def _with_labels(images: Path) -> list[Path]:
    """An IDX file of images and, if it is there, that of its labels."""
    name = images.name.replace("images", "labels").replace("idx3", "idx1")
    other = [name, name.removesuffix(".gz")] if name.endswith(".gz") else [name, f"{name}.gz"]
    labels = [images.with_name(n) for n in other if n != images.name]
    return [images, *[p for p in labels if p.is_file()][:1]]


def _read_idx(path: Path) -> Array:
    """The header and rows of an IDX file; a plain one is mapped, a gzipped one is streamed."""
    try:
        packed = path.stat().st_size
        with _unpacked(path) as file:
            zero, kind, dimensions = struct.unpack(">HBB", file.read(4))
            if zero or kind != 8 or not 1 <= dimensions <= 4:
                raise UserError(f"data '{path}' is not an IDX file of uint8 (as those of MNIST)")
            shape = struct.unpack(f">{dimensions}I", file.read(4 * dimensions))
        start, size = 4 + 4 * dimensions, math.prod(shape)
        if kind_of(head_of(path)) != "gz":
            if packed != start + size:
                raise ValueError(f"{packed:,} bytes, where its header says {start + size:,}")
            return Array(np.dtype(np.uint8), shape, np.memmap(path, np.uint8, "r", start, shape))
        if bomb(size, packed):
            raise ValueError(f"it is said to unpack to more than {RATIO:,} times its size")
    except DAMAGE as error:
        raise UserError(f"data '{path}' cannot be read as an IDX file ({error})") from None

    def rows() -> Iterator[NDArray[Any]]:
        try:
            with _unpacked(path) as file:
                file.read(start)
                yield from _rows(file, np.dtype(np.uint8), shape)
                if file.read(1):
                    raise ValueError("it is longer than its header says")
        except DAMAGE as error:
            raise UserError(f"data '{path}' cannot be read as an IDX file ({error})") from None

    return Array(np.dtype(np.uint8), shape, _Once(rows))


def _unpacked(path: Path) -> Any:
    file = open_regular(path)
    return gzip.open(file) if kind_of(head_of(path)) == "gz" else file


def _contents(path: Path, images: Array, labels: NDArray[Any] | None) -> Contents:
    shape = ", ".join(str(s) for s in images.shape)
    dimensions = len(images.shape)
    if images.dtype != np.uint8:
        raise UserError(
            f"data '{path}' holds {images.dtype} values; expected images in uint8, 0 to 255"
        )
    if dimensions not in (3, 4) or (dimensions == 4 and images.shape[3] not in (1, 3, 4)):
        raise UserError(
            f"data '{path}' has the shape ({shape}); expected (n, height, width) or "
            "(n, height, width, channels) with 1, 3 or 4 channels last"
        )
    if 0 in images.shape:
        raise UserError(f"data '{path}' has the shape ({shape}): it holds no images")
    n = images.shape[0]
    labels = np.full(n, -1) if labels is None else labels
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape != (n,) or labels.dtype.kind not in "iuU":
        raise UserError(
            f"data '{path}': the labels are {labels.dtype} {labels.shape}; expected one whole "
            f"number or text for each of the {n} images"
        )
    labels = labels.tolist()

    def items() -> Iterator[Item]:
        try:
            for i, (pixels, label) in enumerate(zip(images.rows, labels, strict=True)):
                # of a mapped array a view: read, and paged in, by the worker
                yield Item(str(i), partial(_same, pixels), None if label == -1 else str(label))
        except DAMAGE as error:
            raise UserError(f"data '{path}' cannot be read as arrays ({error})") from None

    return Contents(n, items())


def _same(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return pixels
