"""What studies/privacy/run.py found, in words, a table and a figure, from its JSON alone.

An arm on parts protects from what an arm on whole images leaks if, paired by seed,

    AUC of the best attack, arm − other      lies below 0 with its whole t-interval,
    Fréchet distance, arm / public alone     lies below 1: else the private pictures gave nothing

and the other leaks at all. It *fails* where one of the two lies on the wrong side with its whole
interval, and nothing is said where an interval holds the border. Failures are told first.

Training that is stopped early leaks less, too. So where the other leaks, the Loss attacks are also
compared at equal quality: at the lowest Fréchet distance that both runs of a seed reach, between
their checkpoints by straight lines in its logarithm.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from studies.lib import page as pages
from studies.lib.page import Figure, Page, Section, Table
from studies.privacy import arms as design

__all__ = ["along", "answer", "at_equal_quality", "claims", "page", "row"]

PAIRS = (
    ("parts-whole", "ordinary"),
    ("parts", "ordinary"),
    ("fixed-public", "whole-public"),
    ("fresh-public", "whole-public"),
    ("fixed-public", "fresh-public"),
    ("public-dp", "whole-public"),
)
CONTROL = "public"  # never saw a member: AUC 0.5, and the quality to be beaten
ORDER = ("fails", "undecided", "holds")
Units = dict[str, dict[str, Any]]
Value = Callable[[dict[str, Any]], float | None]


def leak(unit: dict[str, Any]) -> float:
    """AUC of the best attack, chosen on the other half."""
    return float(unit["attacks"]["best"]["auc"]["value"])


def _rate(unit: dict[str, Any]) -> float | None:
    found = unit["attacks"]["best"]["tpr_at"].get("0.01", {})
    return float(found["tpr"]["value"]) if "tpr" in found else None


COLUMNS: dict[str, tuple[str, Value]] = {
    "AUC of the best attack": ("{:.3f}", leak),
    "found at 1 % false alarms": ("{:.1%}", _rate),
    "copies among samples": (
        "{:.1%}",
        lambda unit: float(unit["copies"]["ratios"]["second"]["quantile"]["share"]),
    ),
    "completion advantage": ("{:.4f}", lambda unit: float(unit["completion"]["advantage"])),
    "FD-MobileNetV2": ("{:.1f}", lambda unit: float(unit["frechet"])),
    "times a pixel was seen": ("{:.1f}", lambda unit: float(unit["exposures"])),
    "pixels ever seen": ("{:.0%}", lambda unit: float(unit["share_seen"])),
}


def of(units: Units, arm: str) -> dict[int, dict[str, Any]]:
    """The arm's units by seed."""
    own = {name.rsplit("_", 1)[1]: unit for name, unit in units.items() if _arm(name) == arm}
    return {int(seed): unit for seed, unit in sorted(own.items())}


def _arm(name: str) -> str:
    return name.rsplit("_", 1)[0]


def _interval(values: list[float]) -> Any:
    from underpaint.evaluation.intervals import of_mean

    return of_mean(values)


# --- the answer ----------------------------------------------------------------------------------


