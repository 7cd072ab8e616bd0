"""Which curves of a run are drawn, and what each of them means in a sentence or two."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from markupsafe import Markup

from underpaint.evaluation.sample_metrics import comparable
from underpaint.report.metrics import Record, of_kind
from underpaint.report.plots import Band, Line, chart, smooth
from underpaint.report.summary import StageFacts, seconds_at

__all__ = ["Chart", "comparison", "of_run"]

Records = list[Record]
Stages = list[StageFacts]
ERROR = "mean squared error of x0"
TRAINING, HELD_OUT = ("training images", 1), ("held-out images", 0)  # names and colours


class Chart(NamedTuple):
    """A drawing, its heading and what it means."""

    title: str
    drawing: Markup
    meaning: str
    wide: bool = False


@dataclass(frozen=True)
class Spec:
    """What is drawn, from which records, and what it means. `{}`: the unit of time."""

    key: str
    title: str
    y_label: str
    lines: Callable[[Records, Stages], list[Line]]  # over seconds, or over `x_label`
    meaning: str | Callable[[Records, Stages], str]
    x_label: str = "{} of training"
    masked: bool = False  # of the stages that were checked at their mask alone
    log: bool = False
    zero: bool = False
    wide: bool = False


def of_run(records: Records, stages: Stages) -> list[Chart]:
    """The charts for which a run has records; steps of private stages say nothing of losses."""
    records = [r for r in records if r["kind"] != "step" or "loss" in r]
    charts = (_chart(spec, records, stages) for spec in SPECS)
    return [one for one in charts if one is not None]


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
    title = "Error on held-out images" if judged else "Training loss"
    spec = Spec(
        "comparison",
        title,
        ERROR if judged else "loss",
        lambda *_: lines,
        "Lower is better. Each mark is a check on images that the run was not trained on, "
        "averaged over eight noise levels; only training time counts."
        if judged
        else "Lower is better. The loss on the images being trained on, smoothed; it cannot "
        "tell learning from memorizing.",
        log=all(y > 0 for line in lines for y in line.y),
        wide=True,
    )
    end = max(max(line.x) for line in lines)
    return _drawn(spec, lines, end, [Band("", "", 0.0, end)], [], [])


def _chart(spec: Spec, records: Records, stages: Stages) -> Chart | None:
    lines = spec.lines(records, stages)
    if not lines:
        return None
    if spec.masked:
        names = {r["stage"] for r in _checks(records, "stage")}
        stages = [s for s in stages if s.name in names]
    bands = [
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
    end = max((s.begin + s.seconds for s in stages), default=0.0)
    return _drawn(spec, lines, end, bands, records, stages)


def _drawn(
    spec: Spec, lines: list[Line], end: float, bands: list[Band], records: Records, stages: Stages
) -> Chart:
    """The chart; `end` is the last second, which decides the unit of time."""
    unit, scale = _unit(end) if "{}" in spec.x_label else ("", 1.0)
    x_label = spec.x_label.format(unit)
    drawing = chart(
        spec.key,
        [replace(line, x=[x / scale for x in line.x]) for line in lines],
        x_label=x_label,
        y_label=spec.y_label,
        describe=f"{spec.title}: {spec.y_label} over {x_label}",
        bands=[replace(b, left=b.left / scale, right=b.right / scale) for b in bands if unit],
        log=spec.log,
        zero=spec.zero,
        wide=spec.wide,
    )
    meaning = spec.meaning if isinstance(spec.meaning, str) else spec.meaning(records, stages)
    return Chart(spec.title, drawing, meaning, spec.wide)


def _unit(seconds: float) -> tuple[str, float]:
    """Name and length in seconds of the unit in which `seconds` reads well."""
    if seconds > 3 * 3600:
        return "hours", 3600.0
    return ("minutes", 60.0) if seconds > 180 else ("seconds", 1.0)


# --- lines -------------------------------------------------------------------------------------


def _checks(records: Records, mask: str) -> Records:
    return [r for r in of_kind(records, "check") if r["mask"] == mask]


def _copies_known(records: Records) -> Records:
    return [r for r in of_kind(records, "scores") if r["copies"] is not None]


def _line(records: Records, measured: Records, key: str, name: str, colour: int) -> Line:
    """A measured value over the seconds of training; records without it are left out."""
    known = [r for r in measured if r[key] is not None]
    seconds = seconds_at(records, [r["images"] for r in known])
    return Line(name, seconds, [r[key] for r in known], colour, marks=True)


def _train_and_held_out(records: Records, measured: Records, keys: tuple[str, str]) -> list[Line]:
    lines = [
        _line(records, measured, key, name, colour)
        for key, (name, colour) in zip(keys, (TRAINING, HELD_OUT), strict=True)
    ]
    return [line for line in lines if line.y]


def _errors(records: Records, _: Stages, mask: str) -> list[Line]:
    keys = ("train_mean", "held_out_mean")
    return _train_and_held_out(records, _checks(records, mask), keys)


def _frechet(records: Records, _: Stages) -> list[Line]:
    keys = ("frechet_train", "frechet_held_out")
    return _train_and_held_out(records, comparable(records), keys)


def _copies(records: Records, _: Stages) -> list[Line]:
    line = _line(records, _copies_known(records), "copies", "", 0)
    return [replace(line, y=[100 * y for y in line.y])] if line.y else []


def _bins(records: Records, _: Stages) -> list[Line]:
    checks = _checks(records, "whole")
    if not checks:
        return []
    last = checks[-1]
    middles = [(a + b) / 2 for a, b in itertools.pairwise(last["log_snr_edges"])]
    return [
        Line(name, middles, last[key], colour, marks=True)
        for key, (name, colour) in (("train", TRAINING), ("held_out", HELD_OUT))
        if last[key] is not None
    ]


def _by_stage(records: Records, stages: Stages, key: str, colour: int) -> list[Line]:
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


def _learning_rate(records: Records, _: Stages) -> list[Line]:
    steps = of_kind(records, "step")
    return [Line("", [r["seconds"] for r in steps], [r["lr"] for r in steps], 2)] if steps else []


# --- what they mean ----------------------------------------------------------------------------


def _about_loss(records: Records, stages: Stages) -> str:
    text = "The loss that training lowers, on the batches it sees (light: raw; dark: smoothed)."
    if len(_by_stage(records, stages, "loss", 0)) > 1:
        text += (
            " It jumps where a stage begins because the task changes with what is hidden; only "
            "values of the same stage can be compared."
        )
    return text


def _about_errors(records: Records, _: Stages) -> str:
    if _checks(records, "whole")[-1]["held_out_mean"] is None:
        return (
            "The error when whole training images are denoised, averaged over eight noise levels. "
            "No images were held out, so memorizing cannot be seen here."
        )
    return (
        "The error when whole images are denoised, averaged over eight noise levels. The gap "
        "between the two is how much better the network knows its training images than images it "
        "has never seen; when the held-out curve turns upwards, it is memorizing."
    )


def _about_bins(records: Records, _: Stages) -> str:
    last = _checks(records, "whole")[-1]
    text = (
        "How far the denoised image is from the true one, at eight fixed amounts of noise: the "
        "left decides what is in the picture, the right its fine detail."
    )
    if (gap := last["gap"]) is not None:
        text += (
            f" At the last check the gap of the means is {gap:+.4f}; the held-out mean itself is "
            f"known to ±{last['held_out_se']:.4f} (one standard error), and a gap of that size is "
            "chance."
        )
    return text


def _about_frechet(records: Records, _: Stages) -> str:
    return (
        f"{comparable(records)[-1]['protocol']}: lower is better. Few images bias it upwards, so "
        "only its course and the difference of the two can be read. Samples that come nearer to "
        "the training images while they stay as far from the held-out ones are on the way to "
        "copies."
    )


def _about_copies(records: Records, _: Stages) -> str:
    return (
        f"Of {_copies_known(records)[-1]['samples']:,} samples at each check: those at most a "
        "third as far from one training image as from every other, pixel by pixel."
    )


SPECS = (
    Spec(
        "loss",
        "Loss",
        "training loss",
        partial(_by_stage, key="loss", colour=0),
        _about_loss,
        log=True,
        wide=True,
    ),
    Spec(
        "errors",
        "Training and held-out images",
        ERROR,
        partial(_errors, mask="whole"),
        _about_errors,
        log=True,
    ),
    Spec(
        "bins",
        "Error by noise level",
        ERROR,
        _bins,
        _about_bins,
        x_label="log-SNR: left almost only noise, right almost clean",
        log=True,
    ),
    Spec(
        "mask",
        "The same at the stage's mask",
        ERROR,
        partial(_errors, mask="stage"),
        "The error on the visible patches alone, as the masked stage is trained. It shows "
        "whether that stage itself is still learning or already memorizing.",
        masked=True,
        log=True,
    ),
    Spec(
        "frechet",
        "Samples against real images",
        "Fréchet distance",
        _frechet,
        _about_frechet,
        log=True,
    ),
    Spec("copies", "Near copies", "% of the samples", _copies, _about_copies, zero=True),
    Spec(
        "speed",
        "Speed",
        "images/s",
        partial(_by_stage, key="images_per_s", colour=3),
        "Images trained on in a second: where patches are hidden there is less to compute.",
        zero=True,
    ),
    Spec(
        "rate",
        "Learning-rate schedule",
        "learning rate",
        _learning_rate,
        "The learning rate of each step.",
        zero=True,
    ),
)
