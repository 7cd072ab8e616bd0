"""The page of a comparison: the verdicts, score against compute, and every run behind them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from underpaint import model as models
from underpaint import pictures
from underpaint.compare import record
from underpaint.errors import UserError
from underpaint.io import writing
from underpaint.report.html import picture, render, write_page
from underpaint.report.plots import Line, chart

COLOURS = 4
SAMPLES, COLUMNS = 24, 8  # of each run


def write(results: dict[str, Any], out: Path) -> Path:
    """Write `comparison.html` and `results.json` into `out`; returns the page's path.

    `results`: of `compare.runner` or `compare.compare_runs`.
    """
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    study = results.get("study")
    sheets = [_sheet(Path(run["run"])) for run in results.get("overview", [])]
    page = render(
        "comparison.html.jinja",
        title="Comparison" if study is None else f"Study: {', '.join(study['arms'])}",
        pixelated=False,
        results=results,
        study=study,
        charts=_charts(results) if results["verdicts"] else [],
        names=[Path(run["run"]).name for run in results.get("overview", [])],
        sheets=[sheet for sheet in sheets if sheet is not None],
        recipe=json.dumps(study, indent=1, ensure_ascii=False) if study else "",
    )
    write_page(out / "results.json", record.text(results))
    return write_page(out / "comparison.html", page)


def _sheet(run: Path) -> tuple[str, str] | None:
    """A run's name and its samples of the seeds 0, 1, … as an image; None if it has no weights."""
    try:
        model = models.load(run)
    except UserError:
        return None
    labels = list(model.label_names[:COLUMNS])
    labels *= max(1, COLUMNS // 2 // max(1, len(labels)))  # few repeat along a row
    columns = len(labels) or COLUMNS // 2
    rows = max(1, SAMPLES // columns)
    drawn = pictures.grid(
        model.sample(rows * columns, seed=0, labels=labels or None), columns, labels or None
    )
    return run.name, picture(np.asarray(drawn))


def _charts(results: dict[str, Any]) -> list[Markup]:
    """Score against compute; four arms a drawing, with the baseline in each."""
    base, score = results["baseline"], results["score"]
    others = [name for name in dict.fromkeys(run["arm"] for run in results["runs"]) if name != base]
    charts = []
    for i, start in enumerate(range(0, len(others), COLOURS - 1)):
        names = [base, *others[start : start + COLOURS - 1]]
        lines = [_line(results, name, colour) for colour, name in enumerate(names)]
        drawing = chart(
            f"compute-{i}",
            lines,
            x_label="share of the baseline's compute",
            y_label=score,
            describe=f"{score} against compute of {', '.join(names)}",
            log=all(y > 0 for line in lines for y in line.y),
            wide=True,
            level=next(iter(results["verdicts"].values()))["target"],
        )
        charts.append(drawing)
    return charts


def _line(results: dict[str, Any], name: str, colour: int) -> Line:
    """Mean and band over seeds at each point."""
    base = [run["flops"] for run in results["runs"] if run["arm"] == results["baseline"]]
    charged = results.get("start_flops", {})
    whole = max(base) + charged.get(results["baseline"], 0.0)
    by_seed: dict[int, list[tuple[float, float]]] = {}
    for run in results["runs"]:
        if run["arm"] == name:
            spent = (run["flops"] + charged.get(name, 0.0)) / whole
            by_seed.setdefault(run["seed"], []).append((spent, run["score"]))
    length = min(len(points) for points in by_seed.values())
    seeds = np.array([sorted(points)[:length] for points in by_seed.values()])  # [seeds, points, 2]
    scores = seeds[:, :, 1]
    return Line(
        name,
        seeds[:, :, 0].mean(0).tolist(),
        scores.mean(0).tolist(),
        colour,
        marks=True,
        spread=(scores.min(0).tolist(), scores.max(0).tolist()) if len(seeds) > 1 else None,
    )