def claims(units: Units) -> list[dict[str, Any]]:
    """Each arm on parts against its like on whole images, failures first; pairs of two seeds up."""
    told = []
    for arm, other in PAIRS:
        one, two, control = (of(units, name) for name in (arm, other, CONTROL))
        seeds = sorted(one.keys() & two.keys() & control.keys())
        if len(seeds) < 2:
            continue
        less = _interval([leak(one[s]) - leak(two[s]) for s in seeds])
        price = _interval([math.log(one[s]["frechet"] / two[s]["frechet"]) for s in seeds])
        gain = _interval([math.log(one[s]["frechet"] / control[s]["frechet"]) for s in seeds])
        own, others = (_interval([leak(unit[s]) for s in seeds]) for unit in (one, two))
        verdict, why = _judged(less, gain, others)
        left = "" if own.low <= 0.5 else " Less is not nothing: its own AUC stays above 0.5."
        pairs = [at_equal_quality(one[s]["curve"], two[s]["curve"]) for s in seeds]
        gaps = [a - b for a, b in filter(None, pairs)]
        equal = _interval(gaps) if others.low > 0.5 else None
        told.append(
            {
                "arm": arm,
                "against": other,
                "seeds": seeds,
                "auc": _numbers(own, len(seeds)),
                "auc_against": _numbers(others, len(seeds)),
                "difference": _numbers(less, len(seeds)),
                "difference_at_equal_quality": equal and _numbers(equal, len(gaps)),
                "frechet_ratio": _exp(price),
                "frechet_to_public": _exp(gain),
                "verdict": verdict,
                "sentence": (
                    f"{_name(arm)} against {_name(other)}: {why}. AUC {own.value:.3f} against "
                    f"{others.value:.3f}, difference {less.value:+.3f} ({less.low:+.3f} to "
                    f"{less.high:+.3f}); Fréchet distance {math.exp(price.value):.2f} times the "
                    f"other's and {math.exp(gain.value):.2f} times ({math.exp(gain.low):.2f} to "
                    f"{math.exp(gain.high):.2f}) that of public pictures alone."
                    + (left if verdict == "holds" else "")
                    + (
                        f" At equal quality the Loss attack's AUC differs by {equal.value:+.3f} "
                        f"({equal.low:+.3f} to {equal.high:+.3f})."
                        if equal
                        else ""
                    )
                ),
            }
        )
    return sorted(told, key=lambda claim: ORDER.index(claim["verdict"]))


def at_equal_quality(
    one: list[dict[str, Any]], two: list[dict[str, Any]]
) -> tuple[float, float] | None:
    """AUC of two curves' Loss attacks at the lowest Fréchet distance that both reach, if any."""
    curves = [
        sorted((math.log(p["frechet"]), float(p["auc"]["value"])) for p in c) for c in (one, two)
    ]
    common = max(curve[0][0] for curve in curves)
    if common > min(curve[-1][0] for curve in curves):
        return None
    a, b = (
        float(np.interp(common, [x for x, _ in curve], [y for _, y in curve])) for curve in curves
    )
    return a, b


def _judged(less: Any, gain: Any, others: Any) -> tuple[str, str]:
    """The verdict and its reason."""
    if less.low > 0:
        return "fails", "fails: it leaks more"
    if gain.low > 0:
        return (
            "fails",
            "fails: its pictures are worse than without any private picture",
        )
    if others.low <= 0.5:
        return "undecided", "nothing to protect from: the other was not shown to leak"
    if less.high >= 0:
        return "undecided", "not shown to leak less"
    if gain.high >= 0:
        return (
            "undecided",
            "it leaks less, but was not shown to have learned anything from private pictures",
        )
    return "holds", "holds: it protects"


