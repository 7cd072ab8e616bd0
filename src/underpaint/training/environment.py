"""Where a run was made: versions, device, threads (`env.json`), and of what (`images.json`)."""

from __future__ import annotations

import json
import platform
import sys
import time

import torch

from underpaint._version import __version__
from underpaint.data import Dataset
from underpaint.training.learner import Learner
from underpaint.training.stages import Plan

__all__ = ["describe", "identities"]


def describe(plans: list[Plan], learner: Learner, start: str | None) -> str:
    return json.dumps(
        {
            "underpaint": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "device": _device_name(learner.world.device),
            "cpu": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "processes": learner.world.size,
            "precision": "bf16" if learner.bf16 else "fp32",
            "command": " ".join(["underpaint", *sys.argv[1:]]) if sys.argv[1:] else None,
            "start": start,
            "data": {plan.name: plan.dataset.key for plan in plans},
            "parameters": sum(p.numel() for p in learner.backbone.parameters()),
            "began": time.strftime("%Y-%m-%d %H:%M:%S"),
        },
        indent=1,
    )


def identities(plans: list[Plan]) -> str:
    """JSON of the sha256 of each file that is trained on in any stage, and of those held out.

    Sealed data add none: they do not know their files.
    """
    trained: set[str] = set()
    held_out: set[str] = set()
    for dataset in (plan.dataset for plan in plans):
        if isinstance(dataset, Dataset):
            sha = dataset.file_sha256
            trained.update(sha[i] for i in dataset.train_ids.tolist())
            held_out.update(sha[i] for i in dataset.held_out_ids.tolist())
    return json.dumps({"trained": sorted(trained), "held_out": sorted(held_out - trained)})


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
