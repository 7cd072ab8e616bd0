"""What studies/transfer found: effects with intervals, curves, and the page."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

from studies.lib import page as pages
from studies.lib.page import Figure, Page, Section, Table

__all__ = ["best", "effects", "page"]

NAMES = {
    "scratch": "from scratch",
    "whole": "pre-trained on whole images",
    "masked": "pre-trained on masked images",
}
PAIRS = (("masked", "scratch"), ("whole", "scratch"), ("masked", "whole"))
WANTED = 0.54  # of the distance from scratch: 46 % better
NOT_WORSE = 1.05  # times the distance after whole images, at most
COLUMNS = {
    "frechet_B": ("FD-MobileNetV2", "{:.1f}"),
    "kernel_B": ("KD-MobileNetV2", "{:.4f}"),
    "held_out": ("error of x0", "{:.4f}"),
    "images": ("images at the best point", "{:,.0f}"),
    "floor": ("FD of half A to half B", "{:.1f}"),
}
Units = dict[str, dict[str, Any]]


def best(found: dict[str, Any]) -> dict[str, Any]:
    """The point of a run that half A of the held-out images prefers."""
    return dict(min(found["curve"], key=lambda point: point["frechet_A"]))


def _interval(values: list[float]) -> Any:
    from underpaint.evaluation.intervals import of_mean

    return of_mean(values)


def _of(units: Units, arm: str, size: int) -> dict[int, dict[str, Any]]:
    """The arm's runs on so many images, by seed."""
    start = f"{arm}_{size}_"
    own = {int(name[len(start) :]): units[name] for name in units if name.startswith(start)}
    return dict(sorted(own.items()))


def _sizes(units: Units) -> list[int]:
    found = {int(name.split("_")[1]) for name in units if name.startswith(tuple(NAMES))}
    return sorted(found, reverse=True)


def effects(units: Units) -> list[dict[str, Any]]:
    """Ratios of an arm's scores to another's, paired by seed, where two seeds of both are done.

    Each run stands at its best point, which half A chose; the scores are of half B. A ratio is a
    geometric mean, with a t-interval on its logarithm; `at` has those after equal lengths.
    """
    told = []
    for size in _sizes(units):
        for arm, against in PAIRS:
            one, two = _of(units, arm, size), _of(units, against, size)
            seeds = sorted(one.keys() & two.keys())
            if len(seeds) < 2:
                continue
            found: dict[str, Any] = {"size": size, "arm": arm, "against": against, "seeds": seeds}
            for score in ("frechet_B", "held_out"):
                found[score] = _ratio([(best(one[k])[score], best(two[k])[score]) for k in seeds])
            points = [point["images"] for point in one[seeds[0]]["curve"]]
            found["at"] = {
                images: _ratio([(_at(one[k], images), _at(two[k], images)) for k in seeds])
                for images in points
            }
            told.append(found)
    return told


def _at(found: dict[str, Any], images: int) -> float:
    """The distance of a run at a point."""
    return next(float(p["frechet_B"]) for p in found["curve"] if p["images"] == images)


def _ratio(pairs: list[tuple[float, float]]) -> dict[str, float]:
    """Geometric mean of the ratios and its t-interval."""
    spread = _interval([math.log(one / two) for one, two in pairs])
    mean, low, high = (math.exp(v) for v in (spread.value, spread.low, spread.high))
    return {"ratio": mean, "low": low, "high": high}


def answer(told: dict[str, Any]) -> list[str]:
    """A sentence for each comparison; those of masked pre-training against none lead."""
    lines = []
    for found in sorted(told["effects"], key=lambda f: (f["against"], -f["size"])):
        ratio = found["frechet_B"]
        numbers = (
            f"{ratio['ratio']:.2f} times ({ratio['low']:.2f} to {ratio['high']:.2f}, "
            f"{len(found['seeds'])} seeds)"
        )
        lines.append(
            f"On {found['size']:,} images, a network {NAMES[found['arm']]} ends at {numbers} the "
            f"Fréchet distance of one {NAMES[found['against']]}: {_verdict(found)}."
        )
    if not lines:
        return ["Too few runs are done for an answer: it needs two seeds of each arm."]
    for found in told["effects"]:
        if (found["arm"], found["against"]) == ("masked", "scratch"):
            points = sorted((int(images), r) for images, r in found["at"].items())
            after = ", ".join(
                f"{r['ratio']:.2f} times ({r['low']:.2f} to {r['high']:.2f}) after {n:,} images"
                for n, r in points
            )
            lines.append(
                f"On {found['size']:,} images, how much it helps depends on the length of the "
                f"fine-tuning: pre-trained on masked images against from scratch, {after}."
            )
    for size in _sizes(told["units"]):
        runs = _of(told["units"], "scratch", size).values()
        longest = sum(best(run)["images"] == run["curve"][-1]["images"] for run in runs)
        if longest:
            lines.append(
                f"On {size:,} images, {longest} of {len(runs)} runs from scratch were best at "
                "their end: longer ones might be better still."
            )
    return lines


