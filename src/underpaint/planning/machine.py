"""The machine that is planned for: this one, where steps are timed, or a GPU by its data sheet.

A step on a GPU that is not here is computed from what it launches, multiplies and moves:

    seconds = calls · a call + values · a value + FLOPs / (peak · utilisation) + bytes / bandwidth
"""

import difflib
import json
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

import torch

from underpaint import config
from underpaint.errors import UserError
from underpaint.hardware import free_memory, held_memory, keep_freed_memory, pick_device
from underpaint.planning.candidates import Images, changed
from underpaint.training import cost
from underpaint.training.distributed import World
from underpaint.training.stages import prepare_stages
from underpaint.training.throughput import speed

USABLE = 0.9  # of the memory; the rest is for grids, checks and what is not counted
MOVED = 12 * 4  # bytes a parameter: AdamW reads four tensors and writes three, EMA and clip five
TRAFFIC = 6  # what is kept for the backward pass is written once, read twice, and so its gradient


@dataclass(frozen=True)
class Machine:
    """A device, and the memory that it has for training."""

    name: str
    device: torch.device
    memory: float  # bytes, beside those that a process takes before there is a network
    sheet: dict[str, Any] | None = None  # of devices.json: it is not here, all is computed

    @property
    def gpu(self) -> bool:
        """Whether large batches may pay, and torch.compile is worth its wait."""
        return self.sheet is not None or self.device.type == "cuda"

    def on(self, run: config.Run) -> config.Run:
        """`run` as it is counted and timed for this machine."""
        precision = {"precision": self.sheet["precision"]} if self.sheet else {}
        return changed(run, train={"device": self.device.type, **precision})

    def counted(self, run: config.Run, images: Images) -> dict[str, Any]:
        """What `train --dry-run` says of `run` there."""
        return cost.describe(self.on(run), images.size, images.channels, images.classes)

    def an_image(self, run: config.Run, images: Images, name: str, seconds: float) -> float:
        """Seconds an image of the stage `name`: timed for `seconds` if the machine is here."""
        run = self.on(replace(run, stages={name: run.stages[name]}))
        if self.sheet:
            return _computed(self.sheet, run, images)
        (stage,) = prepare_stages(run, lambda _: None)
        return 1 / speed(stage, run, World(0, 1, self.device), seconds)


def find(name: str) -> Machine:
    """The device of `--device`: here, or known by name. Raises UserError where it is neither."""
    if name not in ("auto", "cpu", "cuda", "mps") and not name.startswith("cuda:"):
        return of_sheet(of_name(name))
    device, held = pick_device(name), held_memory()
    keep_freed_memory()  # as training does
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        return Machine(torch.cuda.get_device_name(device), device, USABLE * free_memory(device))
    shown = f"{device.type}, {torch.get_num_threads()} threads"
    return Machine(shown, device, USABLE * (free_memory(device) + held) - held)


def known() -> dict[str, dict[str, Any]]:
    """GPUs by their key, as `h100`: the values of devices.json, with those that are assumed."""
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


def of_sheet(sheet: dict[str, Any]) -> Machine:
    """A GPU that is not here; `sheet`: of `known`."""
    memory = USABLE * sheet["memory_bytes"] - sheet["base_bytes"]
    return Machine(sheet["key"], torch.device("cpu"), memory, sheet)


def _computed(sheet: dict[str, Any], run: config.Run, images: Images) -> float:
    """Seconds an image of the one stage of `run`, by the formula above."""
    counted = cost.describe(run, images.size, images.channels, images.classes)
    (row,), batch = counted["stages"], counted["stages"][0]["batch"]
    backbone = cost.network(run, images.size, images.channels, images.classes)
    calls = len(list(backbone.parameters())) * batch // (run.train.microbatch or batch)
    bytes_per = 2 if sheet["precision"] == "bf16" else 4
    kept = backbone.activation_bytes(row["visible"], row["mask"], bytes_per)
    return float(
        calls * sheet["seconds_a_tensor"] / batch
        + row["patches"] * backbone.patch_dim * sheet["seconds_a_value"]
        + row["flops_per_image"] / (sheet["flop_per_s"] * sheet["utilisation"])
        + (MOVED * counted["parameters"] / batch + TRAFFIC * kept) / sheet["bytes_per_s"]
    )
