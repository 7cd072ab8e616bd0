"""A study: arms of one recipe, run at the same budgets with the same seeds and trials.

    images of a stage = share of the stage · budget / training FLOPs per image

Each arm is run at every ladder point, a share of the budget, as a whole run: its stages, warm-up
and cool-down are scaled to the point, for the middle of a longer run, whose learning rate has not
come down, is not a finished run of that compute. The score is named in the YAML, before the runs.
Tuning uses seed 0 and half A of the held-out images; what is reported uses other seeds and half B.
"""

import dataclasses
import itertools
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from underpaint import config
from underpaint.config import setting
from underpaint.errors import UserError
from underpaint.training import cost

DIMENSIONS = ("learning_rate", "batch", "patch")  # of tuning


@dataclass(kw_only=True)
class Arm:
    """One way to train: what differs from the recipe, and where its budget goes."""

    settings: dict[str, Any] = setting({}, "overrides of the recipe; a stage set to null is left")
    shares: dict[str, float] = setting(
        {}, "share of the budget of each stage, in all 1; empty: all stages alike"
    )
    start: str = setting("", "a run to begin with; its compute is charged to this arm")
    budget: float = setting(0.0, "FLOPs; must be the study's, which 0 stands for")
    points: tuple[float, ...] = setting((), "ladder points of this arm; empty: the study's")
    seeds: tuple[int, ...] = setting(
        (), "seeds of this arm, among those of the study; empty: all of them"
    )


@dataclass(kw_only=True)
class Tuning:
    """The same trials for every arm. An empty dimension is as in the recipe.

    A stage's learning rate or batch that an arm's own settings give stays as it is: it makes the
    arm what it is.
    """

    trials: int = setting(0, "trials an arm; 0: no tuning")
    point: float = setting(1.0, "share of the budget that a trial gets")
    learning_rate: tuple[float, ...] = setting((), "peak learning rates, of all stages")
    batch: tuple[int, ...] = setting((), "images per step, of all stages")
    patch: tuple[int, ...] = setting((), "sides of a patch")


@dataclass(kw_only=True)
class Study:
    """What `underpaint compare STUDY.yaml` reads."""

    recipe: str = setting("", "a preset's name, or a YAML recipe beside this file")
    settings: dict[str, Any] = setting({}, "overrides of the recipe for all arms")
    arms: dict[str, Arm] = setting({}, "the arms by name")
    baseline: str = setting("", "the arm that the others are measured against; empty: the first")
    budget: float = setting(0.0, "training FLOPs of a run at ladder point 1")
    points: tuple[float, ...] = setting((0.25, 0.5, 1.0), "ladder points, shares of the budget")
    seeds: tuple[int, ...] = setting((1, 2, 3), "seeds of the runs that are reported")
    score: Literal["held-out loss", "FD"] = setting(
        "held-out loss", "primary score; lower is better"
    )
    features: str = setting("mobilenetv2", "feature space of FD: mobilenetv2 or inception")
    images: int = setting(512, "images of a half that are scored, at most")
    tuning: Tuning = setting(Tuning(), "trials before the runs")

    def points_of(self, arm: str) -> tuple[float, ...]:
        """Ladder points of an arm."""
        return self.arms[arm].points or self.points

    def seeds_of(self, arm: str) -> tuple[int, ...]:
        """Seeds of an arm's runs that are reported."""
        return self.arms[arm].seeds or self.seeds


def load(path: str | Path) -> Study:
    """Read and check a study. Raises UserError with one sentence where it cannot work."""
    path = Path(path).expanduser()
    values = config.read_yaml(path, "a study")
    asked = str(values.get("budget", "")) if isinstance(values, dict) else ""
    if re.fullmatch(r"[0-9.]+ *(s|sec|m|min|h|hours?|d|days?)[a-z]*", asked):
        raise UserError(
            f"{path.name}: budget {asked}: a study is measured in training FLOPs, so that machines "
            "agree and a busy one changes nothing; write it as 1e+12 (underpaint train --dry-run "
            "says what a run takes)"
        )
    study = config.from_dict(Study, values, f"{path.name}: ")
    if not study.recipe:
        raise UserError(f"{path.name}: names no recipe; add 'recipe: quickstart' or a YAML file")
    if study.recipe.endswith((".yaml", ".yml")):
        study.recipe = str(path.parent / study.recipe)
    for arm in study.arms.values():
        if arm.start and not arm.start.startswith("pretrained:"):
            arm.start = str(path.parent / arm.start)
    study.baseline = study.baseline or next(iter(study.arms), "")
    _check(study, path.name)
    return study


def recipe(study: Study, name: str, trial: dict[str, Any] | None = None) -> config.Run:
    """The recipe of one arm, with the settings of a tuning trial; lengths are not yet scaled."""
    if study.recipe.endswith((".yaml", ".yml")):
        run = config.load(study.recipe)
    else:
        run = config.preset(study.recipe)
    arm = study.arms[name]
    run = config.from_dict(config.Run, study.settings, "settings: ", run)
    run = config.from_dict(config.Run, arm.settings, f"arms.{name}.settings: ", run)
    if run.train.stop == "auto":
        raise UserError(
            f"arms.{name}: with train.stop auto its runs would end below their budget, and arms "
            "that differ in budget cannot be compared; give train.stop none"
        )
    chosen = dict(trial or {})
    if "patch" in chosen:
        run.space = dataclasses.replace(run.space, patch=chosen.pop("patch"))
    asked = arm.settings.get("stages") or {}
    for name_of, stage in run.stages.items():
        fixed = asked.get(name_of) or {}  # what makes the arm is not tuned away
        changes = {key: value for key, value in chosen.items() if key not in fixed}
        run.stages[name_of] = dataclasses.replace(stage, **changes)
    for stage_name in arm.shares:
        if stage_name not in run.stages:
            raise UserError(
                f"arms.{name}.shares: the recipe has no stage '{stage_name}'; it has "
                f"{', '.join(run.stages)}"
            )
    return run