def answer(told: dict[str, Any]) -> list[str]:
    """Sentences: what makes the study void, then failures, what is open, what holds."""
    units, lines = told["units"], []
    pilot = told["pilot"]["chosen"]
    if pilot is None:
        return ["The pilot is not done, so there is no answer yet."]
    if not pilot["reached"]:
        lines.append(
            "No length of the pilot made an ordinary model leak as asked (AUC "
            f"{told['pilot']['wanted']}): what follows was measured at the longest and tells "
            "little of protection."
        )
    control = _interval([leak(unit) for unit in of(units, CONTROL).values()])
    if control is not None and not control.low <= 0.5 <= control.high:
        lines.append(
            f"The control fails: public pictures alone have an AUC of {control.value:.3f} "
            f"({control.low:.3f} to {control.high:.3f}), which should be 0.5. Trust no line below."
        )
    found = claims(units)
    if not found:
        return [*lines, "Too few runs are done for an answer: it needs two seeds of each arm."]
    masked = [claim for claim in found if claim["arm"] != "public-dp"]
    some = {verdict: sum(c["verdict"] == verdict for c in masked) for verdict in ORDER}
    lines.append(
        f"Does masked training protect? Of {len(masked)} comparisons the claim fails in "
        f"{some['fails']}, {some['undecided']} are undecided, and it holds in {some['holds']}."
    )
    equal = [e for claim in masked if (e := claim["difference_at_equal_quality"])]
    if equal:
        lines[-1] += (
            " At equal quality (compared afterwards) "
            f"{sum(e['high'] < 0 for e in equal)} of {len(equal)} leak less, and "
            f"{sum(e['low'] > 0 for e in equal)} more."
        )
    lines += [claim["sentence"] for claim in masked]
    knows = [u["knows_masks"] for u in of(units, "fixed-public").values()]
    if knows:
        seen, hidden = (
            cell([float(own[part]["best"]["auc"]["value"]) for own in knows], "{:.3f}")
            for part in ("visible", "hidden")
        )
        lines.append(
            f"Who knows each image's fixed mask (arm d) reaches an AUC of {seen} on the patches "
            f"that were shown and {hidden} on those that were not."
        )
    lines += [
        f"With a guarantee in place of masks: {claim['sentence']}"
        for claim in found
        if claim not in masked
    ]
    return lines


def _name(arm: str) -> str:
    return f"{design.ARMS[arm].title} ({design.ARMS[arm].letter})"


def _numbers(found: Any, count: int) -> dict[str, Any]:
    return {"mean": found.value, "low": found.low, "high": found.high, "freedom": count - 1}


def _exp(found: Any) -> dict[str, float]:
    return {"mean": math.exp(found.value), "low": math.exp(found.low), "high": math.exp(found.high)}


# --- table, figure, page -------------------------------------------------------------------------


def cell(values: list[float], form: str) -> str:
    """Mean and t-interval over seeds."""
    if not values:
        return "–"
    found = _interval(values)
    mean = form.format(sum(values) / len(values))
    if found is None or found.low == found.high:
        return mean
    return f"{mean} ({form.format(found.low)} to {form.format(found.high)})"


def row(units: Units, arm: str) -> list[str]:
    """The cells of an arm."""
    own = of(units, arm).values()
    return [
        cell([value for unit in own if (value := read(unit)) is not None], form)
        for form, read in COLUMNS.values()
    ]


def along(units: Units, arm: str) -> list[tuple[float, float]]:
    """Fréchet distance and AUC of the Loss attack by the share of the compute: means over seeds.

    Of a run whose checkpoints were gone when it was scored the curve has the end alone.
    """
    by_share: dict[float, list[dict[str, Any]]] = {}
    for unit in of(units, arm).values():
        for point in unit["curve"]:
            by_share.setdefault(round(point["share"], 3), []).append(point)
    return [
        (
            sum(p["frechet"] for p in points) / len(points),
            sum(p["auc"]["value"] for p in points) / len(points),
        )
        for _, points in sorted(by_share.items())
    ]


