"""Runs a study: every arm at every ladder point with every seed, then the verdicts.

```
STUDY/.underpaint                the mark of a folder that a study began (a record is one, too)
STUDY/tuning/ARM/learning_rate-0.002-batch-16  …   the trials, ordinary run folders
STUDY/runs/ARM/0.25/seed-1  …    the runs that are reported
STUDY/jobs/                      with --launcher submitit: what the jobs printed
STUDY/results.json               a line for each run (record.py): all that need be kept
```

Each run has one thread, and as many run beside each other as there are cores. What results.json
holds or is finished in its folder is not run again, what was stopped goes on from its checkpoint:
the same command continues a study.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from underpaint import config, cores, data
from underpaint._version import __version__
from underpaint.bounded import read_json
from underpaint.compare import jobs as job_array
from underpaint.compare import record, timing
from underpaint.compare import study as studies
from underpaint.compare.pool import gather
from underpaint.compare.split_scoring import Half, half, measure
from underpaint.compare.study import Study
from underpaint.compare.verdict import Curve, Point, verdict
from underpaint.errors import UserError
from underpaint.evaluation.features import GROUNDS
from underpaint.evaluation.records import of_kind, read
from underpaint.evaluation.validation import OverfitCheck
from underpaint.io import check_new, is_marked, mark, numbered, replace_text, writing
from underpaint.training import train

Say = Callable[[str], None]

RESULTS = ("results.json", "comparison.html")
MOST_JOBS = 64  # at once, if nothing is said


@dataclass(frozen=True)
class Task:
    """One run of a study."""

    study: Study
    arm: str
    trial: dict[str, Any]  # settings of tuning
    point: float
    seed: int
    which: Half
    run: config.Run
    folder: Path

    @property
    def protocol(self) -> dict[str, Any]:
        """How it is scored."""
        study = self.study
        how = {"features": study.features} if study.score == "FD" else {}
        if how and self.run.data_of(self.run.last).channels == "rgba":
            how["grounds"] = GROUNDS
        return {"score": study.score, "half": self.which, "images": study.images, **how}


def conduct(
    study: Study,
    out: Path,
    *,
    workers: int = 0,
    overwrite: bool = False,
    say: Say = print,
    jobs: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Do what is left of `study` in the folder `out`, and return its results.

    `workers`: runs at once; 0: as many as cores, or MOST_JOBS jobs. `overwrite`: write results
    also where files of these names are in a folder that no study began. `say` gets a line for each
    finished run. `jobs`: each run is a job that submitit submits, with these of its parameters
    (see `jobs`); None: a process of this machine. Raises UserError where the study cannot work,
    Interrupted after Ctrl-C.
    """
    begun = is_marked(out, "study") or record.is_record(out / "results.json")
    if not begun:
        check_new([out / name for name in RESULTS], overwrite)
    launch: Callable[..., None]
    if jobs is None:
        launch = functools.partial(gather, workers=workers or cores.available())
    else:
        launch = functools.partial(
            job_array.gather, workers=workers or MOST_JOBS, folder=out / "jobs", asked=jobs
        )
    before = record.read(out / "results.json")
    known = {out / name: run for name, run in record.runs_of(before).items()}
    # what cannot work is refused before anything is trained
    _same_images(study)
    start_flops = {name: _charged(arm.start) for name, arm in study.arms.items()}
    best: dict[str, dict[str, Any]] = {name: {} for name in study.arms}
    todo = _tasks(study, out, best)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        if not begun:
            mark(out, "study")
    tuned: dict[str, list[dict[str, Any]]] = {}
    trial_runs: list[dict[str, Any]] = []
    if study.tuning.trials:
        trials = [
            _task(study, name, trial, study.tuning.point, 0, "A", out / "tuning" / name)
            for name in study.arms
            for trial in studies.trials(study.tuning)
        ]
        found = _all(trials, known, launch, say)
        trial_runs = [_line(task, out, found) for task in trials]
        for task in trials:
            score = {"score": found[task.folder]["score"]}
            tuned.setdefault(task.arm, []).append(task.trial | score)
        for name, scored in tuned.items():
            best[name] = dict(min(scored, key=lambda trial: trial["score"]))
            del best[name]["score"]
        todo = _tasks(study, out, best)
    found = _all(todo, known, launch, say)
    seconds, timed = _speeds(study, best, out, say, before)
    runs = []
    for task in todo:
        alone = (s.images * seconds[task.arm][name] for name, s in task.run.stages.items())
        runs.append(_line(task, out, found) | {"seconds_alone": sum(alone)})
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
        "start_flops": start_flops,
        **_verdicts(study, runs),
        **record.of_arms({"runs": runs, "trials": trial_runs, "earlier": earlier}, timed),
    }
    text = record.text(results)
    with writing(out):
        replace_text(out / "results.json", text)
    return dict(json.loads(text))


