"""Which curves of a run are drawn; what they mean is in `sentences.jinja`."""

import itertools
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from underpaint.evaluation import wiener
from underpaint.evaluation.records import Record, of_kind
from underpaint.evaluation.sample_metrics import comparable
from underpaint.report.html import sentences
from underpaint.report.plots import Band, Line, chart, smooth
from underpaint.report.summary import StageFacts, seconds_at

Records = list[Record]
ERROR = "mean squared error of x0"


class Chart(NamedTuple):
    """A drawing, its heading and what it means."""

    title: str
    drawing: Markup
    meaning: str
    wide: bool = False


def of_run(records: Records, stages: list[StageFacts], brief: bool = False) -> list[Chart]:
    """The charts for which a run has records; steps of private stages say nothing of losses.

    `brief`: one alone, the errors, or the loss where there are none.
    """
    records = [r for r in records if r["kind"] != "step" or "loss" in r]
    say, charts = sentences(), []

    def add(
        key: str, title: str, y_label: str, lines: list[Line], meaning: str, **options: Any
    ) -> None:
        if lines:
            bands = _bands(options.pop("stages", stages))
            charts.append(_chart(key, title, y_label, lines, meaning, bands, **options))

    whole = _checks(records, "whole")
    if not (brief and whole):
        losses = _by_stage(records, stages, "loss", 0)
        about = say.about_loss(len(losses))
        add("loss", "Loss", "training loss", losses, about, log=True, wide=not brief)
    if whole:
        lines, last = _both(records, whole, "train_mean", "held_out_mean"), whole[-1]
        # the same for all of a run's checks, but where a stage has other images
        levels = {round(float(np.mean(r["wiener"])), 5) for r in whole if r.get("wiener")}
        level = levels.pop() if len(levels) == 1 else None
        about = say.about_errors(last, level)
        add("errors", "Training and held-out images", ERROR, lines, about, log=True, level=level)
    if brief:
        return charts
    if whole:
        last = whole[-1]
        x_label = "log-SNR: left almost only noise, right almost clean"
        about = say.about_bins(last)
        add("bins", "Error by noise level", ERROR, _bins(last), about, log=True, x_label=x_label)
    if at_mask := _checks(records, "stage"):
        lines = _both(records, at_mask, "train_mean", "held_out_mean")
        about = say.about_stage_errors(wiener.below(at_mask[-1]))
        shown = [s for s in stages if any(s.name == r["stage"] for r in at_mask)]
        add("mask", "The same at the stage's mask", ERROR, lines, about, log=True, stages=shown)
    if scored := comparable(records):
        lines = _both(records, scored, "frechet_train", "frechet_held_out")
        title, about = "Samples against real images", say.about_distances(scored[-1]["protocol"])
        add("frechet", title, "Fréchet distance", lines, about, log=True)
    if searched := [r for r in of_kind(records, "scores") if r["copies"] is not None]:
        line = _line(records, searched, "copies", "", 0)
        lines = [replace(line, y=[100 * y for y in line.y])]
        about = say.about_copies(searched[-1]["samples"])
        add("copies", "Near copies", "% of the samples", lines, about, zero=True)
    about = "Images trained on in a second"
    about += (
        ": where patches are hidden there is less to compute."
        if any(s.masked for s in stages)
        else "."
    )
    speeds = _by_stage(records, stages, "images_per_s", 3)
    add("speed", "Speed", "images/s", speeds, about, zero=True)
    if steps := of_kind(records, "step"):
        rates = [Line("", [r["seconds"] for r in steps], [r["lr"] for r in steps], 2)]
        about = "The learning rate of each step."
        add("rate", "Learning-rate schedule", "learning rate", rates, about, zero=True)
    return charts


