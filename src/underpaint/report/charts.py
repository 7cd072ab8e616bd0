"""Which curves of a run are drawn, and what each of them means in a sentence or two."""

from __future__ import annotations

import itertools
from typing import NamedTuple

from markupsafe import Markup

from underpaint.evaluation.sample_metrics import comparable
from underpaint.report.metrics import Record, of_kind
from underpaint.report.plots import Band, Line, chart, smooth
from underpaint.report.summary import StageFacts, seconds_at

__all__ = ["Chart", "comparison", "of_run"]

Named = list[tuple[str, list[Record]]]


class Chart(NamedTuple):
    """A drawing, its heading and what it means."""

    title: str
    drawing: Markup
    meaning: str
    wide: bool = False


def of_run(records: list[Record], stages: list[StageFacts]) -> list[Chart]:
    """The charts for which a run has records; steps of private stages say nothing of losses."""
    records = [r for r in records if r["kind"] != "step" or "loss" in r]
    drawn = [
        _loss(records, stages),
        _errors(records, stages),
        _bins(records),
        _at_mask(records, stages),
        _frechet(records, stages),
        _copies(records, stages),
        _speed(records, stages),
        _learning_rate(records, stages),
    ]
    return [one for one in drawn if one is not None]


def comparison(runs: Named) -> Chart | None:
    """Curves of several runs on the same axes: of held-out images if all of them have them."""
    checks = [(name, records, _checks(records, "whole")) for name, records in runs]
    judged = all(own and own[-1]["held_out_mean"] is not None for _, _, own in checks)
    lines = []
    for i, (name, records, own) in enumerate(checks[:4]):
        if judged:
            times = seconds_at(records, [r["images"] for r in own])
            lines.append(Line(name, times, [r["held_out_mean"] for r in own], i, marks=True))
        elif steps := [r for r in of_kind(records, "step") if "loss" in r]:
            loss = smooth([r["loss"] for r in steps])
            lines.append(Line(name, [r["seconds"] for r in steps], loss, i))
    if not lines:
        return None
    unit, scale = _unit(max(max(line.x) for line in lines))
    lines = [Line(n.name, [x / scale for x in n.x], n.y, n.colour, marks=n.marks) for n in lines]
    title = "Error on held-out images" if judged else "Training loss"
    end = max(max(line.x) for line in lines)
    return Chart(
        title,
        chart(
            "comparison",
            lines,
            x_label=f"{unit} of training",
            y_label="mean squared error of x0" if judged else "loss",
            describe=f"{title} of {len(lines)} runs over {unit} of training",
            bands=[Band("", "", 0.0, end)],
            log=all(y > 0 for line in lines for y in line.y),
            wide=True,
        ),
        (
            "Lower is better. Each mark is a check on images that the run was not trained on, "
            "averaged over eight noise levels; only training time counts."
            if judged
            else "Lower is better. The loss on the images being trained on, smoothed; it cannot "
            "tell learning from memorising."
        ),
        wide=True,
    )


def _loss(records: list[Record], stages: list[StageFacts]) -> Chart | None:
    steps = [r for r in of_kind(records, "step") if r["loss"] is not None]
    if not steps:
        return None
    unit, scale = _unit(steps[-1]["seconds"])
    lines = []
    for stage in stages:
        own = [r for r in steps if r["stage"] == stage.name]
        loss = [r["loss"] for r in own]
        if own:
            times = [r["seconds"] / scale for r in own]
            lines.append(Line("", times, smooth(loss), faint=loss))
    several = len(lines) > 1
    return Chart(
        "Loss",
        chart(
            "loss",
            lines,
            x_label=f"{unit} of training",
            y_label="training loss",
            describe=f"Training loss over {unit} of training, by stage",
            bands=_bands(stages, scale),
            wide=True,
            log=True,
        ),
        "The loss that training lowers, on the batches it sees: pale as measured, dark smoothed."
        + (
            " It jumps where a stage begins because the task changes with what is hidden; only "
            "values of the same stage can be compared."
            if several
            else ""
        ),
        wide=True,
    )


def _errors(records: list[Record], stages: list[StageFacts]) -> Chart | None:
    checks = _checks(records, "whole")
    if not checks:
        return None
    return Chart(
        "Training and held-out images",
        _over_time("errors", records, checks, stages),
        "The error when whole images are denoised, averaged over eight noise levels. The gap "
        "between the two is how much better the network knows its training images than images it "
        "has never seen; when the held-out curve turns upwards, it is learning by heart."
        if checks[-1]["held_out_mean"] is not None
        else "The error when whole training images are denoised, averaged over eight noise levels. "
        "No images were held out, so learning by heart cannot be seen here.",
    )


def _at_mask(records: list[Record], stages: list[StageFacts]) -> Chart | None:
    checks = _checks(records, "stage")
    if not checks:
        return None
    names = {r["stage"] for r in checks}
    return Chart(
        "The same at the stage's mask",
        _over_time("mask", records, checks, [s for s in stages if s.name in names]),
        "The error on the visible patches alone, as the masked stage is trained. It tells whether "
        "that stage itself is still learning or already learning by heart.",
    )


def _frechet(records: list[Record], stages: list[StageFacts]) -> Chart | None:
    found = comparable(records)
    if not found:
        return None
    unit, scale, times = _times(records, found, stages)
    sides = (("training images", "frechet_train", 1), ("held-out images", "frechet_held_out", 0))
    lines = []
    for name, key, colour in sides:
        own = [(t, r[key]) for t, r in zip(times, found, strict=True) if r[key] is not None]
        if own:
            lines.append(Line(name, [t for t, _ in own], [y for _, y in own], colour, marks=True))
    protocol = found[-1]["protocol"]
    return Chart(
        "Samples against real images",
        chart(
            "frechet",
            lines,
            x_label=f"{unit} of training",
            y_label="Fréchet distance",
            describe=f"Fréchet distance of samples to real images over {unit} of training",
            bands=_bands(stages, scale),
            log=True,
        ),
        f"{protocol}: lower is better. Few images bias it upwards, so only its course and the "
        "difference of the two can be read. Samples that come nearer to the training images "
        "while they stay as far from the held-out ones are on the way to copies.",
    )


