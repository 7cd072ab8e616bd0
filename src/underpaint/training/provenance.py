"""Where a run was made: versions, device, threads (`env.json`).

A run that is resumed asks `recorded` what it was: its data must be the same, and so
is its precision.
"""

import dataclasses
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch

from underpaint import config
from underpaint._version import __version__
from underpaint.bounded import Is, checked, read_json
from underpaint.data.source import absolute, is_there
from underpaint.errors import UserError
from underpaint.training.distributed import launch
from underpaint.training.stages import PreparedStage
from underpaint.training.train_state import TrainState

RECORDED = {
    "data": Is(dict, 0, 1 << 10, Is(str)),
    "precision": Is(str, among=frozenset(("fp32", "bf16"))),
    "processes": Is(int, 1, 1 << 20, optional=True),
}
START = {"start": Is((str, type(None)), optional=True)}


def describe(stages: list[PreparedStage], state: TrainState, start: str | None) -> str:
    return json.dumps(
        {
            "underpaint": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "device": _device_name(state.world.device),
            "cpu": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "processes": state.world.size,
            "launch": launch(),
            "sharded": state.sharded,
            "precision": "bf16" if state.bf16 else "fp32",
            "command": " ".join(["underpaint", *sys.argv[1:]]) if sys.argv[1:] else None,
            "start": start,
            "data": {stage.name: stage.training_set.key for stage in stages},
            "parameters": sum(p.numel() for p in state.backbone.parameters()),
            "began": time.strftime("%Y-%m-%d %H:%M:%S"),
        },
        indent=1,
    )


def of_this_launch(folder: Path) -> bool:
    """Whether the run in `folder` was begun by the same call of `torchrun`."""
    try:
        found = read_json(folder / "env.json").get("launch")
    except (OSError, ValueError, AttributeError):
        return False
    return found is not None and found == launch()


def recorded(folder: Path) -> dict[str, Any]:
    """What `describe` wrote when the run in `folder` began. Raises UserError if it is not there."""
    try:
        return checked(read_json(folder / "env.json"), RECORDED, more=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: its env.json is missing or damaged ({error})") from None


def start_of(run: Path) -> str | None:
    """The weights that a run began with, if any. Raises UserError for a damaged env.json."""
    path = run / "env.json"
    try:
        return checked(read_json(path), START, more=True).get("start") if path.exists() else None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: is damaged ({error})") from None


def data_of(run: config.Run, data: str | None, whose: object) -> config.Data:
    """The images of a run's last stage, which lie in `data` now (None: where they lay).

    Raises UserError where they are not there: `whose` names the run.
    """
    found = run.data_of(run.last)
    if data is not None:
        found = dataclasses.replace(found, source=absolute(data))
        if not (
            found.held_out in ("auto", "none")
            or found.held_out.isdecimal()
            or is_there(found.held_out)
        ):
            found = dataclasses.replace(found, held_out="none")
    if found.source and not is_there(found.source):
        raise UserError(
            f"{found.source}: the images of {whose} are not there; add --data DATA, where they are"
            if data is None
            else f"--data {data}: there are no images"
        )
    return found


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
