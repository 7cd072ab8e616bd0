"""A recipe for these images, this machine and this budget, with what it is expected to take.

    images of a stage = its share of the time · (budget − grids and checks) / seconds an image

The share in the evidence is of FLOPs; the seconds of a FLOP of each stage make it one of time.

`choose` decides on patch, network, masks and batch by the machine's pace; then the network that was
chosen is timed itself at four mask rates, where the machine is here, and the lengths follow from
that. A GPU by its data sheet is computed, not measured, and the plan says so.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass, field
from typing import NamedTuple

from underpaint import config
from underpaint.backbones import Backbone
from underpaint.errors import UserError
from underpaint.evaluation.validation import BINS
from underpaint.model import find, read_spec
from underpaint.planning import measure, memory, pace
from underpaint.planning.candidates import FEW, Images, choose, counted, small, split, visible
from underpaint.planning.evidence import Cell
from underpaint.planning.machine import Machine
from underpaint.planning.measure import Report, Timed

__all__ = ["Plan", "Row", "propose", "seconds_of", "shown"]

PRETRAINED = "pretrained:lorelei"
EVALUATIONS = 8  # of a run, as without settings: grids and overfit checks
EVALUATING = 0.1  # share of the budget that they may take
A_STEP = 1.0  # seconds that a timed step may take; a larger batch is scaled from a smaller one
WARMUP = 50  # steps at width 128, in proportion above
LONG, LONG_AVERAGE = 100_000, 0.9999  # steps from which the average is MaskDM's on LSUN
MANY = 300  # epochs from which copying is to be watched for
MOST = 2500  # epochs: MaskDM's on CelebA-HQ, 75.2 M images of 30,000
UNITS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Row:
    """A stage of the plan."""

    name: str
    mask: str
    rate: float  # realised
    visible: int
    images: int
    seconds: float
    images_per_s: float
    memory: float  # bytes at the worst moment


@dataclass(frozen=True)
class Plan:
    """The recipe, what it is expected to take, and why it is as it is."""

    run: config.Run
    images: Images
    machine: Machine
    parameters: int
    patches: int  # an image
    budget: float  # seconds
    rows: list[Row]
    evaluating: float  # seconds for grids and checks
    cell: Cell
    start: str | None  # weights to begin with
    reasons: list[str]
    speeds: dict[int, float] = field(default_factory=dict)  # images/s measured, by visible patches

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return sum(row.seconds for row in self.rows) + self.evaluating


def seconds_of(text: str) -> float:
    """Seconds of a budget like `24h`, `90m`, `45min`, `2d` or `1h30m`. Raises UserError."""
    plain = re.sub(r"\s", "", text.lower())
    parts = re.findall(r"(\d+(?:\.\d+)?)([a-z]+)", plain)
    understood = "".join(number + unit for number, unit in parts) == plain
    if not parts or not understood or any(unit not in UNITS for _, unit in parts):
        raise UserError(f"--budget '{text}': give a time like 45min, 90m, 24h, 2d or 1h30m")
    seconds = sum(float(number) * UNITS[unit] for number, unit in parts)
    if seconds <= 0:
        raise UserError(f"--budget '{text}': give a time above 0, like 45min or 24h")
    return seconds


def propose(
    images: Images,
    machine: Machine,
    budget: float,
    *,
    seconds: float = 10.0,
    compile: bool = False,
    progress: Report = lambda *_: None,
) -> Plan:
    """The plan for `budget` seconds of training on `machine`.

    Where the machine is here, the chosen network is timed for about `seconds`; `tell` is called
    with the seconds spent and in all. `compile`: with torch.compile. Raises UserError where no
    patch divides the images, or budget or memory do not suffice.
    """
    reasons: list[str] = []
    run, cell = choose(images, machine, budget, reasons)
    run.train = dataclasses.replace(run.train, compile=compile)
    backbone = counted(run, images)
    _microbatch(run, images, machine, backbone, reasons)
    timed = _timed(run, images, machine, backbone, seconds, progress)
    an_image = {
        name: _image_seconds(stage, run, machine, backbone, timed)
        for name, stage in run.stages.items()
    }
    evaluations = _evaluations(run, images, an_image["whole"], budget)
    length = max(0.0, budget - evaluations.seconds)
    parts = split(run, cell, backbone, an_image)
    shares = {name: part / sum(parts.values()) for name, part in parts.items()}
    counts = {name: shares[name] * length / s for name, s in an_image.items()}
    counts = _epochs(counts, images, reasons)
    _lengths(run, counts, shares, an_image, evaluations.seconds, budget)
    _settle(run, evaluations)
    rows = [_row(k, stage, run, machine, backbone, an_image[k]) for k, stage in run.stages.items()]
    start = PRETRAINED if images.count < FEW and _fits_pretrained(run, images) else None
    _remarks(images, rows, start, reasons)
    config.check(run)
    return Plan(
        run=run,
        images=images,
        machine=machine,
        parameters=sum(p.numel() for p in backbone.parameters()),
        patches=math.prod(backbone.grid),
        budget=budget,
        rows=rows,
        evaluating=evaluations.seconds,
        cell=cell,
        start=start,
        reasons=reasons,
        speeds={V: batch / t.seconds for V, (batch, t) in timed.items()},
    )


# --- memory ------------------------------------------------------------------------------------


def _peak(run: config.Run, machine: Machine, backbone: Backbone, V: int, micro: int) -> float:
    return memory.peak(
        backbone, run.network.depth, V, micro, base=machine.base, bytes_per=machine.bytes_per
    )


def _microbatch(
    run: config.Run, images: Images, machine: Machine, backbone: Backbone, reasons: list[str]
) -> None:
    """A microbatch where a batch of whole images does not fit: tried on a GPU, else computed."""
    batch = run.stages["whole"].batch
    if machine.device is not None and machine.device.type == "cuda":
        eager = dataclasses.replace(run, train=dataclasses.replace(run.train, compile=False))

        def fits(count: int) -> bool:
            return measure.fits(eager, images.size, images.classes, count)
    else:
        V = math.prod(backbone.grid)

        def fits(count: int) -> bool:
            return _peak(run, machine, backbone, V, count) <= machine.memory

    most = memory.largest(fits, batch)
    if most < batch:
        micro = next(m for m in range(most, 0, -1) if batch % m == 0) if most else 1
        run.train = dataclasses.replace(run.train, microbatch=micro)
        reasons.append(f"microbatch {micro}: a batch of {batch} whole images does not fit at once")


# --- time --------------------------------------------------------------------------------------


def _timed(
    run: config.Run,
    images: Images,
    machine: Machine,
    backbone: Backbone,
    seconds: float,
    progress: Report,
) -> dict[int, tuple[int, Timed]]:
    """The chosen network's steps, with their batch, by visible patches; none of a data sheet."""
    if machine.device is None:
        return {}
    batch = run.train.microbatch or run.stages["whole"].batch
    N = math.prod(backbone.grid)
    while batch > 1 and batch % 2 == 0:
        if machine.pace.seconds(pace.work(backbone, N, batch, machine.bytes_per)) <= A_STEP:
            break
        batch //= 2
    train = dataclasses.replace(run.train, device=machine.device.type, microbatch=0)
    alone = dataclasses.replace(run, train=train)
    found = measure.rates(
        alone, images.size, images.classes, batch, machine.device, seconds, progress
    )
    return {V: (batch, timed) for V, timed in found.items()}