def _copies(records: list[Record], stages: list[StageFacts]) -> Chart | None:
    found = [r for r in of_kind(records, "scores") if r["copies"] is not None]
    if not found:
        return None
    unit, scale, times = _times(records, found, stages)
    return Chart(
        "Near copies",
        chart(
            "copies",
            [Line("", times, [100 * r["copies"] for r in found], 0, marks=True)],
            x_label=f"{unit} of training",
            y_label="% of the samples",
            describe=f"Share of samples that are near copies over {unit} of training",
            bands=_bands(stages, scale),
            zero=True,
        ),
        f"Of {found[-1]['samples']:,} samples at each check: those at most a third as far from one "
        "training image as from every other, pixel by pixel.",
    )


def _times(
    records: list[Record], found: list[Record], stages: list[StageFacts]
) -> tuple[str, float, list[float]]:
    """Unit of time, its seconds, and when each of `found` was measured."""
    unit, scale = _unit(max((s.begin + s.seconds for s in stages), default=0.0))
    return unit, scale, [s / scale for s in seconds_at(records, [r["images"] for r in found])]


def _over_time(
    key: str, records: list[Record], checks: list[Record], stages: list[StageFacts]
) -> Markup:
    unit, scale, times = _times(records, checks, stages)
    lines = [Line("training images", times, [r["train_mean"] for r in checks], 1, marks=True)]
    own = [(t, r) for t, r in zip(times, checks, strict=True) if r["held_out_mean"] is not None]
    if own:
        held_out = [r["held_out_mean"] for _, r in own]
        lines.append(Line("held-out images", [t for t, _ in own], held_out, 0, marks=True))
    return chart(
        key,
        lines,
        x_label=f"{unit} of training",
        y_label="mean squared error of x0",
        describe=f"Error on training and held-out images over {unit} of training",
        bands=_bands(stages, scale),
        log=True,
    )


def _bins(records: list[Record]) -> Chart | None:
    checks = _checks(records, "whole")
    if not checks:
        return None
    last = checks[-1]
    edges = last["log_snr_edges"]
    middles = [(a + b) / 2 for a, b in itertools.pairwise(edges)]
    lines = [Line("training images", middles, last["train"], 1, marks=True)]
    if last["held_out"] is not None:
        lines.append(Line("held-out images", middles, last["held_out"], 0, marks=True))
    gap = last["gap"]
    own = (
        f" At the last check the gap of the means is {gap:+.4f}; the held-out mean itself is known "
        f"to ±{last['held_out_se']:.4f} (one standard error), and a gap of that size is chance."
        if gap is not None
        else ""
    )
    return Chart(
        "Error by noise level",
        chart(
            "bins",
            lines,
            x_label="log-SNR: left almost only noise, right almost clean",
            y_label="mean squared error of x0",
            describe="Error on training and held-out images at eight noise levels, last check",
            log=True,
        ),
        "How far the denoised image is from the true one, at eight fixed amounts of noise: the "
        f"left decides what is in the picture, the right its fine detail.{own}",
    )


def _learning_rate(records: list[Record], stages: list[StageFacts]) -> Chart | None:
    steps = of_kind(records, "step")
    if not steps:
        return None
    unit, scale = _unit(steps[-1]["seconds"])
    line = Line("", [r["seconds"] / scale for r in steps], [r["lr"] for r in steps], 2)
    return Chart(
        "Learning rate",
        chart(
            "rate",
            [line],
            x_label=f"{unit} of training",
            y_label="learning rate",
            describe=f"Learning rate over {unit} of training",
            bands=_bands(stages, scale),
            zero=True,
        ),
        "How large the steps of the optimiser were.",
    )


def _speed(records: list[Record], stages: list[StageFacts]) -> Chart | None:
    steps = of_kind(records, "step")
    if not steps:
        return None
    unit, scale = _unit(steps[-1]["seconds"])
    lines = []
    for stage in stages:
        own = [r for r in steps if r["stage"] == stage.name]
        speeds = [r["images_per_s"] for r in own]
        if own:
            times = [r["seconds"] / scale for r in own]
            lines.append(Line("", times, smooth(speeds), 3, faint=speeds))
    return Chart(
        "Speed",
        chart(
            "speed",
            lines,
            x_label=f"{unit} of training",
            y_label="images/s",
            describe=f"Images a second over {unit} of training",
            bands=_bands(stages, scale),
            zero=True,
        ),
        "Images trained on in a second: where patches are hidden there is less to compute.",
    )


def _checks(records: list[Record], mask: str) -> list[Record]:
    return [r for r in of_kind(records, "check") if r["mask"] == mask]


def _bands(stages: list[StageFacts], scale: float) -> list[Band]:
    return [
        Band(
            f"{s.name}: {s.hidden} hidden" if s.masked else s.name,
            s.name,
            s.begin / scale,
            (s.begin + s.seconds) / scale,
            s.masked,
        )
        for s in stages
        if s.seconds
    ]


def _unit(seconds: float) -> tuple[str, float]:
    """Name and length in seconds of the unit in which `seconds` reads well."""
    if seconds > 3 * 3600:
        return "hours", 3600.0
    return ("minutes", 60.0) if seconds > 180 else ("seconds", 1.0)
