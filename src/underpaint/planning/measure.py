"""How fast this machine trains: steps of the loop, on images that need no files.

`calibrate` times small networks that differ in width, tokens and batch, from which `pace.fit` makes
the pace of the machine; `rates` times the network that is proposed, at several mask rates. The
steps take turns, so that a slow moment of the machine meets all of them, and the least of each is
taken: other processes only ever add.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple, cast

import numpy as np
import torch

from underpaint import config
from underpaint.core import masks, spaces
from underpaint.data import Dataset, Order
from underpaint.hardware import use_bf16
from underpaint.planning import pace
from underpaint.planning.pace import Work
from underpaint.training.checkpointing import Progress
from underpaint.training.distributed import World
from underpaint.training.stages import Level, Plan, stride
from underpaint.training.throughput import step_seconds
from underpaint.training.train_state import Learner

__all__ = [
    "RATES",
    "Probe",
    "RandomImages",
    "Timed",
    "bytes_per",
    "calibrate",
    "fits",
    "rates",
    "recipe",
    "stage_plan",
    "stepper",
    "take",
]

RATES = (0.0, 0.5, 0.75, 0.9)

Clock = Callable[[], float]  # seconds
Tell = Callable[[int, int], None]  # called with (seconds spent, seconds in all)


class Probe(NamedTuple):
    """A step that is timed: a DiT on square images."""

    width: int
    depth: int
    heads: int
    size: int
    rate: float
    batch: int
    patch: int = 4


class Timed(NamedTuple):
    """A step's work, and its seconds."""

    work: Work
    seconds: float


# Each currency of `pace.Work` is most of some probe, and all together take about two seconds here.
CPU = (
    Probe(128, 5, 4, 64, 0.0, 4),
    Probe(128, 5, 4, 64, 0.5, 8),
    Probe(128, 5, 4, 64, 0.75, 16),
    Probe(128, 5, 4, 64, 0.9, 4),
    Probe(256, 5, 8, 64, 0.0, 2),
    Probe(256, 5, 8, 64, 0.75, 8),
    Probe(256, 5, 8, 64, 0.9, 2),
    Probe(512, 3, 8, 32, 0.0, 4),
    Probe(128, 5, 4, 128, 0.0, 1),
    Probe(128, 5, 4, 128, 0.5, 4),
)
CUDA = (
    Probe(128, 5, 4, 64, 0.0, 8),
    Probe(128, 5, 4, 64, 0.0, 256),
    Probe(128, 5, 4, 64, 0.75, 256),
    Probe(128, 5, 4, 64, 0.9, 256),
    Probe(512, 5, 8, 64, 0.0, 64),
    Probe(512, 5, 8, 64, 0.75, 128),
    Probe(768, 5, 12, 64, 0.0, 32),
    Probe(768, 5, 12, 64, 0.9, 128),
    Probe(256, 5, 8, 128, 0.0, 16),
    Probe(256, 5, 8, 128, 0.5, 32),
)


class RandomImages:
    """Images of chance that need no files, as a `Dataset`."""

    latents = None

    def __init__(self, size: tuple[int, int], channels: int, count: int = 256) -> None:
        rng = np.random.default_rng(0)
        self.images = rng.integers(0, 256, (count, *size, channels), dtype=np.uint8)
        self.labels = np.full(count, -1, np.int64)
        self.train_ids = np.arange(count)

    def batch(self, ids: np.ndarray) -> np.ndarray:
        return np.take(self.images, ids, axis=0)


def stage_plan(
    run: config.Run, size: tuple[int, int], rate: float, batch: int, kind: str, classes: int = 0
) -> Plan:
    """A stage of `run` at a constant rate, on images of chance; its first stage's settings else."""
    stage = next(iter(run.stages.values()), config.Stage())
    changes = {"batch": batch, "mask": kind, "rate": rate, "images": batch}
    stage = config.from_dict(config.Stage, changes, "timed: ", stage)
    spec = config.ModelSpec(
        size=size,
        channels=run.data.channels,
        label_names=tuple(map(str, range(classes))) if run.network.labels else (),
        space=run.space,
        network=config.network_of(run),
        noise=run.noise,
    )
    space = spaces.build(spec.space, size, spec.channels)
    rounding = {"block": stage.block, "multiple": stride(spec)}
    visible = masks.visible_count(kind, space.grid, rate, **rounding)
    realised = masks.realised_rate(kind, space.grid, rate, **rounding)
    drawn = RandomImages(size, spec.channels)
    return Plan(
        index=0,
        name="timed",
        stage=stage,
        spec=spec,
        space=space,
        dataset=cast(Dataset, drawn),
        order=Order(drawn.train_ids, 0),
        images=10**12,
        levels=(Level(0, rate, realised, visible),),
    )


