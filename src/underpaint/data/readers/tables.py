"""Images in parquet or arrow tables, as the `datasets` library writes them (extra `parquet`).

The image column is the one of type Image, else the first of type struct{bytes, path} or binary;
the label column is the one of type ClassLabel, else `label`, `labels`, `cls` or `fine_label`.
Where a folder holds several splits, those named train are used: we choose what is held out.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from underpaint.bounded import read_regular
from underpaint.data.readers.base import (
    Contents,
    Item,
    Source,
    Unread,
    head_of,
    is_outside,
    kind_of,
    without_label,
)
from underpaint.errors import UserError

LABELS = ("label", "labels", "cls", "fine_label")


def find(path: Path) -> Source | None:
    """A file named .parquet or .arrow, or a folder that holds some."""
    unread: Unread = {}
    if path.is_dir():
        folder, (files, others) = path, _table_files(path)
        if others:
            unread = {"of another split than train": [str(p.relative_to(path)) for p in others]}
    else:
        folder = path.parent
        named = path.name.lower().endswith((".parquet", ".arrow"))
        files = [path] if named or kind_of(head_of(path)) in ("parquet", "arrow") else []
    names = [file.relative_to(folder).as_posix() for file in files]
    opened = partial(_open, folder, files)
    return Source(str(path), str(folder), names, opened, unread) if files else None


def _table_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """All parquet files below a folder, else all arrow files; those of train, if there are, and the
    others."""
    for suffix in ("parquet", "arrow"):
        files = sorted(
            p for p in folder.rglob(f"*.{suffix}") if not p.name.startswith((".", "cache-"))
        )
        names = {p: p.relative_to(folder).parts for p in files}
        train = [p for p in files if any(part.startswith("train") for part in names[p])]
        if files:
            return train or files, [p for p in files if train and p not in train]
    return [], []


class Rows(NamedTuple):
    """The rows of one file, read in small batches."""

    features: Any
    total: int
    read: Callable[[list[str]], Iterator[dict[str, Any]]]


def _open(folder: Path, files: list[Path]) -> Contents:
    """Images and labels of the rows of all files."""
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"data '{folder}' needs the datasets library to read it: "
            "pip install 'underpaint[parquet]'"
        ) from None
    parts = [_open_file(datasets, file) for file in files]
    features = parts[0].features
    image = _image_column(datasets, features, folder)
    label, names = _label_column(datasets, features)
    columns = [image, label] if label else [image]
    for file, part in zip(files, parts, strict=True):
        if missing := set(columns) - set(part.features):
            raise UserError(
                f"data '{folder}': '{file.name}' has no column '{min(missing)}', as "
                f"'{files[0].name}' has; give a folder of files that belong together"
            )

    def text(value: Any) -> str | None:
        if value is None or (names and value == -1):  # -1: how datasets marks a missing class
            return None
        return names[value] if names else str(value)

    outside: list[str] = []  # known when the rows are read

    def rows() -> Iterator[dict[str, Any]]:
        for file, part in zip(files, parts, strict=True):
            try:
                yield from part.read(columns)
            except Exception as error:  # pyarrow has no common class for damaged files
                raise _unreadable(file, error) from None

    def items() -> Iterator[Item]:
        for i, row in enumerate(rows()):
            value = row[image]
            path = value.get("path") if isinstance(value, dict) else None
            if path and value.get("bytes") is None and is_outside(path):
                outside.append(path)
            yield Item(
                f"{i}/{Path(path).name}" if path else str(i),
                _reader(folder, value),
                text(row[label]) if label else None,
            )

    return Contents(
        sum(p.total for p in parts),
        items(),
        tuple(names) if names else None,
        {} if label else without_label(features, columns),
        outside,
    )


def _open_file(datasets: Any, file: Path) -> Rows:
    try:
        if file.suffix == ".arrow":
            rows = datasets.Dataset.from_file(str(file))  # memory-mapped
            features = rows.features
            for name, kind in features.items():
                if isinstance(kind, datasets.Image):  # bytes, decoded by us
                    rows = rows.cast_column(name, datasets.Image(decode=False))
            return Rows(features, len(rows), lambda columns: iter(rows.select_columns(columns)))
        # Not load_dataset: that would copy every byte into a second cache.
        import pyarrow.parquet

        parquet = pyarrow.parquet.ParquetFile(file)

        def read(columns: list[str]) -> Iterator[dict[str, Any]]:
            for batch in parquet.iter_batches(batch_size=64, columns=columns):
                yield from batch.to_pylist()

        features = datasets.Features.from_arrow_schema(parquet.schema_arrow)
        return Rows(features, parquet.metadata.num_rows, read)
    except Exception as error:  # pyarrow and datasets have no common class for damaged files
        raise _unreadable(file, error) from None


def _unreadable(file: Path, error: Exception) -> UserError:
    text = " ".join(str(error).split())[:200]
    return UserError(f"data '{file}' cannot be read as a table ({text})")


def _reader(folder: Path, value: Any) -> Callable[[], bytes]:
    data, path = value, None
    if isinstance(value, dict):
        data, path = value.get("bytes"), value.get("path")
    if data is None and path:
        return partial(read_regular, folder / path)
    return partial(bytes, data or b"")


def _image_column(datasets: Any, features: Any, folder: Path) -> str:
    for name, kind in features.items():
        if isinstance(kind, datasets.Image):
            return str(name)
    for name, kind in features.items():
        if isinstance(kind, dict) and {"bytes", "path"} <= set(kind):
            return str(name)
        if getattr(kind, "dtype", None) in ("binary", "large_binary"):
            return str(name)
    raise UserError(
        f"data '{folder}' has the columns {', '.join(features)}; expected one with images "
        "(type Image, or their bytes)"
    )


def _label_column(datasets: Any, features: Any) -> tuple[str | None, list[str]]:
    for name, kind in features.items():
        if isinstance(kind, datasets.ClassLabel):
            return str(name), list(kind.names or [])
    for name in LABELS:
        kind = getattr(features.get(name), "dtype", "")
        if kind == "string" or str(kind).startswith(("int", "uint")):
            return name, []
    return None, []