def scaled(
    run: config.Run,
    shares: dict[str, float],
    budget: float,
    point: float,
    size: tuple[int, int],
    channels: int,
    classes: int = 0,
) -> config.Run:
    """`run` with the lengths that spend `point` of `budget` FLOPs, and warm-ups to match.

    `size`, `channels`, `classes`: of the run's images. Raises UserError if a stage would be shorter
    than one batch.
    """
    shares = shares or {name: 1 / len(run.stages) for name in run.stages}
    run = dataclasses.replace(run)
    run.stages = {
        name: dataclasses.replace(stage, images=stage.batch, minutes=0.0)
        for name, stage in run.stages.items()
        if shares.get(name, 0.0) > 0
    }
    for found in cost.describe(run, size, channels, classes)["stages"]:
        name, an_image = found["name"], found["flops_per_image"]
        stage = run.stages[name]
        batches = int(shares[name] * point * budget / (an_image * stage.batch) + 0.5)
        if batches < 1:
            least = an_image * stage.batch / (shares[name] * point)
            raise UserError(
                f"a budget of {budget:.3g} FLOPs is too small for one checkpoint: at ladder point "
                f"{point:g} stage {name} would not see one batch of {stage.batch} images; give at "
                f"least {least:.2g}"
            )
        images = batches * stage.batch
        warmup = min(round(stage.warmup * point), images // 5)
        run.stages[name] = dataclasses.replace(stage, images=images, warmup=warmup)
    return run


def trials(tuning: Tuning) -> list[dict[str, Any]]:
    """The settings of each trial: the same for every arm, chosen evenly by chance."""
    names = [name for name in DIMENSIONS if getattr(tuning, name)]
    every = [
        dict(zip(names, values, strict=True))
        for values in itertools.product(*(getattr(tuning, name) for name in names))
    ]
    order = np.random.default_rng(0).permutation(len(every))
    return [every[i] for i in sorted(order[: tuning.trials])]


def at_the_edge(tuning: Tuning, chosen: dict[str, Any]) -> list[str]:
    """The dimensions whose best value is the smallest or largest that was tried."""
    return [
        name
        for name, value in chosen.items()
        if len(getattr(tuning, name)) > 1
        and value in (min(getattr(tuning, name)), max(getattr(tuning, name)))
    ]


def _check(study: Study, place: str) -> None:
    if len(study.arms) < 2:
        raise UserError(f"{place}: a comparison needs two arms at least, given {len(study.arms)}")
    if study.baseline not in study.arms:
        raise UserError(
            f"{place}: baseline '{study.baseline}' is not an arm; known: {', '.join(study.arms)}"
        )
    if not 0 < study.budget < math.inf:
        raise UserError(f"{place}: budget {study.budget:g}: give the training FLOPs of a run")
    ladders = {"": study.points} | {f"arms.{name}.": study.points_of(name) for name in study.arms}
    for where, points in ladders.items():
        if not points or list(points) != sorted(set(points)) or points[0] <= 0:
            raise UserError(f"{place}: {where}points: give ascending shares of the budget above 0")
    if 1.0 not in study.points_of(study.baseline):
        raise UserError(
            f"{place}: points: leave 1 among those of arm {study.baseline}, where the target lies"
        )
    if not study.seeds or len(set(study.seeds)) < len(study.seeds) or min(study.seeds) < 0:
        raise UserError(f"{place}: seeds: give different whole numbers from 0 up")
    for name, arm in study.arms.items():
        strange = set(arm.seeds) - set(study.seeds)
        if strange or len(set(arm.seeds)) < len(arm.seeds):
            raise UserError(
                f"{place}: arms.{name}.seeds: give some of the study's "
                f"{', '.join(map(str, study.seeds))}, each once"
            )
        if arm.budget and arm.budget != study.budget:
            raise UserError(
                f"{place}: arm {name} has a budget of {arm.budget:.4g} FLOPs and the study one of "
                f"{study.budget:.4g}; arms that differ in budget cannot be compared, so leave its "
                "budget out"
            )
        total = sum(arm.shares.values())
        if arm.shares and (abs(total - 1) > 1e-6 or min(arm.shares.values()) < 0):
            raise UserError(
                f"{place}: the shares of arm {name} are {total:g} in all, so it would differ in "
                "budget from the others; make them 1"
            )
    tuning = study.tuning
    if tuning.trials < 0 or tuning.point <= 0:
        raise UserError(f"{place}: tuning: give trials from 0 up and a point above 0")
    there = math.prod(len(getattr(tuning, name)) or 1 for name in DIMENSIONS)
    if tuning.trials > there:
        raise UserError(
            f"{place}: tuning.trials {tuning.trials}: its dimensions have {there} combinations; "
            "give fewer trials or more values"
        )
    for name in DIMENSIONS:
        values = getattr(tuning, name)
        if len(set(values)) < len(values):
            raise UserError(f"{place}: tuning.{name} {list(values)} holds a value twice")
    if tuning.trials and 0 in study.seeds:
        raise UserError(f"{place}: seed 0 is used for tuning; report others")
