"""A run's records: `metrics.jsonl` has one JSON object a line, written while the run goes on."""

import json
from pathlib import Path
from typing import Any

from underpaint.errors import UserError

Record = dict[str, Any]


def read(path: Path) -> list[Record]:
    """All records; none if there is no file.

    A last line that was cut short is left out: the run was stopped, or is going on, while it was
    written. Any other damage raises UserError.
    """
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")
    records: list[Record] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or "kind" not in record:
                raise ValueError
        except ValueError:
            if number == len(lines):  # nothing follows, not even the end of the line
                break
            raise UserError(
                f"{path}: line {number} is damaged; remove it to read the rest"
            ) from None
        records.append(record)
    return records


def of_kind(records: list[Record], kind: str) -> list[Record]:
    """The records with this `kind`, in their order."""
    return [record for record in records if record["kind"] == kind]
