"""The machine that is planned for: this one, measured, or a GPU by its data sheet."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field

import torch

from underpaint import config
from underpaint.hardware import pick_device
from underpaint.planning import devices, measure, memory, pace
from underpaint.planning.measure import Probe, Report, Timed
from underpaint.planning.pace import Pace

__all__ = ["Machine", "find", "here", "is_known", "of_sheet"]

KINDS = ("auto", "cpu", "cuda", "mps")  # what torch can be asked for
USABLE = 0.9  # of the memory; the rest is for grids, checks and what is not counted


@dataclass(frozen=True)
class Machine:
    """A device, its pace and its memory."""

    name: str
    device: torch.device | None  # None: it is not here, all is computed
    pace: Pace
    memory: float  # bytes that training may take
    base: float  # bytes that a process takes before there is a network
    bytes_per: int  # of a number that is kept for the backward pass
    gpu: bool  # large batches pay
    threads: int = 0
    source: str = ""  # of a data sheet
    probes: list[Timed] = field(default_factory=list)

    @property
    def shown(self) -> str:
        """Its name, and how many threads of it."""
        if not self.threads:
            return self.name
        return f"{self.name}, {self.threads} thread{'s' if self.threads > 1 else ''}"

    @property
    def compiles(self) -> bool:
        """Whether torch.compile is worth its wait."""
        return self.device is None or self.device.type == "cuda"

    @property
    def measured(self) -> bool:
        """Whether the times come from this machine."""
        return self.device is not None


def is_known(name: str) -> bool:
    """Whether `name` is a GPU known by name, and not a device of this machine.

    Raises UserError where it is neither.
    """
    if name in KINDS or name.startswith("cuda:"):
        pick_device(name)
        return False
    devices.of_name(name)
    return True


def find(name: str, seconds: float, progress: Report) -> Machine:
    """The device of `--device`: known by name, or here, and then measured for about `seconds`."""
    if is_known(name):
        return of_sheet(devices.of_name(name))
    return here(pick_device(name), seconds, progress)


def here(
    device: torch.device, seconds: float, progress: Report, probes: tuple[Probe, ...] = ()
) -> Machine:
    """This machine, from steps that are timed for about `seconds`."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # as the loop does
    warm = Probe(32, 1, 1, 32, 0.0, 1)
    measure.calibrate(device, 0.0, lambda *_: None, (warm,))  # loads what a first step loads
    base = float(memory.resident()) if device.type == "cpu" else 0.0
    timed = measure.calibrate(device, seconds, progress, probes)
    return Machine(
        name=_name(device),
        device=device,
        pace=pace.fit(*zip(*timed, strict=True)),
        memory=USABLE * memory.available(device),
        base=base,
        bytes_per=measure.bytes_per(config.Train(), device),
        gpu=device.type != "cpu",
        threads=torch.get_num_threads() if device.type == "cpu" else 0,
        probes=timed,
    )


def of_sheet(device: devices.Device) -> Machine:
    """A GPU that is not here."""
    return Machine(
        name=device.key,
        device=None,
        pace=pace.of_device(device),
        memory=USABLE * device.memory_bytes,
        base=device.base_bytes,
        bytes_per=2 if device.precision == "bf16" else 4,
        gpu=True,
        source=device.source,
    )


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "cpu" if device.type == "cpu" else f"{device.type} ({platform.machine()})"
