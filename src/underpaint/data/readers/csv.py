"""A .csv with the columns `path` (from where the .csv lies) and, if there are any, `label`."""

import csv
from pathlib import Path

from underpaint.data.readers.base import Contents, Item, Source
from underpaint.errors import UserError


def find(path: Path) -> Source | None:
    """A file named .csv."""
    if not path.name.lower().endswith(".csv"):
        return None
    rows = _rows(path)
    there = {path.parent / name for name, _ in rows if (path.parent / name).is_file()}

    def read() -> Contents:
        items = (Item(name, (path.parent / name).read_bytes, label) for name, label in rows)
        return Contents(len(rows), items)

    return Source(str(path), [path, *sorted(there)], read)


def _rows(path: Path) -> list[tuple[str, str | None]]:
    """Rows as (name as written, label)."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            if "path" not in (reader.fieldnames or ()):
                shown = ",".join(reader.fieldnames or ())[:60]
                raise UserError(
                    f"data '{path}': its first line must be 'path,label', not '{shown}'"
                )
            rows = [(row["path"] or "", (row.get("label") or "").strip() or None) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"data '{path}' is not a CSV text in UTF-8 ({error})") from None
    except OSError as error:
        raise UserError(f"data '{path}' cannot be read ({error.strerror})") from None
    if not rows:
        raise UserError(f"data '{path}' has no rows below its first line 'path,label'")
    return rows
