"""GPUs that are known by their data sheets: `devices.json`, for planning where none is at hand."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from importlib import resources

from underpaint.errors import UserError

__all__ = ["Device", "known", "of_name", "peak_flops"]


@dataclass(frozen=True)
class Device:
    """What its maker says of a GPU, and what is assumed of a training step on it."""

    key: str
    name: str  # what torch.cuda.get_device_name has of it
    precision: str  # bf16 or fp32
    flop_per_s: float  # dense peak in that precision
    utilisation: float  # assumed share of the peak
    memory_bytes: float
    bytes_per_s: float
    source: str
    seconds_a_tensor: float  # assumed
    seconds_a_value: float  # assumed
    base_bytes: float  # assumed


def known() -> dict[str, Device]:
    """All devices by their key, as `h100`."""
    file = resources.files("underpaint") / "planning" / "devices.json"
    table = json.loads(file.read_text(encoding="utf-8"))
    assumed = {k: v for k, v in table["assumed"].items() if k != "why"}
    return {key: Device(key, **values, **assumed) for key, values in table["devices"].items()}


def of_name(key: str) -> Device:
    """The device `key`. Raises UserError with the nearest name where there is none."""
    table = known()
    if key.lower() in table:
        return table[key.lower()]
    close = difflib.get_close_matches(key.lower(), [*table, "auto", "cpu", "cuda", "mps"], 1, 0.5)
    hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(table)}"
    raise UserError(f"device '{key}' is neither here nor known; {hint}")


def peak_flops(name: str) -> float | None:
    """Dense peak in FLOP/s of the GPU that torch calls `name`; None where it is not known."""
    return next((d.flop_per_s for d in known().values() if d.name in name), None)
