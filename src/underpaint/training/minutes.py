"""Minutes into images, once: a run of M minutes has its report when they are over.

    images of a stage = its share · (60 M − start − evaluations − report) / seconds an image

All on the right is measured before the first step, on throw-away weights, and what follows from it
is frozen in `config.yaml`, so that a resumed run is the same run. Start, evaluations (checks and
sample grids) and report take OVERHEAD of the minutes at most: the fewer minutes, the fewer checks
and grids and the fewer images in a check, down to one grid at the end. What a recipe says of checks
and grids stays, and is subtracted. Stages given in images come on top of the minutes.

Machines get slower and faster. Where the run would end too late, the last stage begins its
cool-down as soon as this just fits into the time that is left, or ends a cool-down sooner; where it
would end too early, the cool-down begins later, so that the time is used (`Deadline`). What was
decided is part of the run's state, so that going on from a checkpoint after it repeats it; a
resumed run reads no clock.
"""

import dataclasses
import time
from dataclasses import dataclass
from typing import NamedTuple

from underpaint import config
from underpaint.errors import UserError
from underpaint.model import build
from underpaint.progress import clock, doing, following
from underpaint.training.checkpointing import Progress
from underpaint.training.distributed import World
from underpaint.training.live_page import SHARE
from underpaint.training.monitor import CHECKS, EVALUATIONS, MakeCheck
from underpaint.training.stages import PreparedStage, prepare_stages
from underpaint.training.throughput import speed

OVERHEAD = 0.1  # of the minutes
LATE = 0.02  # of the minutes: a delay that is not made up for
EARLY = 0.1  # of the stage's images: so many more are worth a longer stage
RECENT = 8  # parts of a stage, in the last one or two of which its speed is taken
STEEPER = 64  # parts of a stage, in each of which a cool-down gets steeper once at most
MEASURING, MOST = 0.02, 0.75  # of the minutes, for steps; and seconds a level at most
REPORT, DRAWN = 1.5, 32  # the report: seconds, besides samples
TRIES = 3  # of drawing
SMALLER = (64, 32)  # images per side of a check, where fewer than ENOUGH checks fit with more
ENOUGH = 4


class Costs(NamedTuple):
    """Seconds on this machine."""

    rest: float  # start and report
    grid: float
    checks: dict[int, float]  # by images per side, which may be chosen in this order
    report: float = 0.0  # of `rest`


@dataclass
class Deadline:
    """When the last step has to be made, on the monotonic clock, and how fast steps are."""

    end: float
    slack: float  # seconds after it that do not count
    marks: tuple[tuple[int, float], tuple[int, float]] | None = None  # images of the stage, time
    seen: int = 0  # images of the stage, when it was last asked
    steeper: int = 0  # and when a cool-down last got steeper

    def cooldown(self, stage: PreparedStage, progress: Progress, world: World) -> tuple[int, int]:
        """Another cool-down than planned, or (0, 0).

        After how many images of the stage it begins, and its length, the same in all processes.
        It begins now if it would end too late when begun a step later; if it is due and the images
        that fit into the time left make the stage at least EARLY longer, it begins later; its share
        of the stage is what was planned. One that goes on and would end too late gets steeper, as
        if it had begun later: the learning rate falls from what it is now to 0.
        """
        seen, settings, now = progress.stage_images, stage.settings, time.monotonic()
        if self.marks is None or seen <= self.seen:  # gone back
            self.marks, self.steeper = ((seen, now), (seen, now)), 0
        (begin, since), mark = self.marks
        self.seen = seen
        if seen - mark[0] >= stage.images / RECENT:
            self.marks = (mark, (seen, now))
        planned = stage.images * (1 - settings.cooldown)
        if settings.schedule != "cooldown" or seen <= max(begin, settings.warmup):
            return 0, 0
        batch = stage.batch
        share = settings.cooldown / (1 - settings.cooldown) if seen < planned else 0.0
        an_image = max(1e-9, now - since) / (seen - begin)  # some clocks tick coarsely
        fits = seen + max(1, int((self.end - now) / an_image / batch)) * batch
        begins, length = 0, 0
        if seen >= planned:
            left = stage.images - seen
            late = now + left * an_image - self.end > self.slack and fits < stage.images
            if late and seen - self.steeper >= stage.images / STEEPER:
                self.steeper = seen
                begins = max(1, fits - round((stage.images - planned) * (fits - seen) / left))
                length = fits - begins
        elif now + (batch + share * (seen + batch)) * an_image - self.end > self.slack:
            begins, length = seen, max(1, round(share * seen / batch)) * batch
        elif seen + batch >= planned and fits >= stage.images * (1 + EARLY):
            length = max(1, round(settings.cooldown * fits / batch)) * batch
            begins = fits - length
        found = world.from_first([float(begins), float(length)])
        return int(found[0]), int(found[1])


