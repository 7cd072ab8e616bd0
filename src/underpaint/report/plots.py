"""The report's charts: matplotlib draws them as SVG, the page's style sheet colours them.

Text stays text and colours become CSS variables (`currentColor`, `var(--line-1)`, …), so that one
drawing reads well on a light and on a dark page. Nothing in a chart refers to anything outside it.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

INK, GRID, BAND = "#010101", "#020202", "#030303"
WIDE, NARROW = (10.4, 3.6), (5.1, 3.5)  # inches
LINES = ["#040404", "#050505", "#060606", "#070707"]
# what the page calls the colours: matplotlib cannot write a variable
VARIABLES = {INK: "currentColor", GRID: "var(--rule)", BAND: "var(--band)"}
VARIABLES |= {colour: f"var(--line-{i})" for i, colour in enumerate(LINES, 1)}

SVG = "http://www.w3.org/2000/svg"
ElementTree.register_namespace("", SVG)
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")

STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a label may hold a dollar sign
    "font.size": 10.5,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
}


@dataclass(frozen=True)
class Line:
    """A curve. `faint`: the raw values behind a smoothed one; `spread`: low and high round it."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0  # of the four line colours
    faint: Sequence[float] | None = None
    marks: bool = False
    spread: tuple[Sequence[float], Sequence[float]] | None = None


@dataclass(frozen=True)
class Band:
    """A named part of the x axis: a stage."""

    name: str
    short: str  # the name where there is little room
    left: float
    right: float
    shaded: bool = False


def chart(
    key: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    describe: str,
    bands: Sequence[Band] = (),
    log: bool = False,
    zero: bool = False,
    wide: bool = False,
    level: float | None = None,
) -> Markup:
    """An inline SVG. `key` makes its ids unique on the page; `describe` is read to the blind.

    `log`: logarithmic y axis. `zero`: the y axis begins at 0. `wide`: the page's whole width; a
    second drawing takes its place on a phone, where the text of a wide one would be too small.
    `level`: a height to mark by a dashed line.
    """

    def svg(key: str, size: tuple[float, float]) -> str:
        with matplotlib.rc_context({**STYLE, "svg.hashsalt": key}):
            figure = Figure(figsize=size, layout="constrained")
            axes: Axes = figure.subplots()
            axes.set_xlabel(x_label)
            axes.set_title(y_label, loc="left", fontsize=10.5, color=INK)
            axes.set_axisbelow(True)
            for line in lines:
                _draw(axes, line)
            if level is not None:
                axes.axhline(level, color=INK, linestyle=(0, (5, 4)), linewidth=1.0, zorder=1)
            if log:
                _log_scale(axes, lines)
            elif zero:
                axes.set_ylim(bottom=0)
            else:
                axes.yaxis.set_major_locator(MaxNLocator(5))
            if bands:
                _draw_bands(axes, bands, size[0])
            axes.yaxis.set_major_formatter(FuncFormatter(_short))
            axes.xaxis.set_major_formatter(FuncFormatter(_short))
            if any(line.name for line in lines) and len(lines) > 1:
                columns = 2 if all(len(line.name) < 20 for line in lines) else 1
                figure.legend(loc="outside lower left", fontsize=10, labelcolor=INK, ncols=columns)
            file = io.StringIO()
            figure.savefig(file, format="svg", transparent=True)
        return file.getvalue()

    sizes = [("", WIDE, "broad"), ("-narrow", NARROW, "narrow")] if wide else [("", NARROW, "")]
    return Markup().join(
        _inline(svg(key + end, size), key + end, describe, kind) for end, size, kind in sizes
    )


def smooth(values: Sequence[float]) -> list[float]:
    """A running mean over a twelfth of the values."""
    array = np.asarray(values, dtype=np.float64)
    reach = len(array) // 24
    sums = np.concatenate([[0.0], np.cumsum(array)])
    ends = np.arange(len(array))
    low, high = np.maximum(0, ends - reach), np.minimum(len(array), ends + reach + 1)
    return [float(v) for v in (sums[high] - sums[low]) / (high - low)]


def _draw(axes: Axes, line: Line) -> None:
    colour = LINES[line.colour]
    y = np.asarray(line.y, dtype=np.float64)
    if line.faint is not None:
        axes.plot(line.x, line.faint, color=colour, alpha=0.25, linewidth=1.0)
    if line.spread is not None:
        axes.fill_between(line.x, *line.spread, color=colour, alpha=0.18, linewidth=0)
    axes.plot(
        line.x,
        y,
        color=colour,
        label=line.name or "_",
        marker="o" if line.marks or len(y) == 1 else "",
        markersize=5,
        clip_on=False,
    )


def _draw_bands(axes: Axes, bands: Sequence[Band], inches: float) -> None:
    """The stages behind the curves, named where the name has room; a strip is kept free for it."""
    left, right = bands[0].left, bands[-1].right
    axes.set_xlim(left, max(right, left + 1e-9))
    low, high = axes.get_ylim()
    logarithmic = axes.get_yscale() == "log"
    axes.set_ylim(low, high * (high / low) ** 0.14 if logarithmic else high + 0.14 * (high - low))
    for band in bands:
        if band.shaded:
            axes.axvspan(band.left, band.right, color=BAND, linewidth=0, zorder=0)
        room = (band.right - band.left) / (right - left) * 0.88 * inches * 72  # points
        fitting = [name for name in (band.name, band.short) if 6.2 * len(name) < room]
        if fitting:
            axes.text(
                (band.left + band.right) / 2,
                0.97,
                fitting[0],
                ha="center",
                va="top",
                transform=axes.get_xaxis_transform(),
            )


def _log_scale(axes: Axes, lines: Sequence[Line]) -> None:
    """Round numbers as ticks: of each decade, or evenly where the values span less than one."""
    axes.set_yscale("log")
    values = np.concatenate([np.asarray(line.y, dtype=np.float64) for line in lines])
    values = values[np.isfinite(values) & (values > 0)]
    decades = math.log10(values.max() / values.min()) if len(values) else 0.0
    if decades < 0.9:
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    else:
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if decades > 3 else (1.0, 3.0)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _short(value: float, _: object = None) -> str:
    """Tick labels as a person writes them: 1,000 and 0.0005, no 5e-4."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-4 else f"{value:.0e}".replace("e-0", "e-")


def _inline(svg: str, key: str, describe: str, kind: str) -> Markup:
    """The drawing alone, with the page's colours and font, and ids that no other chart has."""
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            # matplotlib's style element would hold for the whole page; report.css has it for charts
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)
    for element in root.iter():
        for name, value in element.attrib.items():
            if name == "id":
                value = f"{key}-{value}"
            elif name.endswith("href"):
                value = value.replace("#", f"#{key}-", 1)
            elif name == "style":
                value = "; ".join(filter(None, (_styled(d.strip()) for d in value.split(";"))))
            element.set(name, value.replace("url(#", f"url(#{key}-"))
    size = root.attrib["viewBox"]
    root.attrib.clear()
    root.attrib |= {"class": f"chart {kind}", "viewBox": size, "role": "img"}
    root.set("aria-label", describe)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _styled(declaration: str) -> str:
    """A CSS declaration with the page's variable for a colour; none of a font but its size."""
    name, _, value = declaration.partition(": ")
    if name == "font":  # the size, then the family
        return f"font-size: {value.split()[0]}"
    if name == "font-family":
        return ""
    return f"{name}: {VARIABLES[value]}" if value in VARIABLES else declaration
