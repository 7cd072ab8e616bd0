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
from underpaint.data.row_groups import HELD, library
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

    def opened() -> Contents:
        return _opened(str(folder), folder, files)[0]

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


def shard(file: Path, origin: str) -> tuple[Contents, str, int]:
    """A parquet file that is streamed; an image's place is its row group and its row there.

    Also the column that the images are in, and the bytes that they are when they are read.
    `origin`: what errors name. Raises UserError, also where a row group is too large to be held.
    """
    contents, image = _opened(origin, None, [file])
    metadata = library(origin).parquet.read_metadata(file)
    groups = [metadata.row_group(k) for k in range(metadata.num_row_groups)]
    size = [
        sum(
            chunk.total_uncompressed_size
            for chunk in map(group.column, range(group.num_columns))
            if chunk.path_in_schema.partition(".")[0] == image
        )
        for group in groups
    ]
    largest = max(size, default=0)
    if largest > HELD:
        raise UserError(
            f"data '{origin}' has row groups of up to {largest / 2**20:,.0f} MiB, and to read an "
            f"image its row group is held in memory, at most {HELD / 2**20:,.0f} MiB; write it "
            "with smaller ones (row_group_size=100), or repack it as docs/streaming.md shows"
        )
    places = ((k, row) for k, group in enumerate(groups) for row in range(group.num_rows))
    items = map(_placed, contents.items, places)
    return contents._replace(items=items), image, sum(size)


def _placed(item: Item, place: tuple[int, int]) -> Item:
    return item._replace(place=place)


def _opened(origin: str, folder: Path | None, files: list[Path]) -> tuple[Contents, str]:
    """Images and labels of the rows of all files, and the column that the images are in.

    `folder`: of files that rows may name; None: these are not read.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"data '{origin}' needs the datasets library to read it: "
            "pip install 'underpaint[parquet]'"
        ) from None
    # a shard's file may be a copy of what lies behind a URL
    places = [str(file) for file in files] if folder else [origin]
    parts = [_open_file(datasets, *both) for both in zip(files, places, strict=True)]
    features = parts[0].features
    image = _image_column(datasets, features, origin)
    label, names = _label_column(datasets, features)
    columns = [image, label] if label else [image]
    for file, part in zip(files, parts, strict=True):
        if missing := set(columns) - set(part.features):
            raise UserError(
                f"data '{origin}': '{file.name}' has no column '{min(missing)}', as "
                f"'{files[0].name}' has; give a folder of files that belong together"
            )

    def text(value: Any) -> str | None:
        if value is None or (names and value == -1):  # -1: how datasets marks a missing class
            return None
        return names[value] if names else str(value)

    outside: list[str] = []  # known when the rows are read

    def rows() -> Iterator[dict[str, Any]]:
        for place, part in zip(places, parts, strict=True):
            try:
                yield from part.read(columns)
            except Exception as error:  # pyarrow has no common class for damaged files
                raise _unreadable(place, error) from None

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

    unread = {} if label else without_label(features, columns)
    total, labels = sum(p.total for p in parts), tuple(names) if names else None
    return Contents(total, items(), labels, unread, outside), image


def _open_file(datasets: Any, file: Path, place: str) -> Rows:
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
        raise _unreadable(place, error) from None


def _unreadable(place: str, error: Exception) -> UserError:
    text = " ".join(str(error).split())[:200]
    return UserError(f"data '{place}' cannot be read as a table ({text})")


def _reader(folder: Path | None, value: Any) -> Callable[[], bytes]:
    data, path = value, None
    if isinstance(value, dict):
        data, path = value.get("bytes"), value.get("path")
    if data is None and path:
        return partial(_beside, folder, path)
    return partial(bytes, data or b"")


def _beside(folder: Path | None, path: str) -> bytes:
    if folder is None:
        raise OSError("a file beside the table, which is not streamed")
    return read_regular(folder / path)


def _image_column(datasets: Any, features: Any, origin: str) -> str:
    for name, kind in features.items():
        if isinstance(kind, datasets.Image):
            return str(name)
    for name, kind in features.items():
        if isinstance(kind, dict) and {"bytes", "path"} <= set(kind):
            return str(name)
        if getattr(kind, "dtype", None) in ("binary", "large_binary"):
            return str(name)
    raise UserError(
        f"data '{origin}' has the columns {', '.join(features)}; expected one with images "
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