def comparison(runs: list[tuple[str, Records]]) -> Chart | None:
    """Curves of several runs on the same axes: of held-out images if all of them have them."""
    checks = [(name, records, _checks(records, "whole")) for name, records in runs]
    judged = all(c and c[-1]["held_out_mean"] is not None for _, _, c in checks)
    lines = []
    for i, (name, records, measured) in enumerate(checks[:4]):
        if judged:
            lines.append(_line(records, measured, "held_out_mean", name, i))
        elif steps := [r for r in of_kind(records, "step") if "loss" in r]:
            loss = smooth([r["loss"] for r in steps])
            lines.append(Line(name, [r["seconds"] for r in steps], loss, i))
    if not lines:
        return None
    return _chart(
        "comparison",
        "Error on held-out images" if judged else "Training loss",
        ERROR if judged else "loss",
        lines,
        sentences().about_comparison(judged),
        [Band("", "", 0.0, max(max(line.x) for line in lines))],
        log=all(y > 0 for line in lines for y in line.y),
        wide=True,
    )


def _chart(
    key: str,
    title: str,
    y_label: str,
    lines: list[Line],
    meaning: str,
    bands: list[Band],
    *,
    x_label: str = "",
    **options: Any,
) -> Chart:
    """A chart over the seconds of training, in the unit in which their last reads well.

    `x_label`: of lines over something else, which have no bands. `options`: of `plots.chart`.
    """
    if not x_label:
        end = max((band.right for band in bands), default=0.0)
        units = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))
        unit, scale = next(u for u in units if end > 3 * u[1] or u[1] == 1)
        x_label = f"{unit} of training"
        lines = [replace(line, x=[x / scale for x in line.x]) for line in lines]
        options["bands"] = [replace(b, left=b.left / scale, right=b.right / scale) for b in bands]
    describe = f"{title}: {y_label} over {x_label}"
    drawing = chart(key, lines, x_label=x_label, y_label=y_label, describe=describe, **options)
    return Chart(title, drawing, meaning, options.get("wide", False))


# --- lines and bands -----------------------------------------------------------------------------


def _bands(stages: list[StageFacts]) -> list[Band]:
    return [
        Band(
            f"{s.name}: {s.hidden} hidden" if s.masked else s.name,
            s.name,
            s.begin,
            s.begin + s.seconds,
            s.masked,
        )
        for s in stages
        if s.seconds
    ]


def _checks(records: Records, mask: str) -> Records:
    return [r for r in of_kind(records, "check") if r["mask"] == mask]


def _line(records: Records, measured: Records, key: str, name: str, colour: int) -> Line:
    """A measured value over the seconds of training; records without it are left out."""
    known = [r for r in measured if r[key] is not None]
    seconds = seconds_at(records, [r["images"] for r in known])
    return Line(name, seconds, [r[key] for r in known], colour, marks=True)


def _both(records: Records, measured: Records, train: str, held_out: str) -> list[Line]:
    """A value of training images and of held-out images, as far as they were measured."""
    lines = [
        _line(records, measured, train, "training images", 1),
        _line(records, measured, held_out, "held-out images", 0),
    ]
    return [line for line in lines if line.y]


def _bins(check: Record) -> list[Line]:
    middles = [(a + b) / 2 for a, b in itertools.pairwise(check["log_snr_edges"])]
    lines = [("training images", "train", 1), ("held-out images", "held_out", 0)]
    lines.append(("Wiener filter, held-out images", "wiener", 2))
    return [
        Line(name, middles, check[key], colour, marks=True)
        for name, key, colour in lines
        if check.get(key) is not None
    ]


def _by_stage(records: Records, stages: list[StageFacts], key: str, colour: int) -> list[Line]:
    """A value of the steps, smoothed within each stage."""
    lines = []
    for stage in stages:
        steps = [r for r in of_kind(records, "step") if r["stage"] == stage.name]
        steps = [r for r in steps if r[key] is not None]
        if steps:
            values = [r[key] for r in steps]
            seconds = [r["seconds"] for r in steps]
            lines.append(Line("", seconds, smooth(values), colour, faint=values))
    return lines
