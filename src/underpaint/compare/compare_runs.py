"""Compares runs that exist by the errors on held-out images that they measured as they went.

First what they are: the settings in which they differ, what each has cost, and its scores.
Runs of one recipe that differ in the seed alone are one arm, unless they began with the weights of
different runs; the first run's arm is the baseline. What a start has cost is not counted.
The points are those of one run each, before its learning rate has come down, so a ratio found here
is a hint, not the verdict of a study: a run planned for that compute would have scored better.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from underpaint import config
from underpaint._version import __version__
from underpaint.compare.verdict import Point, verdict
from underpaint.errors import UserError
from underpaint.evaluation.records import of_kind, read
from underpaint.evaluation.sample_metrics import comparable
from underpaint.evaluation.sample_metrics import recorded as recorded_scores
from underpaint.training.provenance import recorded

SCORE = "held-out loss"
NOTE = (
    "the points are from within runs, whose learning rate had not come down: a finished run of "
    "that compute would score better; a study (underpaint compare STUDY.yaml) measures such runs"
)


def compare(folders: list[str | Path]) -> dict[str, Any]:
    """Results as `runner.conduct` gives them, from the run folders; the first one is the baseline.

    `overview` is one line a run, `differs` the settings in which they do, by run. Raises UserError
    for folders that are no runs, or runs of different data.
    """
    paths = [Path(folder).expanduser() for folder in folders]
    if len({path.resolve() for path in paths}) < len(paths):
        raise UserError("the same run is given twice; give different ones")
    recipes = [_read(path) for path in paths]
    for path, (_, images, _) in zip(paths, recipes, strict=True):
        if images != recipes[0][1]:
            raise UserError(
                f"{path} was trained on other images than {paths[0]}; scores of different data "
                "cannot be compared, so give runs of the same data"
            )
    differs = _differs([recipe for recipe, *_ in recipes])
    overview = [_summary(path, start) for path, (_, _, start) in zip(paths, recipes, strict=True)]
    arms: dict[str, dict[int, list[Point]]] = {}
    known: dict[tuple[str, str], str] = {}  # recipe without its seed, start → arm
    notes, runs = list[str](), []
    for path, (recipe, _, start) in zip(paths, recipes, strict=True):
        seed, points = recipe.train.seed, _points(path)
        if not points:
            notes.append(
                f"{path} has no checks on held-out images, so it is in no verdict; longer runs "
                "have them (--minutes), or --train.check_every N"
            )
            continue
        recipe.train = dataclasses.replace(recipe.train, seed=0)
        name = path.resolve().name
        name = known.setdefault(
            (config.to_yaml(recipe), start), name if name not in arms else str(path)
        )
        if seed in arms.setdefault(name, {}):
            raise UserError(f"{path}: {name} has seed {seed} already; give runs of other seeds")
        if start and not arms[name]:
            notes.append(f"{name} began with the weights of {start}, whose compute is not counted")
        arms[name][seed] = points
        for point in points:
            run = {"arm": name, "seed": seed, "run": str(path)}
            runs.append({**run, "flops": point.compute, "score": point.score})
    base = next(iter(arms), "")
    if len(arms) < 2:
        notes.append("no verdict: it needs two runs with checks that differ in more than seeds")
    for name, scores in arms.items():  # one run an arm is a pair, whatever its seeds are
        if len(scores) == len(arms[base]) == 1:
            arms[name] = dict(zip(arms[base], scores.values(), strict=True))
    return {
        "underpaint": __version__,
        "score": SCORE,
        "baseline": base,
        "overview": overview,
        "differs": differs,
        "runs": runs,
        "verdicts": {
            name: dataclasses.asdict(verdict(name, scores, arms[base], score=SCORE, against=base))
            for name, scores in arms.items()
            if name != base
        },
        "notes": [NOTE, *notes] if len(arms) > 1 else notes,
    }


def _read(path: Path) -> tuple[config.Run, str, str]:
    """The recipe of a run, what its last stage's images are, and the run it began with, if any."""
    if not (path / "config.yaml").is_file():
        raise UserError(f"{path}: holds no run (no config.yaml); give the folders of runs")
    recipe = config.load(path / "config.yaml")
    environment = recorded(path)
    key = environment["data"].get(list(recipe.stages)[-1])
    data = recipe.data_of(recipe.last)
    images = f"{key} {data.limit} {data.held_out}"
    return recipe, images, environment.get("start") or ""


def _differs(recipes: list[config.Run]) -> dict[str, list[Any]]:
    """Settings by their dotted names whose values differ, a value for each recipe.

    A stage that not all recipes have is one of them: its length, or None.
    """
    stages = dict.fromkeys(name for recipe in recipes for name in recipe.stages)
    partial = [name for name in stages if not all(name in recipe.stages for recipe in recipes)]
    each = []
    for recipe in recipes:
        common = {k: stage for k, stage in recipe.stages.items() if k not in partial}
        one = config.flat(dataclasses.replace(recipe, stages=common))
        for name in partial:
            stage = recipe.stages.get(name)
            one[f"stages.{name}"] = stage and f"{stage.images:,} images"
        each.append(one)
    names = dict.fromkeys(name for one in each for name in one)
    values = {name: [one.get(name) for one in each] for name in names}
    return {name: found for name, found in values.items() if found.count(found[0]) < len(found)}


def _summary(path: Path, start: str) -> dict[str, Any]:
    """What a run has cost and its last scores; None where they were not measured."""
    records = read(path / "metrics.jsonl")
    ends = [r for r in records if r["kind"] in ("step", "stage")]
    checks = [r for r in of_kind(records, "check") if r["mask"] == "whole"]
    scored = comparable([*records, *recorded_scores(path)])
    last = ends[-1] if ends else {}
    return {
        "run": str(path),
        "start": start or None,
        **{key: last.get(key) for key in ("images", "flops", "seconds")},
        "error": checks[-1].get("held_out_mean") if checks else None,
        "frechet": scored[-1].get("frechet_held_out") if scored else None,
        "protocol": scored[-1]["protocol"] if scored else None,
    }


def _points(path: Path) -> list[Point]:
    """Compute and held-out error at each check of whole images; empty if there are none."""
    records = read(path / "metrics.jsonl")
    spent = sorted({(r["images"], r["flops"]) for r in records if r["kind"] in ("step", "stage")})
    checks = [r for r in of_kind(records, "check") if r["mask"] == "whole"]
    checks = [r for r in checks if r.get("held_out_mean") is not None]
    if not checks or not spent:
        return []
    images, flops = zip(*spent, strict=True)
    return [Point(float(np.interp(r["images"], images, flops)), r["held_out_mean"]) for r in checks]
