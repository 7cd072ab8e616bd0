"""Images that come as arrays: `.npy`, `.npz`, and IDX files (MNIST's format; plain or gzipped).

IDX: two zero bytes, the type (8: uint8), the number of dimensions d, d sizes as big-endian uint32,
then the values. The labels of `train-images-idx3-ubyte.gz` are in `train-labels-idx1-ubyte.gz`.
"""

import gzip
import struct
import zipfile
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from underpaint.data.readers.base import Contents, Item, Source
from underpaint.errors import UserError

PAIRS = (("images", "labels"), ("x", "y"), ("x_train", "y_train"), ("data", "labels"))


def find(path: Path) -> Source | None:
    """A file named .npy or .npz; an IDX file, or a folder that holds some."""
    name = path.name.lower()
    if name.endswith((".npy", ".npz")) and not path.is_dir():
        return Source(str(path), [path], partial(_open_numpy, path))
    if path.is_dir():
        files = _idx_files(path)
    else:
        files = _with_labels(path) if "idx3" in name or name.endswith(".gz") else []

    def open_idx() -> Contents:
        arrays = [_read_idx(file) for file in files]
        return _contents(files[0], arrays[0], arrays[1] if len(arrays) > 1 else None)

    return Source(str(files[0]), files, open_idx) if files else None


def _open_numpy(path: Path) -> Contents:
    """uint8 [n, H, W] or [n, H, W, 1|3|4]; in an .npz `images` (or `x`) and `labels` (or `y`)."""
    try:
        loaded: Any = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return _contents(path, loaded, None)
        with loaded as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"data '{path}' cannot be read as numpy arrays ({error})") from None
    for images, labels in PAIRS:
        if images in arrays:
            return _contents(path, arrays[images], arrays.get(labels))
    for values in arrays.values():
        if values.dtype == np.uint8 and values.ndim in (3, 4):
            return _contents(path, values, arrays.get("labels", arrays.get("y")))
    raise UserError(
        f"data '{path}' holds {', '.join(arrays) or 'nothing'}; expected 'images' "
        "(uint8 [n, height, width, channels]) and, if there are any, 'labels'"
    )


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


def _read_idx(path: Path) -> NDArray[np.uint8]:
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        zero, kind, dimensions = struct.unpack_from(">HBB", data)
        shape = struct.unpack_from(f">{dimensions}I", data, 4)
        if zero or kind != 8 or not dimensions:
            raise UserError(f"data '{path}' is not an IDX file of uint8 (as those of MNIST)")
        values = np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions)
        return values.reshape(shape)
    except (OSError, EOFError, struct.error, ValueError, zlib.error) as error:
        raise UserError(f"data '{path}' cannot be read as an IDX file ({error})") from None


def _contents(path: Path, images: NDArray[Any], labels: NDArray[Any] | None) -> Contents:
    shape = ", ".join(str(s) for s in images.shape)
    if images.dtype != np.uint8:
        raise UserError(
            f"data '{path}' holds {images.dtype} values; expected images in uint8, 0 to 255"
        )
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3, 4)):
        raise UserError(
            f"data '{path}' has the shape ({shape}); expected (n, height, width) or "
            "(n, height, width, channels) with 1, 3 or 4 channels last"
        )
    if 0 in images.shape:
        raise UserError(f"data '{path}' has the shape ({shape}): it holds no images")
    n = len(images)
    labels = np.full(n, -1) if labels is None else labels
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape != (n,) or labels.dtype.kind not in "iuU":
        raise UserError(
            f"data '{path}': the labels are {labels.dtype} {labels.shape}; expected one whole "
            f"number or text for each of the {n} images"
        )
    items = (  # read, and paged in, by the worker
        Item(str(i), partial(images.__getitem__, i), None if label == -1 else str(label))
        for i, label in enumerate(labels.tolist())
    )
    return Contents(n, items)