class Division(NamedTuple):
    """How a run's seconds are divided."""

    training: float
    evaluations: float
    parts: int  # of the run, each with a check and a grid; 0: one grid alone
    check_images: int


def freeze(
    run: config.Run,
    stages: list[PreparedStage],
    world: World,
    began: float,
    make_check: MakeCheck | None = None,
    report: bool = False,
    started: bool = False,
) -> tuple[config.Run, list[PreparedStage], list[str], Deadline | None]:
    """Stages given in minutes, now in images, by the speed of this machine; notes; and the end.

    `began`: the monotonic time from which the minutes count. `report`: whether they include one,
    and a page while the run goes on.
    `started`: whether a check and a grid are made of the weights that the run starts from.
    """
    timed = [stage for stage in stages if stage.settings.minutes]
    if not timed:
        return run, stages, [], None
    length = 60.0 * sum(stage.settings.minutes for stage in timed)
    seconds = min(MOST, MEASURING * length / sum(len(stage.levels) for stage in timed))
    with doing("measuring how fast this machine trains"):
        speeds = world.from_first([speed(stage, run, world, seconds) for stage in timed])
        with following(None):
            costs = measure(run, stages, world, began, make_check, report)
    costs = costs._replace(rest=costs.rest + report * SHARE * length)
    by_share = [
        60.0 * stage.settings.minutes / length * v for stage, v in zip(timed, speeds, strict=True)
    ]
    found = divide(run, length, sum(by_share), costs)
    if started:  # one look more, with a check where there are any
        look = costs.grid + (costs.checks[found.check_images] if found.parts else 0.0)
        costs = costs._replace(rest=costs.rest + look)
        found = divide(run, length, sum(by_share), costs)
    frozen = dict(run.stages)
    for stage, each in zip(timed, by_share, strict=True):
        images = max(1, round(found.training * each / stage.batch)) * stage.batch
        warmup = min(stage.settings.warmup, images // 5)  # a short stage must leave its warm-up
        frozen[stage.name] = dataclasses.replace(
            stage.settings, images=images, minutes=0.0, warmup=warmup
        )
    stages = prepare_stages(dataclasses.replace(run, stages=frozen), lambda _: None)
    total = sum(stage.images for stage in stages)
    train = dataclasses.replace(run.train, check_images=found.check_images)
    if train.check_every == 0 and found.parts < _most(run):  # else 0 means as many
        train.check_every = -(-total // found.parts) if found.parts else -1
    if train.sample_every == 0 and found.parts < EVALUATIONS:
        train.sample_every = -(-total // max(1, found.parts))
    notes = [
        f"{length / 60:.3g} min: {clock(found.training)} of training, {found.evaluations:.0f} s of "
        f"checks and sample grids, {costs.rest:.0f} s for start and report"
    ]
    if (least := costs.rest + costs.grid) > OVERHEAD * length:
        what = "start, one sample grid and report"
        notes.append(f"{length / 60:.3g} min is short: {what} alone take {least:.0f} s")
    after = costs.report + costs.grid + (costs.checks[found.check_images] if found.parts else 0.0)
    alone = len(timed) == len(stages) and stages[-1].guarantee is None
    deadline = Deadline(began + length - after, LATE * length) if alone else None
    return dataclasses.replace(run, stages=frozen, train=train), stages, notes, deadline


def divide(run: config.Run, length: float, rate: float, costs: Costs) -> Division:
    """`length` seconds divided; `rate`: images a second of training, over all stages."""
    train, stages = run.train, len(run.stages)
    least = int(train.stop == "auto")  # it has nothing but checks to go by
    for images, check in costs.checks.items():
        every = ((check, train.check_every), (costs.grid, train.sample_every))
        asked = sum(rate * seconds / n for seconds, n in every if n > 0)  # seconds a second
        one, grid = (seconds if n == 0 else 0.0 for seconds, n in every)
        evaluations = [  # of 0, 1, 2 … parts: checks, and grids, of which there is always one
            one * _times(n, stages) + grid * _times(max(1, min(n, EVALUATIONS)), stages)
            for n in range(_most(run) + 1)
        ]
        spare = OVERHEAD * length - costs.rest - asked * length
        parts = max(n for n, seconds in enumerate(evaluations) if seconds <= spare or n <= least)
        training = max(0.0, length - costs.rest - evaluations[parts]) / (1 + asked)
        found = Division(training, evaluations[parts] + asked * training, parts, images)
        if parts >= ENOUGH:
            break
    return found


def _times(parts: int, stages: int) -> int:
    """Evaluations of a run in so many parts: at their ends, and those of the stages within."""
    return parts + stages - 1 if parts > 1 else parts


def _most(run: config.Run) -> int:
    """Checks of a run that has the time."""
    return CHECKS * len(run.stages) if run.train.stop == "auto" else EVALUATIONS


def measure(
    run: config.Run,
    stages: list[PreparedStage],
    world: World,
    began: float,
    make_check: MakeCheck | None,
    report: bool,
) -> Costs:
    """By the first process, on few images; the same in all."""
    few = 64 if world.device.type == "cuda" else 8  # a GPU takes as long for one
    train, limits = run.train, [run.train.check_images]
    if train.check_images == config.Train().check_images and train.check_every == 0:
        limits += SMALLER
    sample, checks = 0.0, dict.fromkeys(limits, 0.0)
    for stage in stages if world.first else []:
        model, data = build(stage.spec).to(world.device), stage.training_set
        times: dict[int, float] = {}
        # the first allocates; of the others the least, since other processes only ever add
        for steps in (1, *(2, 4) * TRIES):
            since = time.perf_counter()
            model.sample(few, labels=[0] if model.label_names else None, steps=steps)
            taken = (time.perf_counter() - since) / few
            times[steps] = min(taken, times.get(steps, taken))
        slope = max(0.0, times[4] - times[2]) / 2
        sample = times[2] + (run.sampling.steps - 2) * slope
        if make_check is None or train.check_every < 0 or stage.guarantee:
            continue
        check = make_check(data, model, train.seed, few, 0)
        since = time.perf_counter()
        if check is not None:
            check.run(model, data.spec.at(stage.levels[0].rate))
        one = time.perf_counter() - since
        sides = (data.train_ids, data.held_out_ids)
        seen = {n: sum(min(n, len(ids)) for ids in sides) for n in (few, *limits)}
        for limit in limits:
            seconds = one * seen[limit] / seen[few] + train.check_samples * sample
            checks[limit] = max(checks[limit], seconds)
    written = report * (REPORT + DRAWN * sample)
    rest = time.monotonic() - began + written
    found = world.from_first([rest, written, run.sampling.count * sample, *checks.values()])
    return Costs(found[0], found[2], dict(zip(limits, found[3:], strict=True)), report=found[1])


def within(run: config.Run, minutes: float) -> config.Run:
    """All stages in `minutes`, each by its share of the recipe.

    Shares of stages in images are those of their visible patches, which is about what they cost.
    Raises UserError where that cannot be.
    """
    if not 0 < minutes < float("inf"):
        raise UserError(f"--minutes {minutes:g}: give a positive number of minutes")
    timed = [stage.minutes > 0 for stage in run.stages.values()]
    if any(timed) and not all(timed):
        raise UserError("--minutes: some stages are given in images, some in minutes; use one")

    def weight(stage: config.Stage) -> float:
        end = stage.rate if stage.rate_schedule == "constant" else stage.rate_end
        return stage.minutes or stage.images * (1 - (stage.rate + end) / 2)

    total = sum(weight(stage) for stage in run.stages.values())
    if not total > 0:
        raise UserError("--minutes: the recipe says nothing of how long its stages are")
    stages = {
        name: dataclasses.replace(stage, images=0, minutes=minutes * weight(stage) / total)
        for name, stage in run.stages.items()
    }
    return dataclasses.replace(run, stages=stages)
