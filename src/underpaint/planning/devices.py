"""GPUs that are known by their data sheets: `devices.json`, for planning where none is at hand."""

from __future__ import annotations

import difflib
import json
from importlib import resources
from typing import Any

from underpaint.errors import UserError

__all__ = ["known", "of_name", "peak_flops"]


def known() -> dict[str, dict[str, Any]]:
    """All devices by their key, as `h100`: the values of the file, with those that are assumed."""
    file = resources.files("underpaint") / "planning" / "devices.json"
    table = json.loads(file.read_text(encoding="utf-8"))
    return {k: {"key": k} | v | table["assumed"] for k, v in table["devices"].items()}


def of_name(key: str) -> dict[str, Any]:
    """The device `key`. Raises UserError with the nearest name where there is none."""
    table = known()
    if key.lower() in table:
        return table[key.lower()]
    close = difflib.get_close_matches(key.lower(), [*table, "auto", "cpu", "cuda", "mps"], 1, 0.5)
    hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(table)}"
    raise UserError(f"device '{key}' is neither here nor known; {hint}")


def peak_flops(name: str) -> float | None:
    """Dense peak in FLOP/s of the GPU that torch calls `name`; None where it is not known."""
    return next((d["flop_per_s"] for d in known().values() if d["name"] in name), None)