def _line(task: Task, out: Path, found: dict[Path, dict[str, Any]]) -> dict[str, Any]:
    """What results.json holds of a run, its settings still in full."""
    return {
        "arm": task.arm,
        "point": task.point,
        "seed": task.seed,
        "run": str(task.folder.relative_to(out)),
        "settings": config.to_dict(task.run),
        **found[task.folder],
    }


def _notes(study: Study, best: dict[str, dict[str, Any]]) -> list[str]:
    """What a reader should know of the tuning."""
    edges = {
        name: [f"{key} {chosen[key]:g}" for key in studies.at_the_edge(study.tuning, chosen)]
        for name, chosen in best.items()
    }
    return [
        f"the best {' and '.join(found)} of {name} lies at the edge of what was tried: a wider "
        "grid may find better"
        for name, found in edges.items()
        if found
    ]


def _tasks(study: Study, out: Path, best: dict[str, dict[str, Any]]) -> list[Task]:
    """All runs that are reported, with the settings that tuning has chosen for each arm."""
    return [
        _task(study, name, best[name], point, seed, "B", out / "runs" / name / f"{point:g}")
        for name in study.arms
        for point in study.points_of(name)
        for seed in study.seeds_of(name)
    ]


def _task(
    study: Study,
    name: str,
    trial: dict[str, Any],
    point: float,
    seed: int,
    which: Half,
    place: Path,
) -> Task:
    """A run of arm `name`, below `place`; a trial's folder is named by its settings."""
    run, shares = studies.recipe(study, name, trial), study.arms[name].shares
    run.train = dataclasses.replace(run.train, seed=seed, threads=1)
    dataset = data.prepare(run.data)
    classes = len(dataset.label_names)
    try:
        run = studies.scaled(
            run, shares, study.budget, point, dataset.size, dataset.channels, classes
        )
    except UserError as error:
        raise UserError(f"arm {name}: {error}") from None
    called = "-".join(f"{key}-{value:g}" for key, value in trial.items())
    folder = place / (f"seed-{seed}" if which == "B" else called)
    return Task(study, name, trial, point, seed, which, run, folder)


def _same_images(study: Study) -> None:
    """Raise UserError if the arms would be judged on different images."""
    keys: dict[str, bytes] = {}
    for name in study.arms:
        run = studies.recipe(study, name)
        wanted = run.data_of(run.last)
        if not wanted.source:
            raise UserError("the study names no images; add settings: {data: {source: FOLDER}}")
        dataset = data.prepare(wanted)
        half(dataset, "A", study.images)  # raises where too few are held out
        ids = dataset.train_ids.tobytes() + dataset.held_out_ids.tobytes()
        keys[name] = dataset.key.encode() + ids
        first = next(iter(keys))
        if keys[name] != keys[first]:
            raise UserError(
                f"arms {first} and {name} end on different images; scores of different data cannot "
                "be compared, so give all arms the same data and size in their last stage"
            )


# --- running -----------------------------------------------------------------------------------


def _all(
    todo: list[Task], known: dict[Path, dict[str, Any]], launch: Callable[..., None], say: Say
) -> dict[Path, dict[str, Any]]:
    """Run and score every task that is not `known`; long ones first, so that no core waits."""
    found: dict[Path, dict[str, Any]] = {}

    def done(task: Task, score: dict[str, Any]) -> None:
        found[task.folder] = score
        say(
            f"{len(found)} of {len(todo)}: {task.arm} at {task.point:g}, seed {task.seed}: "
            f"{task.study.score} {score['score']:.5g}"
        )

    recorded = {task.folder: _recorded(task, known.get(task.folder)) for task in todo}
    left = []
    for task in sorted(todo, key=lambda task: -task.point):
        if there := recorded[task.folder]:
            done(task, there)
        else:
            left.append(task)
    launch(left, _one, name=_name, done=done)
    return found


