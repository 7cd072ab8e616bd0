"""Minutes: everything until the report is in them, also where the machine gets slower.

No clock is read: speeds, costs and times are given.
"""

import dataclasses
import math
import shutil
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.training.runs import assert_same_run, metrics
from tests.training.test_early import written
from underpaint import config
from underpaint.core.masks import MaskSpec
from underpaint.evaluation.validation import OverfitCheck
from underpaint.model import Model
from underpaint.training import early, minutes, step_rule, throughput, train
from underpaint.training.checkpointing import Progress
from underpaint.training.distributed import World
from underpaint.training.minutes import EARLY, OVERHEAD, Costs, Division, divide
from underpaint.training.stages import prepare_stages

SPEEDS = {"masked": 400.0, "whole": 100.0}  # images a second
COSTS = Costs(rest=5.0, grid=1.0, checks={128: 4.0, 64: 2.0, 32: 1.0})


@pytest.fixture
def timed(recipe: config.Run) -> config.Run:
    """Two stages that share the minutes, with nothing said of checks and grids."""
    return within(recipe, 1.0)


def within(run: config.Run, length: float) -> config.Run:
    stages = {
        name: dataclasses.replace(stage, images=0, minutes=share * length)
        for (name, stage), share in zip(run.stages.items(), (0.6, 0.4), strict=True)
    }
    loop = dataclasses.replace(run.train, check_every=0, sample_every=0, log_every=0)
    return dataclasses.replace(run, stages=stages, train=loop)


def rate(run: config.Run) -> float:
    length = sum(stage.minutes for stage in run.stages.values())
    return sum(stage.minutes / length * SPEEDS[name] for name, stage in run.stages.items())


