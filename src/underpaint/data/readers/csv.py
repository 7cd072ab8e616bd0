"""A .csv with the columns `path` (from where the .csv lies) and, if there are any, `label`."""

import csv
from functools import partial
from pathlib import Path

from underpaint.data.readers.base import Contents, Item, Source
from underpaint.errors import UserError

__all__ = ["find"]


def find(path: Path) -> Source | None:
    """A file named .csv."""
    if not path.name.lower().endswith(".csv"):
        return None
    rows = _rows(path)
    files = [path, *sorted({file for file, _, _ in rows if file.is_file()})]
    return Source(str(path), files, partial(_open, rows))


def _open(rows: list[tuple[Path, str, str | None]]) -> Contents:
    return Contents(len(rows), (Item(name, file.read_bytes, label) for file, name, label in rows))


def _rows(path: Path) -> list[tuple[Path, str, str | None]]:
    """Rows as (file, name as written, label)."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            if "path" not in (reader.fieldnames or ()):
                shown = ",".join(reader.fieldnames or ())[:60]
                raise UserError(
                    f"data '{path}': its first line must be 'path,label', not '{shown}'"
                )
            rows = [(row["path"] or "", (row.get("label") or "").strip()) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"data '{path}' is not a CSV text in UTF-8 ({error})") from None
    except OSError as error:
        raise UserError(f"data '{path}' cannot be read ({error.strerror})") from None
    if not rows:
        raise UserError(f"data '{path}' has no rows below its first line 'path,label'")
    return [(path.parent / name, name, label or None) for name, label in rows]
