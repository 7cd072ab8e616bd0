"""A run's records: `metrics.jsonl` has one JSON object a line, written while the run goes on."""

import json
from pathlib import Path
from typing import Any

from underpaint.bounded import Is, checked, read_regular
from underpaint.errors import UserError

Record = dict[str, Any]

LARGEST = 1 << 30  # bytes
TEXT, COUNT = Is((str, type(None)), optional=True), Is(int, optional=True)
NUMBER = Is((float, type(None)), -1e300, 1e300, optional=True)
CURVE = Is((list, type(None)), of=Is((float, type(None)), -1e300, 1e300), optional=True)
RECORD = {  # what any record must hold, and of what type the rest is
    "kind": Is(str, 1, 64),
    **dict.fromkeys(("stage", "event", "mask", "file", "reason", "sentence"), TEXT),
    **dict.fromkeys(("images", "stage_images", "index", "visible", "patches", "unit"), COUNT),
    **dict.fromkeys(("columns", "rows", "skipped", "to", "total"), COUNT),
    **dict.fromkeys(("seconds", "flops", "loss", "x0_mse", "grad_norm", "lr", "rate"), NUMBER),
    **dict.fromkeys(("train_mean", "held_out_mean", "held_out_se", "gap", "time"), NUMBER),
    **dict.fromkeys(("rate_asked", "images_per_s", "flops_per_image", "below_wiener"), NUMBER),
    **dict.fromkeys(("log_snr_edges", "train", "held_out", "held_out_images", "wiener"), CURVE),
    "health": Is((dict, type(None)), optional=True),
    "labels": Is((list, type(None)), of=Is((str, type(None))), optional=True),
}
NEEDED = {
    "stage": ("event", "stage", "images", "seconds", "flops", "mask", "rate", "visible", "patches"),
    "step": ("stage", "images", "stage_images", "flops", "lr", "rate", "visible"),
    "check": ("stage", "images", "mask", "train_mean", "held_out_mean", "log_snr_edges"),
    "sample": ("images", "file"),
    "rollback": ("images", "to", "reason"),
}


def read(path: Path) -> list[Record]:
    """All records; none if there is no file.

    A last line that was cut short is left out: the run was stopped, or is going on, while it was
    written. Any other damage raises UserError.
    """
    if not path.is_file():
        return []
    lines = read_regular(path, LARGEST).split(b"\n")
    records: list[Record] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = checked(json.loads(line), RECORD, more=True)
            needed = NEEDED.get(record["kind"], ())
            if record["kind"] == "step" and "epsilon" not in record:  # not of a private stage
                needed += ("loss", "seconds")
            if missing := [key for key in needed if key not in record]:
                raise ValueError(f"'{missing[0]}' is missing")
        except (ValueError, RecursionError) as error:
            if number == len(lines):  # nothing follows, not even the end of the line
                break
            raise UserError(
                f"{path}: line {number} is damaged ({error}); remove it to read the rest"
            ) from None
        records.append(record)
    return records


def of_kind(records: list[Record], kind: str) -> list[Record]:
    """The records with this `kind`, in their order."""
    return [record for record in records if record["kind"] == kind]