def divided(run: config.Run, length: float, costs: Costs = COSTS) -> Division:
    return divide(within(run, length), 60 * length, rate(within(run, length)), costs)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Speeds and costs of a machine that is 100 times slower; what was measured."""
    seen = []

    def speed(stage: Any, *_: Any) -> float:
        seen.append(stage.name)
        return SPEEDS[stage.name] / 100

    def measure(run: config.Run, *_: Any) -> Costs:
        chosen = run.train.check_every == 0
        return COSTS if chosen else COSTS._replace(checks={run.train.check_images: 1.0})

    monkeypatch.setattr(minutes, "speed", speed)
    monkeypatch.setattr(minutes, "measure", measure)
    monkeypatch.setattr(minutes, "EARLY", math.inf)  # in truth this machine is so much faster
    return seen


def test_fewer_minutes_have_fewer_checks_in_a_tenth_of_them(timed: config.Run) -> None:
    found = [divided(timed, m) for m in (1, 2, 4, 8, 60)]
    for length, one in zip((1, 2, 4, 8, 60), found, strict=True):
        total = COSTS.rest + one.evaluations + one.training
        assert total == pytest.approx(60 * length)
        assert COSTS.rest + one.evaluations <= OVERHEAD * 60 * length
    assert [(one.parts, one.check_images) for one in found] == [
        *[(0, 32), (2, 32), (5, 64), (7, 128), (8, 128)]
    ]


def test_a_moment_in_which_the_machine_was_busy_does_not_change_the_speed(
    recipe: config.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = iter([0.1, 0.1, 30.0, 0.1, 0.1])
    monkeypatch.setattr(throughput, "step_seconds", lambda *_: next(taken))
    (stage, *_) = prepare_stages(recipe, lambda _: None)
    world = World(0, 1, torch.device("cpu"))
    assert throughput.speed(stage, recipe, world, 1.0) == pytest.approx(stage.batch / 0.1)


def test_too_few_minutes_say_what_they_take(
    timed: config.Run, tmp_path: Path, measured: list[str]
) -> None:
    out = train(within(timed, 0.1), tmp_path / "run", quiet=True)
    assert (
        "0.1 min is short: start, one sample grid and report alone take 6 s"
        in (out / "log.txt").read_text()
    )
    kept = config.load(out / "config.yaml")
    assert [stage.images for stage in kept.stages.values()] == [8, 8]  # a step each
    assert (kept.train.check_every, kept.train.sample_every) == (-1, 16)
    assert Counter(r["kind"] for r in metrics(out))["sample"] == 1  # at the end of the run alone


def test_the_lengths_fill_the_minutes(
    timed: config.Run, tmp_path: Path, measured: list[str]
) -> None:
    out = train(within(timed, 4), tmp_path / "run", make_check=OverfitCheck.of, quiet=True)
    kept = config.load(out / "config.yaml")
    images = {name: stage.images for name, stage in kept.stages.items()}
    training = divided(timed, 4).training
    for name, share in (("masked", 0.6), ("whole", 0.4)):
        assert abs(images[name] - share * training * SPEEDS[name] / 100) <= 4  # half a step
    records = metrics(out)
    grids = [r["images"] for r in records if r["kind"] == "sample"]
    checks = sorted({r["images"] for r in records if r["kind"] == "check"})
    assert checks == grids
    assert len(grids) == 6  # five parts, and the end of the first stage
    assert grids[-1] == sum(images.values())
    assert kept.train.check_images == 64
    assert "4 min: 3:37 of training, 18 s of checks and sample grids, 5 s for start and report" in (
        (out / "log.txt").read_text()
    )


@pytest.fixture
def slower(timed: config.Run, measured: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Trains four minutes; after so many images steps take so many times as long as measured."""
    stage = dataclasses.replace(timed.stages["whole"], minutes=4.0, cooldown=0.25)
    timed.stages = {"whole": dataclasses.replace(stage, schedule="cooldown", warmup=8)}
    timed.train.log_every, timed.train.checkpoint_every = 4, 40
    timed.train.keep = 100

    def begun(out: Path, after: int, times: float, make_check: Any = None) -> tuple[Path, float]:
        now = [0.0]
        moved = step_rule.step

        def step(stage: Any, run: Any, state: Any, progress: Any) -> None:
            moved(stage, run, state, progress)
            late = progress.stage_images > after
            now[0] += stage.batch / (SPEEDS["whole"] / 100) * (times if late else 1.0)

        with monkeypatch.context() as patched:
            patched.setattr(minutes, "time", SimpleNamespace(monotonic=lambda: now[0]))
            patched.setattr(step_rule, "step", step)
            patched.setattr(minutes, "EARLY", EARLY)
            # a start of 4 of the 5 s
            train(timed, out, began=-4.0, quiet=True, make_check=make_check)
        return out, now[0] + 4.0

    return begun


