"""From a run's folder to `report.html`: a single file that needs no network and no scripts."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from underpaint import config
from underpaint.bounded import Is, checked, read_json
from underpaint.data.decode import Unreadable
from underpaint.errors import UserError
from underpaint.evaluation import early_stopping
from underpaint.evaluation.records import Record, of_kind, read
from underpaint.evaluation.sample_metrics import recorded
from underpaint.evaluation.verdict import answers
from underpaint.io import is_marked
from underpaint.report import charts, summary
from underpaint.report.gallery import Gallery, draw
from underpaint.report.html import embedded, render, write_page

GRIDS = 8  # sample grids shown
EVERY = 30  # seconds after which the page of a run that goes on reloads


def build(
    run_dir: Path | str,
    *,
    title: str | None = None,
    also: Sequence[tuple[str, Path]] = (),
    training_images: bool = True,
    data: str | None = None,
) -> Path:
    """Write `report.html` into a run's folder and return its path.

    `title`: the headline, else the folder's name. `also`: further runs by name, which are shown
    side by side; a single one is compared with the run itself. `training_images`: whether some of
    them are in the page. `data`: where they are now, if they have moved.
    Raises UserError if the folder holds no run, or its files are damaged or cannot be written.
    """
    run_dir = Path(run_dir).expanduser()
    page = _text(run_dir, title=title, also=also, training_images=training_images, data=data)
    return write_page(run_dir / "report.html", page)


def live(run_dir: Path, every: int) -> str:
    """The page of a run as it is now, to be asked for anew after so many seconds.

    It draws nothing with the network. Raises as `build`.
    """
    return _text(run_dir, every=every, gallery=False)


def follow(run_dir: Path, going: bool) -> Path:
    """Write `report.html` while the run goes on, or as it stops before its end (not `going`).

    In a fraction of a second: nothing is drawn with the network, no training image is in it, one
    curve is, and sample grids are shown from their files. Raises as `build`.
    """
    page = _text(run_dir, every=EVERY * going, gallery=False, brief=True)
    return write_page(run_dir / "report.html", page)


def _text(
    run_dir: Path,
    *,
    title: str | None = None,
    also: Sequence[tuple[str, Path]] = (),
    training_images: bool = True,
    data: str | None = None,
    every: int = 0,
    gallery: bool = True,
    brief: bool = False,
) -> str:
    """The page. `every`: seconds after which it reloads; `gallery`: draw samples for it;
    `brief`: as of `follow`."""
    run, records, environment = _read(run_dir)
    if any(stage.dp for stage in run.stages.values()):
        environment.pop("data", None)  # a hash of the private files says whether they are these
    name = title or run_dir.resolve().name
    stages = summary.stages(records, run)
    pictures = Gallery()
    if gallery:
        last = stages[-1].name if stages else None
        pictures = draw(run_dir, run, last, training_images, data)
    compared = list(also) if len(also) != 1 else [(name, run_dir), *also]
    stopping, stops = early_stopping.judge(records), of_kind(records, "stop")
    finished = len(stages) == len(run.stages) and all(stage.finished for stage in stages)
    return render(
        "page.html.jinja",
        title=name,
        live=every,
        brief=brief,
        run=run,
        parameters=environment.get("parameters"),
        start=environment.get("start"),
        answers=answers(records),
        total=_total(run, stages, stops),
        finished=finished,
        next=_next(run_dir, finished, bool(every) and not finished, records),
        stopping=stopping,
        stages=stages,
        checked=_last(records, "check", mask="whole"),
        can_time=any(stage.saved_seconds is not None for stage in stages),
        pictures=pictures,
        gallery=gallery,
        pixelated=bool(pictures.size) and max(pictures.size or ()) <= 128,
        training_images=bool(pictures.pairs or pictures.real),
        grids=_grids(run_dir, records, brief),
        compared=[_compared(label, Path(path), run_dir) for label, path in compared],
        compared_chart=charts.comparison(
            [(label, read(Path(path) / "metrics.jsonl")) for label, path in compared]
        ),
        charts=charts.of_run(records, stages, brief),
        has_checks=bool(of_kind(records, "check")),
        stops=stops,
        private=_private(records),
        rollbacks=of_kind(records, "rollback"),
        skipped=_last(records, "step").get("skipped", 0),
        recipe=(run_dir / "config.yaml").read_text(encoding="utf-8"),
        environment={k: _shown(v) for k, v in environment.items() if v is not None},
        commands=_commands(run_dir, environment),
        web=is_marked(run_dir / "web", "export"),
        folder=shlex.quote(str(run_dir)),
    )


ENVIRONMENT = {  # what of env.json the page counts on
    "parameters": Is((int, type(None)), optional=True),
    "start": Is((str, type(None)), optional=True),
}


def _read(run_dir: Path) -> tuple[config.Run, list[Record], dict[str, Any]]:
    if not (run_dir / "config.yaml").is_file():
        raise UserError(f"{run_dir}: holds no run (no config.yaml); give the folder of a run")
    try:
        environment = checked(read_json(run_dir / "env.json"), ENVIRONMENT, more=True)
    except FileNotFoundError:
        environment = {}
    except ValueError:
        raise UserError(f"{run_dir / 'env.json'}: is damaged; remove it to go without") from None
    page = run_dir / "report.html"
    if page.exists() and not (is_marked(run_dir, "run") or (run_dir / "metrics.jsonl").is_file()):
        raise UserError(f"{page}: exists, and {run_dir} is no run of underpaint's; move it away")
    records = read(run_dir / "metrics.jsonl") + recorded(run_dir)
    return config.load(run_dir / "config.yaml"), records, environment


# --- what the page says ------------------------------------------------------------------------


def _private(records: list[Record]) -> list[Record]:
    """The private stages that have begun: the guarantee of each, and what is spent of it so far."""
    latest = {r["stage"]: r for r in of_kind(records, "stage") if "privacy" in r}
    found = []
    for name, record in latest.items():
        finished, last = record["event"] == "end", _last(records, "step", stage=name)
        spent = {"spent": last["epsilon"], "spent_steps": last["spent_steps"]} if last else {}
        privacy = record["privacy"] | ({} if finished else spent)
        found.append({"name": name, "finished": finished, **privacy})
    return found


def _total(run: config.Run, stages: list[summary.StageFacts], stops: list[Record]) -> int:
    """Images of the run: what the stages that are over had, and what is planned of the others."""
    over = {stage.name: stage.images for stage in stages if stage.finished}
    planned = sum(over.get(name, stage.images) for name, stage in run.stages.items())
    last = stops[-1] if stops else {}
    return planned if last.get("stage") in over else int(last.get("total", planned))


def _last(records: list[Record], kind: str, **values: Any) -> Record:
    """The last record of this kind with these values; empty if there is none."""
    found = (r for r in reversed(of_kind(records, kind)) if r.items() >= values.items())
    return next(found, {})


def _next(run_dir: Path, finished: bool, going: bool, records: list[Record]) -> str:
    """The one command that the answers ask for."""
    folder, answer = shlex.quote(str(run_dir)), early_stopping.judge(records).answer
    if going and not of_kind(records, "sample"):
        return f"underpaint report {folder} --live"
    if going:
        return f"underpaint sample {folder} -n 64 --out grid.png"
    if not finished:
        return f"underpaint train --resume --out {folder}"
    short = answer == "unknown" and not of_kind(records, "check")
    if answer in ("improving", "waiting") or short:
        return f"underpaint train --resume --out {folder} --minutes 10"
    if answer == "copying":
        return f"underpaint audit {folder}"
    return f"underpaint sample {folder} -n 64 --out grid.png"


def _commands(run_dir: Path, environment: dict[str, Any]) -> list[tuple[str, str]]:
    folder = shlex.quote(str(run_dir))
    start = environment.get("start")
    verb = f"finetune --from {shlex.quote(start)}" if start else "train"
    recipe = shlex.quote(str(run_dir / "config.yaml"))
    return [
        ("Draw samples", f"underpaint sample {folder} -n 64 --seed 0 --out grid.png"),
        (
            "Give it ten more minutes of training",
            f"underpaint train --resume --out {folder} --minutes 10",
        ),
        ("Teach it other images", f"underpaint finetune --from {folder} --data DATA"),
        ("Draw, repaint and vary in the browser", f"underpaint app {folder}"),
        ("Score its samples", f"underpaint evaluate {folder}"),
        ("Ask whether it copies", f"underpaint audit {folder}"),
        ("Share it, with a model card", f"underpaint export {folder} --to hub:ORG/NAME"),
        ("Train it again", f"underpaint {verb} --config {recipe} --out NEW_FOLDER"),
        ("Make this page again", f"underpaint report {folder}"),
    ]


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k}: {v}" for k, v in value.items())
    return f"{value:,}" if isinstance(value, int) and value >= 10_000 else str(value)


# --- images ----------------------------------------------------------------------------------


def _grids(run_dir: Path, records: list[Record], named: bool) -> list[dict[str, Any]]:
    """At most GRIDS of the run's sample grids, evenly chosen, with the first and the last.

    `named`: by the names of their files, else as data addresses.
    """
    there = _there(run_dir, records)
    chosen = sorted({round(i) for i in np.linspace(0, len(there) - 1, GRIDS)}) if there else []
    seconds = summary.seconds_at(records, [r["images"] for r in there])
    return [
        there[i]
        | {"seconds": seconds[i]}
        | ({} if named else {"file": embedded(run_dir / there[i]["file"])})
        for i in chosen
    ]


def _there(run_dir: Path, records: list[Record]) -> list[Record]:
    """Its sample grids that are there; the records of a stranger may name any file of ours."""
    return [
        r
        for r in of_kind(records, "sample")
        if re.fullmatch(r"samples/images_[0-9]{12}\.png", str(r["file"]))
        and _is_png(run_dir / r["file"])
    ]


def _is_png(path: Path) -> bool:
    """Whether it is a PNG and no link to something else."""
    try:
        embedded(path)
    except (OSError, Unreadable, ValueError, SyntaxError):
        return False
    return not path.is_symlink()


def _compared(label: str, run_dir: Path, main: Path) -> dict[str, Any]:
    run, records, environment = _read(run_dir)
    stages = summary.stages(records, run)
    grids = _there(run_dir, records)
    limit = f", {run.data.limit:,} images" if run.data.limit else ""
    start = environment.get("start")
    if start and Path(start).resolve() == main.resolve():
        start = "the run above"
    return {
        "label": label,
        "data": f"{run.data.source}{limit}",
        "start": f"began with the weights of {start}" if start else "began from random weights",
        "images": sum(stage.images for stage in stages),
        "seconds": sum(stage.seconds for stage in stages),
        "held_out": _last(records, "check", mask="whole").get("held_out_mean"),
        "grid": embedded(run_dir / grids[-1]["file"]) if grids else None,
    }