def take(
    steps: Mapping[Hashable, Callable[[], float]], seconds: float, tell: Tell, rounds: int = 2
) -> list[float]:
    """The least seconds of each of `steps`, which take turns for `seconds`, `rounds` at least."""
    least = dict.fromkeys(steps, float("inf"))
    began, done = time.monotonic(), 0
    while done < rounds or time.monotonic() - began < seconds:
        for name, step in steps.items():
            least[name] = min(least[name], step())
            tell(min(int(time.monotonic() - began), int(seconds)), int(seconds))
        done += 1
    return list(least.values())


def calibrate(
    device: torch.device,
    seconds: float,
    tell: Tell,
    probes: Sequence[Probe] = (),
    clock: Clock = time.perf_counter,
    rounds: int = 2,
) -> list[Timed]:
    """The probes' works and times on `device`, uncompiled; at least so many rounds."""
    probes = probes or (CUDA if device.type == "cuda" else CPU)
    world = World(0, 1, device)
    learners: dict[tuple[int, ...], Learner] = {}
    steps: dict[Hashable, Callable[[], float]] = {}
    works = []
    for probe in probes:
        run = recipe(probe, device)
        kind = "patch" if probe.rate else "none"
        plan = stage_plan(run, (probe.size, probe.size), probe.rate, probe.batch, kind)
        shape = (probe.width, probe.depth, probe.size, probe.patch)
        if shape not in learners:
            learners[shape] = Learner(plan.spec, run.train, world)
        learner = learners[shape]
        steps[probe] = stepper(plan, run, learner, clock)
        bytes_per = 2 if learner.bf16 else 4
        visible = plan.levels[0].visible
        works.append(pace.work(learner.model.backbone, visible, probe.batch, bytes_per))
    for step in steps.values():
        step()  # allocates
    least = take(steps, seconds, tell, rounds)
    return [Timed(*pair) for pair in zip(works, least, strict=True)]


def rates(
    run: config.Run,
    size: tuple[int, int],
    classes: int,
    batch: int,
    device: torch.device,
    seconds: float,
    tell: Tell,
) -> dict[int, Timed]:
    """Steps of `run`'s network at RATES, by the number of visible patches."""
    world = World(0, 1, device)
    learner: Learner | None = None
    steps: dict[Hashable, Callable[[], float]] = {}
    works = {}
    for rate in RATES:
        plan = stage_plan(run, size, rate, batch, "patch" if rate else "none", classes)
        if learner is None:
            learner = Learner(plan.spec, run.train, world)
        visible = plan.levels[0].visible
        steps[visible] = stepper(plan, run, learner)
        bytes_per = 2 if learner.bf16 else 4
        works[visible] = pace.work(learner.model.backbone, visible, batch, bytes_per)
    for step in steps.values():
        step(), step()  # allocates and compiles
    least = take(steps, seconds, tell)
    return {V: Timed(works[V], t) for V, t in zip(works, least, strict=True)}


def fits(run: config.Run, size: tuple[int, int], classes: int, batch: int) -> bool:
    """Whether a step on so many whole images fits in the memory of the GPU: it is tried."""
    device = torch.device("cuda")
    try:
        plan = stage_plan(run, size, 0.0, batch, "none", classes)
        learner = Learner(plan.spec, run.train, World(0, 1, device))
        step = stepper(plan, run, learner)
        step(), step()  # the second has the optimiser's state from the start
    except torch.cuda.OutOfMemoryError:
        return False
    finally:
        plan = learner = step = None  # type: ignore[assignment]
        torch.cuda.empty_cache()
    return True


def bytes_per(train: config.Train, device: torch.device) -> int:
    """Bytes of a number that the network keeps for its backward pass."""
    return 2 if use_bf16(train.precision, device) else 4


def recipe(probe: Probe, device: torch.device) -> config.Run:
    """The recipe of a probe."""
    return config.Run(
        space=config.Space(patch=probe.patch),
        network=config.Network(width=probe.width, depth=probe.depth, heads=probe.heads),
        stages={"timed": config.Stage(images=probe.batch)},
        train=config.Train(device=device.type),
    )


def stepper(
    plan: Plan, run: config.Run, learner: Learner, clock: Clock = time.perf_counter
) -> Callable[[], float]:
    """A call makes one step, and returns its seconds."""
    progress = Progress()
    return lambda: step_seconds(plan, run, learner, progress, clock)