def plot(units: Units, path: Path) -> None:
    """Leak against quality: a line an arm through the means of its checkpoints, the end marked."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    figure = Figure(figsize=(7.6, 4.6), layout="constrained")
    axes = figure.subplots()
    for i, (arm, about) in enumerate(design.ARMS.items()):
        points = along(units, arm)
        if not points:
            continue
        x, y = zip(*points, strict=True)
        axes.plot(x, y, "o-", color=f"C{i}", lw=1.4, ms=3, label=f"{about.letter}  {about.title}")
        axes.plot(x[-1], y[-1], "o", color=f"C{i}", ms=8)
    axes.axhline(0.5, color="#999999", lw=0.8, ls=":")
    axes.set_xscale("log")
    for axis in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        axis(ScalarFormatter())
    axes.set(
        xlabel="Fréchet distance to private heads (left is better)",
        ylabel="AUC of the Loss attack (below is better)",
    )
    axes.legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=120)


def page(told: dict[str, Any]) -> Page:
    """All that was found, of results.json."""
    units = told["units"]
    rows = [
        [f"{about.letter}  {about.title}", *row(units, arm)]
        for arm, about in design.ARMS.items()
        if of(units, arm)
    ]
    sections = [Section("Every arm", [MEANING], [Table(["trained on", *COLUMNS], rows)])]
    if units:
        alt = "AUC of the Loss attack against the Fréchet distance, a line an arm"
        caption = (
            "Each line goes through an arm's checkpoints to its end, the large dot; dotted: a coin."
        )
        figure = Figure(functools.partial(plot, units), alt, caption)
        sections.append(Section("Leak against quality", figure=figure))
    sections.append(Section("What was done", _done(told)))
    title = "Does training on parts protect?"
    return Page(title, answer(told), sections)


MEANING = (
    "Means over seeds with 95 % t-intervals. The best attack and noise level are chosen on one "
    "half of the images and scored on the other. Copies: samples that stand nearer to one member "
    "than all but 0.1 % of the non-members do. Advantage: how much closer members are completed, "
    "in squared pixels from −1 to 1. The Fréchet distance is to private heads that no arm saw, in "
    "MobileNetV2 features, and no FID. A private stage counts each image once, however often it is "
    "drawn."
)


def _done(told: dict[str, Any]) -> list[str]:
    data, pilot = told["data"], told["pilot"]
    lines = []
    if data:
        lines.append(
            f"{data['pictures']:,} drawn heads of 32×32 pixels. Private: the {data['private']:,} "
            f"with glasses, a beard, earrings or freckles; public: the {data['public']:,} with "
            f"none. Each seed draws {data['members']:,} members, {data['others']:,} non-members "
            f"and {data['reference']:,} heads to judge quality by from the private ones. All arms "
            "spend the same training FLOPs on the same network."
        )
    if pilot["runs"]:
        found = "; ".join(
            f"{run['length']:.1e} FLOPs, {run['epochs']:.0f} epochs: {run['auc']['value']:.3f} "
            f"({run['auc']['low']:.3f} to {run['auc']['high']:.3f})"
            for run in pilot["runs"]
        )
        lines.append(
            "The length is the first at which an ordinary model (seed 0) has a Loss attack of AUC "
            f"{pilot['wanted']}: {found}."
        )
    by_precision: dict[str, list[str]] = {}
    for name, unit in told["units"].items():
        by_precision.setdefault(unit["precision"], []).append(name)
    if by_precision:
        most, *others = sorted(by_precision, key=lambda precision: -len(by_precision[precision]))
        but = "".join(f", of {', '.join(by_precision[other])} in {other}" for other in others)
        lines.append(f"Samples and attacks were computed in {most}{but}.")
    drawn = {(u["sampling"]["sampler"], u["sampling"]["steps"]) for u in told["units"].values()}
    for sampler, steps in sorted(drawn):
        lines.append(f"Samples were drawn by {sampler}, {steps} steps.")
    ends = [name for name, unit in told["units"].items() if len(unit["curve"]) == 1]
    if ends:
        lines.append(
            f"Of {', '.join(ends)} the checkpoints before the end were gone when the run was "
            "scored: the figure's smaller dots are of the other seeds."
        )
    if any(claim["difference_at_equal_quality"] for claim in claims(told["units"])):
        lines.append(
            "The comparison at equal quality was not planned: it was added when most of the runs "
            "had been seen. It is read off curves of four checkpoints, and hints rather than shows."
        )
    trial = "" if told["scale"] == 1 else f" (made at a scale of {told['scale']:g}: no result)"
    lines.append(
        "What it does not show: other pictures, larger networks, other attacks, and members in "
        "greater numbers. No leak found is no proof that there is none. To repeat: `python -m "
        "studies.lib.draw --size 32 --count 40000`, then `python -m studies.privacy.run`; each "
        f"attack with its intervals is in `results.json`{trial}."
    )
    return [*lines, *pages.cost(told["units"].values())]