def test_a_machine_that_gets_slower_cools_down_early_and_ends_in_time(
    slower: Any, tmp_path: Path
) -> None:
    kept, seconds = slower(tmp_path / "steady", 0, 1.0)
    planned = config.load(kept / "config.yaml").stages["whole"].images
    assert [r for r in metrics(kept) if r["kind"] == "stop"] == []
    assert metrics(kept)[-1]["images"] == planned
    assert seconds <= 240
    out, seconds = slower(tmp_path / "slower", planned // 3, 2.0)
    assert config.load(out / "config.yaml").stages["whole"].images == planned
    (decided,) = [r for r in metrics(out) if r["kind"] == "stop"]
    ends = metrics(out)[-1]["images"]
    assert decided["images"] + decided["cooldown"] == ends < planned
    assert decided["cooldown"] == pytest.approx(0.25 * ends, abs=8)  # the share that was planned
    assert seconds == pytest.approx(240, rel=0.04)
    assert "to end in time" in (out / "log.txt").read_text()
    rates = {r["images"]: r["lr"] for r in metrics(out) if r["kind"] == "step"}
    assert rates[decided["images"]] == max(rates.values())
    assert rates[ends] == pytest.approx(8 / decided["cooldown"] * max(rates.values()))


def test_a_machine_that_gets_slower_in_the_cool_down_ends_in_time(
    slower: Any, tmp_path: Path
) -> None:
    out, seconds = slower(tmp_path / "slow", 160, 2.0)
    planned = config.load(out / "config.yaml").stages["whole"].images
    decided = [r for r in metrics(out) if r["kind"] == "stop"]
    assert all(r["images"] > 0.75 * planned for r in decided)
    ends = metrics(out)[-1]["images"]
    assert decided[-1]["total"] == ends < 0.95 * planned
    assert seconds == pytest.approx(240, rel=0.06)
    assert "the cool-down ends after" in (out / "log.txt").read_text()
    rates = [r["lr"] for r in metrics(out) if r["kind"] == "step"]
    falls = [before - after for before, after in pairwise(rates[-8:])]
    assert min(falls) >= 0
    assert rates[-1] == pytest.approx(falls[-1])  # to 0, a step later


def test_a_machine_that_gets_faster_uses_the_time(slower: Any, tmp_path: Path) -> None:
    out, seconds = slower(tmp_path / "faster", 40, 0.6)
    planned = config.load(out / "config.yaml").stages["whole"].images
    decided = [r for r in metrics(out) if r["kind"] == "stop"]
    assert 0.7 * planned < decided[0]["images"] < 0.75 * planned  # just before it would cool down
    ends = metrics(out)[-1]["images"]
    last = decided[-1]
    assert last["begins"] + last["cooldown"] == last["total"] == ends > 1.3 * planned
    assert last["cooldown"] == pytest.approx(0.25 * ends, abs=8)  # the share that was planned
    assert seconds == pytest.approx(240, rel=0.04)
    assert "to use the time" in (out / "log.txt").read_text()
    rates = {r["images"]: r["lr"] for r in metrics(out) if r["kind"] == "step"}
    assert rates[last["begins"]] == max(rates.values())
    assert rates[ends] == pytest.approx(8 / last["cooldown"] * max(rates.values()))
    grids = [r["images"] for r in metrics(out) if r["kind"] == "sample"]
    assert grids[-1] == ends


def test_the_time_is_used_where_each_check_is_the_best(
    slower: Any, timed: config.Run, tmp_path: Path
) -> None:
    timed.train.stop, timed.train.check_every, timed.train.keep = "auto", 8, 1
    out, _ = slower(tmp_path / "run", 40, 0.6, written(tmp_path / "run", 10**6))
    decided = [r for r in metrics(out) if r["kind"] == "stop"]
    assert decided[0]["gain"]
    assert decided[0]["total"] > 1.3 * config.load(out / "config.yaml").stages["whole"].images


@pytest.mark.parametrize(("after", "times"), [(60, 2.0), (60, 0.6), (160, 2.0)])
def test_what_was_decided_is_decided_when_the_run_goes_on(
    after: int, times: float, slower: Any, tmp_path: Path
) -> None:
    straight, _ = slower(tmp_path / "straight", after, times)
    decided = [r for r in metrics(straight) if r["kind"] == "stop"]
    late = sorted(folder.name for folder in (straight / "checkpoints").glob("0*"))[-2]
    for again in {f"{decided[-1]['images']:012d}", late}:  # the second: in the cool-down
        out = Path(shutil.copytree(straight, tmp_path / again))
        (out / "checkpoints" / "LATEST").write_text(again + "\n")
        train(None, out, resume=True, quiet=True)
        assert_same_run(straight, out)


class Timed:
    """A stage of 800 images in batches of 8, which has to end after so many s; its decisions."""

    def __init__(
        self,
        recipe: config.Run,
        monkeypatch: pytest.MonkeyPatch,
        cooldown: float = 0.25,
        end: float = 800.0,
    ) -> None:
        stage, *_ = prepare_stages(recipe, lambda _: None)
        settings = dataclasses.replace(stage.settings, schedule="cooldown", cooldown=cooldown)
        self.stage = dataclasses.replace(stage, settings=settings, images=800)
        self.deadline, self.now, self.seen = minutes.Deadline(end, 0.02 * end), 0.0, 0
        self.decided: list[tuple[int, int]] = []
        monkeypatch.setattr(minutes, "time", SimpleNamespace(monotonic=lambda: self.now))

    def train(self, until: int, seconds: float) -> None:
        """Steps up to so many images, of so many seconds per image."""
        world = World(0, 1, torch.device("cpu"))
        while self.seen < min(until, self.stage.images):
            self.seen, self.now = self.seen + 8, self.now + 8 * seconds
            progress = Progress(stage_images=self.seen)
            if (found := self.deadline.cooldown(self.stage, progress, world))[1]:
                self.decided.append(found)
                self.stage = early.with_cooldown(self.stage, *found)


def test_a_stage_that_is_all_cool_down_ends_in_time(
    recipe: config.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Timed(recipe, monkeypatch, cooldown=1.0)
    run.train(200, 1.0)
    assert run.decided == []
    run.train(800, 2.0)
    assert run.now == pytest.approx(800, rel=0.03)
    assert all(begins > 0 for begins, _ in run.decided)  # 0 would be now


def test_a_cool_down_gets_steeper_a_few_times_at_most(
    recipe: config.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time has a checkpoint."""
    run = Timed(recipe, monkeypatch, end=8000.0)
    run.train(5000, 1.0)
    run.train(8000, 5.0)
    faster, slower, *steeper = run.decided
    assert sum(faster) == 8000 > slower[0] > 5000
    assert 3 < len(steeper) <= 64 * (run.seen - slower[0]) / run.seen + 1


def test_steps_that_were_lost_make_none_slower(
    recipe: config.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Timed(recipe, monkeypatch)
    run.train(576, 0.9)
    run.seen = 528  # back to a checkpoint, between the marks
    run.train(800, 0.9)
    assert run.decided == []


def test_a_resumed_run_measures_nothing(
    timed: config.Run, tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = train(within(timed, 1), tmp_path / "run", quiet=True)
    assert measured == ["masked", "whole"]
    before = (out / "config.yaml").read_text()
    monkeypatch.setattr(minutes, "measure", None)
    train(None, out, resume=True, quiet=True)
    assert measured == ["masked", "whole"]
    assert (out / "config.yaml").read_text() == before


def test_what_a_recipe_says_of_checks_stays_and_is_subtracted(timed: config.Run) -> None:
    run = within(timed, 2)
    run.train.check_every, run.train.sample_every = 1000, -1
    found = divide(run, 120.0, rate(run), Costs(5.0, 1.0, {128: 4.0}))
    checks = found.training * rate(run) / 1000
    assert found.evaluations == pytest.approx(4.0 * checks)
    assert found.training + found.evaluations + 5.0 == pytest.approx(120.0)
    assert found.evaluations > OVERHEAD * 120.0  # as it says


def test_a_recipe_s_cadence_is_kept(timed: config.Run, tmp_path: Path, measured: list[str]) -> None:
    run = within(timed, 0.5)
    run.train.check_every, run.train.sample_every, run.train.check_images = 40, 48, 7
    out = train(run, tmp_path / "run", make_check=OverfitCheck.of, quiet=True)
    kept = config.load(out / "config.yaml").train
    assert (kept.check_every, kept.sample_every, kept.check_images) == (40, 48, 7)


def test_stopping_early_keeps_a_check(timed: config.Run) -> None:
    timed.train.stop = "auto"
    assert divided(timed, 1).parts == 1
    assert divided(timed, 600).parts == 32  # 16 a stage, as without minutes


def test_checks_are_timed_on_few_images(timed: config.Run, tmp_path: Path) -> None:
    looked = []

    class Counted(OverfitCheck):
        def run(self, model: Model, spec: MaskSpec) -> list[dict[str, Any]]:
            looked.append([len(examples) for examples, _ in self.sides])
            return super().run(model, spec)

    out = train(within(timed, 0.02), tmp_path / "run", make_check=Counted.of, quiet=True)
    assert looked[:2] == [[8, 3], [8, 3]]  # of 57 and 3, once a stage
    assert config.load(out / "config.yaml").stages["whole"].minutes == 0
