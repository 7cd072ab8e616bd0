"""Runs a study: every arm at every ladder point with every seed, then the verdicts.

```
STUDY/.underpaint                the mark of a folder that a study began (a record is one, too)
STUDY/tuning/ARM/learning_rate-0.002-batch-16  …   the trials, ordinary run folders
STUDY/runs/ARM/0.25/seed-1  …    the runs that are reported
STUDY/speeds.json                seconds an image of each arm's stages, measured alone
STUDY/results.json               a line for each run (record.py): all that need be kept
```

Each run has one thread, and as many run beside each other as there are cores. What results.json
holds or is finished in its folder is not run again, what was stopped goes on from its checkpoint:
the same command continues a study.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from underpaint import config, data
from underpaint._version import __version__
from underpaint.compare import record, timing
from underpaint.compare import study as studies
from underpaint.compare.pool import gather
from underpaint.compare.split_scoring import Half, final_data, half, measure
from underpaint.compare.study import Study
from underpaint.compare.verdict import Curve, Point, verdict
from underpaint.errors import UserError
from underpaint.evaluation.validation import OverfitCheck
from underpaint.io import check_new, is_marked, mark, numbered, replace_text, writing
from underpaint.training import train

__all__ = ["RESULTS", "Task", "conduct", "tasks"]

Say = Callable[[str], None]

RESULTS = ("results.json", "comparison.html", "speeds.json")


@dataclass(frozen=True)
class Task:
    """One run of a study."""

    arm: str
    point: float
    seed: int
    folder: Path
    run: config.Run
    start: str | None
    half: Half
    score: str
    images: int
    extractor: str


def conduct(
    study: Study, out: Path, *, workers: int = 0, overwrite: bool = False, say: Say = print
) -> dict[str, Any]:
    """Do what is left of `study` in the folder `out`, and return its results.

    `workers`: runs at once; 0: as many as cores. `overwrite`: write results also where files of
    these names are in a folder that no study began. `say` gets a line for each finished run. Raises
    UserError where the study cannot work, Interrupted after Ctrl-C.
    """
    begun = is_marked(out, "study") or record.is_record(out / "results.json")
    if not begun:
        check_new([out / name for name in RESULTS], overwrite)
    workers = workers or len(os.sched_getaffinity(0))
    before = record.read(out / "results.json")
    known = {out / name: run for name, run in record.runs_of(before).items()}
    _same_images(study)
    for arm in study.arms.values():
        _charged(arm.start)  # refuses a start of unknown cost, before anything is trained
    best: dict[str, dict[str, Any]] = {name: {} for name in study.arms}
    todo = tasks(study, out, best)  # refuses what cannot work, before anything is trained
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        if not begun:
            mark(out, "study")
    tuned: dict[str, list[dict[str, Any]]] = {}
    trial_runs: list[dict[str, Any]] = []
    if study.tuning.trials:
        trials = studies.trials(study.tuning)
        by_arm = {name: _trials(study, out, name, trials) for name in study.arms}
        every = [task for of_arm in by_arm.values() for task in of_arm]
        found = _all(every, known, workers, say)
        trial_runs = [_line(task, out, found[task.folder]) for task in every]
        for name, of_arm in by_arm.items():
            tuned[name] = [
                {**trial, "score": found[task.folder]["score"]}
                for trial, task in zip(trials, of_arm, strict=True)
            ]
            best[name] = min(zip(tuned[name], trials, strict=True), key=lambda p: p[0]["score"])[1]
        todo = tasks(study, out, best)
    seconds, timed = _speeds(study, best, out, say, before)
    done = _all(todo, known, workers, say)
    runs = [
        _line(task, out, done[task.folder])
        | {
            "seconds_alone": sum(
                stage.images * seconds[task.arm][name] for name, stage in task.run.stages.items()
            )
        }
        for task in todo
    ]
    asked = {run["run"] for run in (*runs, *trial_runs)}
    earlier = [run for run in record.runs_of(before).values() if run["run"] not in asked]
    results = {
        "underpaint": __version__,
        "study": config.to_dict(study),
        "score": study.score,
        "baseline": study.baseline,
        "tuning": tuned,
        "chosen": best,
        "notes": _notes(study, best),
        "seconds_an_image": seconds,
        "start_flops": {name: _charged(arm.start) for name, arm in study.arms.items()},
        **_verdicts(study, runs),
        **record.of_arms({"runs": runs, "trials": trial_runs, "earlier": earlier}, timed),
    }
    text = record.text(results)
    with writing(out):
        replace_text(out / "results.json", text)
    return dict(json.loads(text))


def _line(task: Task, out: Path, found: dict[str, Any]) -> dict[str, Any]:
    """What results.json holds of a run, its settings still in full."""
    return {
        "arm": task.arm,
        "point": task.point,
        "seed": task.seed,
        "run": str(task.folder.relative_to(out)),
        "settings": config.to_dict(task.run),
        **found,
    }


def _notes(study: Study, best: dict[str, dict[str, Any]]) -> list[str]:
    """What a reader should know of the tuning."""
    notes = []
    for name, chosen in best.items():
        edges = [f"{key} {chosen[key]:g}" for key in studies.at_the_edge(study.tuning, chosen)]
        if edges:
            notes.append(
                f"the best {' and '.join(edges)} of {name} lies at the edge of what was tried: "
                "a wider grid may find better"
            )
    return notes


def tasks(study: Study, out: Path, best: dict[str, dict[str, Any]]) -> list[Task]:
    """All runs that are reported, with the settings that tuning has chosen for each arm."""
    return [
        _task(
            study,
            name,
            best[name],
            point,
            seed,
            out / "runs" / name / f"{point:g}" / f"seed-{seed}",
            "B",
        )
        for name in study.arms
        for point in study.points_of(name)
        for seed in study.seeds_of(name)
    ]


def _trials(study: Study, out: Path, name: str, trials: list[dict[str, Any]]) -> list[Task]:
    return [
        _task(
            study, name, trial, study.tuning.point, 0, out / "tuning" / name / _called(trial), "A"
        )
        for trial in trials
    ]


def _called(trial: dict[str, Any]) -> str:
    """The folder of a trial: by its settings, so that a grid may grow and keep what is done."""
    return "-".join(f"{key}-{value:g}" for key, value in trial.items())


def _task(
    study: Study,
    name: str,
    trial: dict[str, Any],
    point: float,
    seed: int,
    folder: Path,
    which: Half,
) -> Task:
    run, arm = studies.recipe(study, name, trial), study.arms[name]
    run.train = dataclasses.replace(run.train, seed=seed, threads=1)
    dataset = data.prepare(run.data)
    try:
        run = studies.scaled(
            run,
            arm.shares,
            study.budget,
            point,
            dataset.size,
            dataset.channels,
            len(dataset.label_names),
        )
    except UserError as error:
        raise UserError(f"arm {name}: {error}") from None
    return Task(
        name,
        point,
        seed,
        folder,
        run,
        arm.start or None,
        which,
        study.score,
        study.images,
        study.features,
    )


def _same_images(study: Study) -> None:
    """Raise UserError if the arms would be judged on different images."""
    first, key_of_first = "", b""
    for name in study.arms:
        wanted = final_data(studies.recipe(study, name))
        if not wanted.source:
            raise UserError("the study names no images; add settings: {data: {source: FOLDER}}")
        dataset = data.prepare(wanted)
        half(dataset, "A", study.images)  # raises where too few are held out
        key = dataset.key.encode() + dataset.train_ids.tobytes() + dataset.held_out_ids.tobytes()
        if key_of_first and key != key_of_first:
            raise UserError(
                f"arms {first} and {name} end on different images; scores of different data cannot "
                "be compared, so give all arms the same data and size in their last stage"
            )
        first, key_of_first = first or name, key


# --- running -----------------------------------------------------------------------------------


def _all(
    todo: list[Task], known: dict[Path, dict[str, Any]], workers: int, say: Say
) -> dict[Path, dict[str, Any]]:
    """Run and score every task that is not `known`; long ones first, so that no core waits."""
    found: dict[Path, dict[str, Any]] = {}

    def done(task: Task, score: dict[str, Any]) -> None:
        found[task.folder] = score
        say(
            f"{len(found)} of {len(todo)}: {task.arm} at {task.point:g}, seed {task.seed}: "
            f"{task.score} {score['score']:.5g}"
        )

    recorded = {task.folder: _recorded(task, known.get(task.folder)) for task in todo}
    left = []
    for task in sorted(todo, key=lambda task: -task.point):
        if there := recorded[task.folder]:
            done(task, there)
        else:
            left.append(task)
    gather(left, _one, workers, _name, done)
    return found


def _recorded(task: Task, known: dict[str, Any] | None) -> dict[str, Any] | None:
    """What results.json holds of a task, if it was scored as the study says now."""
    if known is None:
        return None
    if not record.same(known["settings"], task.run):
        raise UserError(
            f"{task.folder}: stands in results.json with other settings than the study has now; "
            "give another --out, or remove its line"
        )
    if known["protocol"] != _protocol(task):
        return None
    return {name: known[name] for name in ("protocol", "score", "images", "flops", "seconds")}


def _protocol(task: Task) -> dict[str, Any]:
    """How a task is scored."""
    protocol = {"score": task.score, "half": task.half, "images": task.images}
    return protocol | ({"features": task.extractor} if task.score == "FD" else {})


def _name(task: Task) -> str:
    """Which task failed, and where it says more."""
    return (
        f"arm {task.arm} at point {task.point:g}, seed {task.seed} (log: {task.folder / 'log.txt'})"
    )


def _one(task: Task) -> dict[str, Any]:
    """Train what is left of a task, and score it once."""
    torch.set_num_threads(1)
    kept = task.folder / "study.json"
    protocol = _protocol(task)
    recipe = task.folder / "config.yaml"
    begun = recipe.is_file()
    # loaded, so that a setting that is new since then stands at its default
    if begun and config.to_yaml(config.load(recipe)) != config.to_yaml(task.run):
        raise UserError(
            f"{task.folder}: was begun with other settings than the study has now; give another "
            "--out, or remove it"
        )
    try:
        measured = json.loads(kept.read_text(encoding="utf-8"))
        if measured["protocol"] == protocol:
            return dict(measured)
    except (OSError, ValueError, KeyError):
        pass
    resumable = begun and bool(numbered(task.folder / "checkpoints"))
    train(
        task.run,
        task.folder,
        start=None if resumable else task.start,
        resume=resumable,
        overwrite=not resumable,
        make_check=OverfitCheck.of,
        quiet=True,
    )
    score = measure(task.folder, task.score, task.half, most=task.images, extractor=task.extractor)
    measured = {"protocol": protocol, "score": score, **_spent(task.folder)}
    replace_text(kept, json.dumps(measured, indent=1) + "\n")
    return measured


def _spent(folder: Path) -> dict[str, float]:
    """Images, FLOPs and seconds of training of a finished run."""
    for line in reversed((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()):
        record = json.loads(line)
        if record["kind"] == "stage" and record["event"] == "end":
            return {key: record[key] for key in ("images", "flops", "seconds")}
    raise UserError(f"{folder}: its last stage has not ended")


def _charged(start: str, key: str = "flops") -> float:
    """FLOPs (or seconds) of the run that an arm begins with."""
    if not start:
        return 0.0
    if not (Path(start) / "metrics.jsonl").is_file():
        raise UserError(
            f"start {start}: does not say what it cost; give the folder of a finished run"
        )
    return _spent(Path(start))[key]


def _speeds(
    study: Study, best: dict[str, dict[str, Any]], out: Path, say: Say, before: dict[str, Any]
) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """Seconds an image of each stage of each arm, and the settings they were measured with."""
    runs = {name: _task(study, name, best[name], 1.0, 0, out, "B").run for name in study.arms}
    timed = {name: config.to_dict(run) for name, run in runs.items()}
    stages = {name: settings["stages"] for name, settings in timed.items()}
    if record.timed_stages(before) == json.loads(json.dumps(stages)):
        return dict(before["seconds_an_image"]), timed
    return timing.measured(runs, out / "speeds.json", say), timed


# --- verdicts ----------------------------------------------------------------------------------


def _verdicts(study: Study, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """`verdicts` by FLOPs with pre-training charged, `amortised` without, `by_seconds`."""

    def charged(key: str) -> dict[str, float]:
        return {name: _charged(arm.start, key) for name, arm in study.arms.items()}

    def curves(name: str, key: str, extra: float, most: float = math.inf) -> dict[int, Curve]:
        return {
            seed: [
                Point(run[key] + extra, run["score"])
                for run in runs
                if run["arm"] == name and run["seed"] == seed and run["point"] <= most
            ]
            for seed in study.seeds_of(name)
        }

    def against(name: str, key: str, extra: dict[str, float]) -> dict[str, Any]:
        base = study.baseline
        reference = curves(base, key, extra[base], most=1.0)  # point 1 makes the target
        found = verdict(
            name,
            curves(name, key, extra[name]),
            reference,
            score=study.score,
            against=base,
            cost="compute" if key == "flops" else "time",
        )
        return dataclasses.asdict(found)

    free = dict.fromkeys(study.arms, 0.0)
    others = [name for name in study.arms if name != study.baseline]
    result = {
        "verdicts": {name: against(name, "flops", charged("flops")) for name in others},
        "by_seconds": {name: against(name, "seconds_alone", charged("seconds")) for name in others},
    }
    if any(charged("flops").values()):
        result["amortised"] = {name: against(name, "flops", free) for name in others}
    return result