def _recorded(task: Task, known: dict[str, Any] | None) -> dict[str, Any] | None:
    """What results.json holds of a task, if it was scored as the study says now."""
    if known is None:
        return None
    began = config.from_dict(config.Run, known["settings"], "results.json: ")
    if not record.same(began, task.run):
        raise UserError(
            f"{task.folder}: stands in results.json with other settings than the study has now; "
            "give another --out, or remove its line"
        )
    if known["protocol"] != task.protocol:
        return None
    return {name: known[name] for name in ("protocol", "score", "images", "flops", "seconds")}


def _name(task: Task) -> str:
    return (
        f"arm {task.arm} at point {task.point:g}, seed {task.seed} (log: {task.folder / 'log.txt'})"
    )


def _one(task: Task) -> dict[str, Any]:
    """Train what is left of a task, and score it once."""
    torch.set_num_threads(1)
    kept, recipe = task.folder / "study.json", task.folder / "config.yaml"
    begun = recipe.is_file()
    if begun and not record.same(config.load(recipe), task.run):
        raise UserError(
            f"{task.folder}: was begun with other settings than the study has now; give another "
            "--out, or remove it"
        )
    try:
        measured = read_json(kept)
        if measured["protocol"] == task.protocol:
            return dict(measured)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    resumable = begun and bool(numbered(task.folder / "checkpoints"))
    train(
        task.run,
        task.folder,
        start=None if resumable else task.study.arms[task.arm].start or None,
        resume=resumable,
        overwrite=not resumable,
        make_check=OverfitCheck.of,
        quiet=True,
    )
    study = task.study
    score = measure(
        task.folder, study.score, task.which, most=study.images, extractor=study.features
    )
    measured = {"protocol": task.protocol, "score": score, **_spent(task.folder)}
    replace_text(kept, json.dumps(measured, indent=1) + "\n")
    return measured


def _spent(folder: Path) -> dict[str, float]:
    """Images, FLOPs and seconds of training of a finished run."""
    for stage in reversed(of_kind(read(folder / "metrics.jsonl"), "stage")):
        if stage["event"] == "end":
            return {key: stage[key] for key in ("images", "flops", "seconds")}
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
    runs = {name: _task(study, name, best[name], 1.0, 0, "B", out).run for name in study.arms}
    timed = {name: config.to_dict(run) for name, run in runs.items()}
    stages = {name: settings["stages"] for name, settings in timed.items()}
    if record.timed_stages(before) == json.loads(json.dumps(stages)):
        return dict(before["seconds_an_image"]), timed
    say("measuring the speed of each arm")
    return timing.measured(runs), timed


# --- verdicts ----------------------------------------------------------------------------------


def _verdicts(study: Study, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """`verdicts` by FLOPs with pre-training charged, `amortised` without, `by_seconds`."""

    def compared(key: str, start_key: str | None, cost: str = "compute") -> dict[str, Any]:
        def curves(name: str, most: float = math.inf) -> dict[int, Curve]:
            start = _charged(study.arms[name].start, start_key) if start_key else 0.0
            return {
                seed: [
                    Point(run[key] + start, run["score"])
                    for run in runs
                    if run["arm"] == name and run["seed"] == seed and run["point"] <= most
                ]
                for seed in study.seeds_of(name)
            }

        base = curves(study.baseline, most=1.0)  # point 1 makes the target
        words = {"score": study.score, "against": study.baseline, "cost": cost}
        return {
            name: dataclasses.asdict(verdict(name, curves(name), base, **words))
            for name in study.arms
            if name != study.baseline
        }

    result = {
        "verdicts": compared("flops", "flops"),
        "by_seconds": compared("seconds_alone", "seconds", "time"),
    }
    if any(arm.start for arm in study.arms.values()):
        result["amortised"] = compared("flops", None)
    return result