def _image_seconds(
    stage: config.Stage,
    run: config.Run,
    machine: Machine,
    backbone: Backbone,
    timed: dict[int, tuple[int, Timed]],
) -> float:
    """Seconds an image of the stage: as predicted, times what the nearest timed step was off by."""
    V = visible(stage, backbone)
    work = pace.work(backbone, V, stage.batch, machine.bytes_per, run.train.microbatch)
    off = 1.0
    if timed:
        _, near = timed[min(timed, key=lambda there: abs(math.log(there / V)))]
        off = near.seconds / machine.pace.seconds(near.work)
    return off * machine.pace.seconds(work) / stage.batch


class Evaluations(NamedTuple):
    """Grids and overfit checks of a run."""

    times: int
    seconds: float  # of all
    checks: bool


def _evaluations(run: config.Run, images: Images, whole: float, budget: float) -> Evaluations:
    """As many as fit in their share of the budget; one grid at least.

    They need forward passes of whole images, each a third of a training step on it.
    """
    sides = 2 if images.held_out else 1
    kinds = len(run.stages)  # under the stage's mask, too
    grid = run.sampling.count * run.sampling.steps * whole / 3
    check = kinds * sides * min(run.train.check_images, images.count) * BINS * whole / 3
    times = min(EVALUATIONS, int(EVALUATING * budget / (grid + check)))
    if times:
        return Evaluations(times, times * (grid + check), True)
    return Evaluations(1, grid, False)


