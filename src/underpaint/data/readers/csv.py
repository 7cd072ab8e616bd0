"""A .csv with the columns `path` (from where the .csv lies) and, if there are any, `label`."""

import csv
import io
import os
from functools import partial
from pathlib import Path

from underpaint.bounded import read_regular
from underpaint.data.readers.base import Contents, Item, Source, is_outside, without_label
from underpaint.errors import UserError


def find(path: Path) -> Source | None:
    """A file named .csv."""
    if not path.name.lower().endswith(".csv"):
        return None
    columns, rows = _rows(path)
    there = {place for name, _ in rows if os.path.isfile(place := _place(path, name))}
    base = f"{path.parent}/".replace("//", "/")
    files = [file.removeprefix(base) for file in sorted(there, key=lambda file: file.split("/"))]

    def read() -> Contents:
        items = (Item(n, partial(read_regular, _place(path, n)), label) for n, label in rows)
        return Contents(len(rows), items, unread=without_label(columns, ("path", "label")))

    outside = [name for name, _ in rows if is_outside(name)]
    return Source(str(path), str(path.parent), [path.name, *files], read, outside=outside)


def _place(path: Path, name: str) -> str:
    """Where the file that a row names is: from where the table lies."""
    return str(path.parent / os.path.expanduser(name))


def _rows(path: Path) -> tuple[list[str], list[tuple[str, str | None]]]:
    """The columns' names, and rows as (name as written, label)."""
    try:
        file = io.StringIO(read_regular(path).decode("utf-8-sig"), newline="")
        reader = csv.DictReader(file, skipinitialspace=True)
        columns = list(reader.fieldnames or ())
        if "path" not in columns or len(set(columns)) < len(columns):
            shown = ",".join(columns)[:60]
            raise UserError(f"data '{path}': its first line must be 'path,label', not '{shown}'")
        rows = []
        for row in reader:
            if None in row:
                raise UserError(
                    f"data '{path}': line {reader.line_num} has more than the {len(columns)} "
                    "columns of the first; put texts that hold a comma in double quotes"
                )
            rows.append((row["path"] or "", (row.get("label") or "").strip() or None))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"data '{path}' is not a CSV text in UTF-8 ({error})") from None
    except OSError as error:
        raise UserError(f"data '{path}' cannot be read ({error.strerror})") from None
    if not rows:
        raise UserError(f"data '{path}' has no rows below its first line 'path,label'")
    return columns, rows
