"""Where a run was made: versions, device, threads (`env.json`), and of what (`images.json`).

A run that is resumed asks `recorded` what it was: its data must be the same, and so
is its precision.
"""

import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch

from underpaint._version import __version__
from underpaint.bounded import Is, checked, read_json
from underpaint.errors import UserError
from underpaint.training.distributed import launch
from underpaint.training.stages import PreparedStage
from underpaint.training.train_state import TrainState

RECORDED = {
    "data": Is(dict, 0, 1 << 10, Is(str)),
    "precision": Is(str, among=frozenset(("fp32", "bf16"))),
}
START = {"start": Is((str, type(None)), optional=True)}
IDENTITIES = dict.fromkeys(("trained", "held_out"), Is(list, of=Is(str, 64, 64)))
LARGEST = 1 << 31  # bytes of images.json at most


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


def read_identities(run: Path) -> dict[str, list[str]]:
    """What `identities` wrote when the run began. Raises UserError if it is missing or damaged."""
    path = run / "images.json"
    try:
        return checked(read_json(path, LARGEST), IDENTITIES)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: is missing or damaged ({error})") from None


def identities(stages: list[PreparedStage]) -> str:
    """JSON of the sha256 of each file that is trained on in any stage, and of those held out.

    Sealed data add none: they do not know their files.
    """
    trained: set[str] = set()
    held_out: set[str] = set()
    for data in (stage.training_set for stage in stages):
        trained.update(file.hex() for file, _ in data.identities(data.train_ids))
        held_out.update(file.hex() for file, _ in data.identities(data.held_out_ids))
    return json.dumps({"trained": sorted(trained), "held_out": sorted(held_out - trained)})


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