def _verdict(found: dict[str, Any]) -> str:
    ratio = found["frechet_B"]
    if found["against"] == "whole":
        if ratio["high"] < NOT_WORSE:
            return "not worse, at equal compute of the pre-training"
        if ratio["low"] > 1:
            return "worse"
        end = f"the interval ends at {ratio['high']:.3f}"
        return f"undecided whether it is within {NOT_WORSE} of it ({end})"
    better = f"{100 * (1 - ratio['ratio']):.0f} % better"
    if ratio["low"] > 1:
        return "worse"
    if ratio["high"] >= 1:
        return "undecided"
    if found["arm"] != "masked" or found["size"] != 1000:
        return better
    return f"{better}, {'as much as' if ratio['ratio'] <= WANTED else 'less than'} the 46 % claimed"


def cell(values: list[float], form: str) -> str:
    """Mean and t-interval over seeds."""
    found, mean = _interval(values), form.format(sum(values) / len(values))
    if found is None or found.low == found.high:
        return mean
    return f"{mean} ({form.format(found.low)} to {form.format(found.high)})"


def equal(size: int, effects: list[dict[str, Any]]) -> Section:
    """Ratios at equal lengths of the fine-tuning."""
    own = [found for found in effects if found["size"] == size]
    rows = [
        [
            f"{int(images):,} images",
            *(
                f"{r['ratio']:.2f} ({r['low']:.2f} to {r['high']:.2f})"
                for r in (found["at"][images] for found in own)
            ),
        ]
        for images in own[0]["at"]
    ]
    columns = ["after", *(f"{found['arm']} / {found['against']}" for found in own)]
    lines = ["Ratios of Fréchet distances after the same length of fine-tuning; below 1 is better."]
    return Section(f"At equal lengths, on {size:,} images", lines, [Table(columns, rows)])


def plot(units: Units, path: Path) -> None:
    """Distance against images of fine-tuning: mean and range over seeds, a line an arm."""
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import FuncFormatter, NullFormatter, ScalarFormatter

    sizes = _sizes(units)
    canvas = Canvas(figsize=(4.0 * len(sizes) + 0.4, 3.8), layout="constrained")
    for axes, size in zip(canvas.subplots(1, len(sizes), squeeze=False)[0], sizes, strict=True):
        for i, (arm, name) in enumerate(NAMES.items()):
            curves = [run["curve"] for run in _of(units, arm, size).values()]
            if not curves:
                continue
            x = [point["images"] for point in curves[0]]
            columns = [[p["frechet_B"] for p in column] for column in zip(*curves, strict=True)]
            middle = [sum(column) / len(column) for column in columns]
            axes.plot(x, middle, "o-", color=f"C{i}", lw=1.5, ms=4, label=name)
            axes.fill_between(
                x, list(map(min, columns)), list(map(max, columns)), color=f"C{i}", alpha=0.15, lw=0
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(x)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1000:g} k"))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(which="both", labelsize=8)
        axes.set_title(f"{size:,} images of the new style", fontsize=10)
        axes.set(xlabel="images seen in fine-tuning", ylabel="FD-MobileNetV2 to half B")
        axes.legend(fontsize=8, frameon=False)
    canvas.savefig(path, dpi=120)


def page(told: dict[str, Any]) -> Page:
    """All that was found, of results.json."""
    units = told["units"]
    sections = []
    if _sizes(units):
        alt = "Fréchet distance against images seen in fine-tuning, one line an arm"
        caption = "Mean and range over seeds; lower is better."
        figure = Figure(functools.partial(plot, units), alt, caption)
        sections.append(Section("Whole curves", figure=figure))
    for size in _sizes(units):
        rows = []
        for arm, name in NAMES.items():
            runs = _of(units, arm, size)
            if runs:
                points = [best(run) for run in runs.values()]
                cells = [cell([p[k] for p in points], form) for k, (_, form) in COLUMNS.items()]
                rates = {f"{run['learning_rate']:g}" for run in runs.values()}
                rows.append([name, *cells, ", ".join(sorted(rates)), str(len(runs))])
        columns = ["", *(title for title, _ in COLUMNS.values()), "learning rate", "seeds"]
        sections.append(Section(f"On {size:,} images", tables=[Table(columns, rows)]))
    for size in sorted({found["size"] for found in told["effects"]}, reverse=True):
        sections.append(equal(size, told["effects"]))
    done = [*told["design"], *pages.cost(units.values())]
    sections.append(Section("What was done", done))
    title = "Do weights from masked images help on another, small set?"
    return Page(title, answer(told), sections)