# --- lengths -----------------------------------------------------------------------------------


def _epochs(counts: dict[str, float], images: Images, reasons: list[str]) -> dict[str, float]:
    """`counts`, but no more images than have been shown to a network with success.

    Fewer than `FEW`: as the presets for so few; else `MOST` times each image.
    """
    most = dict.fromkeys(counts, float(MOST * images.count))
    source = "MaskDM's published recipe on 30,000 faces"
    if images.count < FEW:
        advised = small(images.count)
        most = {"masked": float(advised.masked_images), "whole": float(advised.whole_images)}
        source = "the presets for so few"
    elif sum(counts.values()) > MOST * images.count:
        most = {k: n * MOST * images.count / sum(counts.values()) for k, n in counts.items()}
    kept = {name: min(most[name], count) for name, count in counts.items()}
    if kept != counts:
        epochs = sum(kept.values()) / images.count
        reasons.append(
            f"length: {epochs:,.0f} epochs, as {source}; the rest of the budget would go into "
            "copying the images"
        )
    return kept


def _lengths(
    run: config.Run,
    counts: dict[str, float],
    shares: dict[str, float],
    an_image: dict[str, float],
    evaluating: float,
    budget: float,
) -> None:
    """Sets the stages' images and warm-ups. Raises UserError for less than one batch."""
    width = run.network.width / config.Network().width
    for name, stage in run.stages.items():
        batches = int(counts[name] / stage.batch)
        if batches < 1:
            least = evaluating + stage.batch * an_image[name] / shares[name]
            raise UserError(
                f"a budget of {shown(budget)} is too small for one checkpoint: stage {name} would "
                f"not see one batch of {stage.batch} images; give at least {shown(1.1 * least)}"
            )
        images = batches * stage.batch
        warmup = min(round(WARMUP * width) * stage.batch, images // 5)
        if name == "whole" and len(run.stages) > 1:
            warmup = 0
        run.stages[name] = dataclasses.replace(stage, images=images, warmup=warmup)


def _settle(run: config.Run, evaluations: Evaluations) -> None:
    """How often grids and checks are made, and the width of a long run's average."""
    images = sum(stage.images for stage in run.stages.values())
    steps = sum(stage.images // stage.batch for stage in run.stages.values())
    every = 0 if evaluations.times == EVALUATIONS else -(-images // evaluations.times)
    run.train = dataclasses.replace(
        run.train,
        sample_every=every,
        check_every=every if evaluations.checks else -1,
        ema=LONG_AVERAGE if steps >= LONG else run.train.ema,
    )


def _row(
    name: str,
    stage: config.Stage,
    run: config.Run,
    machine: Machine,
    backbone: Backbone,
    an_image: float,
) -> Row:
    V = visible(stage, backbone)
    return Row(
        name=name,
        mask=stage.mask,
        rate=1 - V / math.prod(backbone.grid),
        visible=V,
        images=stage.images,
        seconds=stage.images * an_image,
        images_per_s=1 / an_image,
        memory=_peak(run, machine, backbone, V, run.train.microbatch or stage.batch),
    )


def _remarks(images: Images, rows: list[Row], start: str | None, reasons: list[str]) -> None:
    if start:
        reasons.append(
            f"{images.count:,} images are few: start from {start}, whose network this is, with the "
            "augmentation and dropout of the presets for so few"
        )
    epochs = sum(row.images for row in rows) / images.count
    if images.count >= FEW and epochs > MANY:
        reasons.append(
            f"{epochs:,.0f} epochs are many: watch the held-out loss in the report, and stop where "
            "it says copying"
        )


def _fits_pretrained(run: config.Run, images: Images) -> bool:
    """Whether the packaged weights fit this network."""
    spec = read_spec(find(PRETRAINED))
    ours, theirs = run.network, spec.network
    same = all(getattr(ours, k) == getattr(theirs, k) for k in ("kind", "width", "depth", "heads"))
    return same and run.space == spec.space and images.channels == spec.channels


def shown(seconds: float) -> str:
    """Two units, as `--budget` takes them: 45s, 12min, 3h20min, 2d4h."""
    if seconds < 60:
        return f"{max(1, math.ceil(seconds))}s"
    minutes = math.ceil(seconds / 60)
    if minutes < 60:
        return f"{minutes}min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours}h{minutes}min" if minutes else f"{hours}h"
    days, hours = divmod(round(hours + minutes / 60), 24)
    return f"{days}d{hours}h" if hours else f"{days}d"
