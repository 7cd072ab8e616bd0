"""How fast this machine trains: steps of the loop, on images that need no files.

`calibrate` times small networks that differ in width, tokens and batch, from which `pace.fit` makes
the pace of the machine; `rates` times the network that is proposed, at several mask rates. The
steps take turns, so that a slow moment of the machine meets all of them, and the least of each is
taken: other processes only ever add.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from underpaint import config, factory
from underpaint.core import masks
from underpaint.data import Dataset, Order
from underpaint.hardware import use_bf16
from underpaint.planning import pace
from underpaint.planning.pace import Work
from underpaint.training.checkpointing import Progress
from underpaint.training.distributed import World
from underpaint.training.stages import Level, PreparedStage
from underpaint.training.throughput import step_seconds
from underpaint.training.train_state import TrainState
from underpaint.training.training_set import ImageSet

__all__ = [
    "RATES",
    "Probe",
    "Timed",
    "bytes_per",
    "calibrate",
    "fits",
    "random_images",
    "rates",
    "recipe",
    "stepper",
    "take",
    "timed_stage",
]

RATES = (0.0, 0.5, 0.75, 0.9)

Clock = Callable[[], float]  # seconds
Report = Callable[[int, int], None]  # called with (seconds spent, seconds in all)


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


def random_images(size: tuple[int, int], channels: int, count: int = 256) -> Dataset:
    """Images of chance, which need no files."""
    rng = np.random.default_rng(0)
    digests = rng.integers(0, 256, (count, 32), dtype=np.uint8)
    return Dataset(
        images=rng.integers(0, 256, (count, *size, channels), dtype=np.uint8),
        labels=np.full(count, -1, np.int64),
        label_names=(),
        names=[str(i) for i in range(count)],
        train_ids=np.arange(count),
        held_out_ids=np.arange(0),
        key="random",
        report={},
        file_digests=digests,
        pixel_digests=digests,
    )


def timed_stage(
    run: config.Run, size: tuple[int, int], rate: float, batch: int, kind: str, classes: int = 0
) -> PreparedStage:
    """A stage of `run` at a constant rate, on images of chance; its first stage's settings else."""
    settings = next(iter(run.stages.values()), config.Stage())
    changes = {"batch": batch, "mask": kind, "rate": rate, "images": batch}
    settings = config.from_dict(config.Stage, changes, "timed: ", settings)
    spec = config.ModelSpec(
        size=size,
        channels=run.data.channels,
        label_names=tuple(map(str, range(classes))) if run.network.labels else (),
        space=run.space,
        network=config.network_of(run),
        noise=run.noise,
    )
    space = factory.space(spec.space, size, spec.channels)
    mask = factory.mask_spec(settings, factory.unallocated_network(spec))
    V = masks.visible_count(mask, space.grid)
    keep_hidden = run.noise.hidden_weight > 0
    drawn = random_images(size, spec.channels)
    images = ImageSet(drawn, settings, space, mask, keep_hidden=keep_hidden)
    return PreparedStage(
        index=0,
        name="timed",
        settings=settings,
        spec=spec,
        space=space,
        training_set=images,
        order=Order(images.train_ids, 0),
        images=10**12,
        levels=(Level(0, rate, masks.realised_rate(mask, space.grid), V),),
    )


def take(
    steps: Mapping[Hashable, Callable[[], float]],
    seconds: float,
    progress: Report,
    rounds: int = 2,
) -> list[float]:
    """The least seconds of each of `steps`, which take turns for `seconds`, `rounds` at least."""
    least = dict.fromkeys(steps, float("inf"))
    began, done = time.monotonic(), 0
    while done < rounds or time.monotonic() - began < seconds:
        for name, step in steps.items():
            least[name] = min(least[name], step())
            progress(min(int(time.monotonic() - began), int(seconds)), int(seconds))
        done += 1
    return list(least.values())


def calibrate(
    device: torch.device,
    seconds: float,
    progress: Report,
    probes: Sequence[Probe] = (),
    clock: Clock = time.perf_counter,
    rounds: int = 2,
) -> list[Timed]:
    """The probes' works and times on `device`, uncompiled; at least so many rounds."""
    probes = probes or (CUDA if device.type == "cuda" else CPU)
    world = World(0, 1, device)
    states: dict[tuple[int, ...], TrainState] = {}
    steps: dict[Hashable, Callable[[], float]] = {}
    works = []
    for probe in probes:
        run = recipe(probe, device)
        kind = "patch" if probe.rate else "none"
        stage = timed_stage(run, (probe.size, probe.size), probe.rate, probe.batch, kind)
        shape = (probe.width, probe.depth, probe.size, probe.patch)
        if shape not in states:
            states[shape] = TrainState(stage.spec, run.train, world)
        state = states[shape]
        steps[probe] = stepper(stage, run, state, clock)
        bytes_per = 2 if state.bf16 else 4
        visible = stage.levels[0].visible
        works.append(pace.work(state.model.backbone, visible, probe.batch, bytes_per))
    for step in steps.values():
        step()  # allocates
    least = take(steps, seconds, progress, rounds)
    return [Timed(*pair) for pair in zip(works, least, strict=True)]


def rates(
    run: config.Run,
    size: tuple[int, int],
    classes: int,
    batch: int,
    device: torch.device,
    seconds: float,
    progress: Report,
) -> dict[int, Timed]:
    """Steps of `run`'s network at RATES, by the number of visible patches."""
    world = World(0, 1, device)
    state: TrainState | None = None
    steps: dict[Hashable, Callable[[], float]] = {}
    works = {}
    for rate in RATES:
        stage = timed_stage(run, size, rate, batch, "patch" if rate else "none", classes)
        if state is None:
            state = TrainState(stage.spec, run.train, world)
        visible = stage.levels[0].visible
        steps[visible] = stepper(stage, run, state)
        bytes_per = 2 if state.bf16 else 4
        works[visible] = pace.work(state.model.backbone, visible, batch, bytes_per)
    for step in steps.values():
        step(), step()  # allocates and compiles
    least = take(steps, seconds, progress)
    return {V: Timed(works[V], t) for V, t in zip(works, least, strict=True)}


def fits(run: config.Run, size: tuple[int, int], classes: int, batch: int) -> bool:
    """Whether a step on so many whole images fits in the memory of the GPU: it is tried."""
    device = torch.device("cuda")
    try:
        stage = timed_stage(run, size, 0.0, batch, "none", classes)
        state = TrainState(stage.spec, run.train, World(0, 1, device))
        step = stepper(stage, run, state)
        step(), step()  # the second has the optimiser's state from the start
    except torch.cuda.OutOfMemoryError:
        return False
    finally:
        stage = state = step = None  # type: ignore[assignment]
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
    stage: PreparedStage, run: config.Run, state: TrainState, clock: Clock = time.perf_counter
) -> Callable[[], float]:
    """A call makes one step, and returns its seconds."""
    progress = Progress()
    return lambda: step_seconds(stage, run, state, progress, clock)
