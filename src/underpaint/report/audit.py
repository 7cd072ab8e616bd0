"""From an audit to `audit.json` and `audit.html`, for a reader who is no engineer.

Every figure is put into a sentence with its interval: what was tried, what was found, how bad that
would be. Risks have three words, by how often an attacker is right who sees one image that was
trained on and one that was not: slight (up to 6 in 10), moderate (up to 9 in 10), high.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from underpaint.io import replace_text, writing
from underpaint.privacy.attacks import ATTACKS
from underpaint.privacy.audit import Audit
from underpaint.privacy.verdict import ERROR
from underpaint.report.page import _picture, text_of, write_page

__all__ = ["write"]

SLIGHT, MODERATE = 0.6, 0.9
RATIOS = {"second": "nearest / second nearest", "next": "nearest / mean of the next 50"}


class Line(NamedTuple):
    """A row of the summary."""

    tried: str
    found: str
    risk: str  # none seen, slight, moderate, high
    place: str  # of the section that has the details


FILES = ("audit.json", "audit.html")


def write(audit: Audit, folder: Path) -> Path:
    """Write both files into `folder` and return the page's path.

    Raises UserError if the folder cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(audit.result, indent=1, allow_nan=False)
        replace_text(folder / FILES[0], text + "\n")
    templates = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    templates.lstrip_blocks = True
    templates.filters |= {"picture": _picture, "number": lambda v: f"{v:.3f}"}
    result = audit.result
    shown = [pair for pairs in audit.pairs.values() for pair in pairs]
    page = templates.from_string(text_of("audit.html.jinja")).render(
        css=Markup(text_of("page.css")),
        result=result,
        headline=_headline(result),
        summary=_summary(result),
        rows=[
            _row(name, attack, ERROR / result["tests"])
            for name, attack in result["membership"].items()
        ],
        refused=_refused(result),
        explained={name: ATTACKS[name] for name in result["asked"]["attacks"]},
        spaces={space: _counted(copies) for space, copies in _spaces(result).items()},
        pairs=audit.pairs,
        pixelated=max((max(pair[0].shape[:2]) for pair in shown), default=0) <= 128,
        command=_command(result),
    )
    # no line ends between a number and its per cent
    return write_page(folder / FILES[1], page.replace(" %", "\u00a0%"))


# --- in words ----------------------------------------------------------------------------------


def _headline(result: dict[str, Any]) -> str:
    if result["verdict"] == "leak found":
        return "This model reveals something about the images it was trained on."
    if result["verdict"] == "no leak found":
        return (
            "No leak was found by these attacks, at this power: they would have found, four times "
            "in five, one by which an attacker tells an image that was trained on from another "
            f"{_of_100(result['detectable'])} times in 100. This does not make the model safe."
        )
    return "This audit allows no verdict, because a control failed or was left out."


def _summary(result: dict[str, Any]) -> list[Line]:
    """One line for each thing that was tried."""
    level = ERROR / result["tests"]
    name, best = min(result["membership"].items(), key=lambda item: float(item[1]["p_value"]))
    area = best["auc"]
    lines = [
        Line(
            "Tell of a single image whether it was trained on",
            f"By the attack that did best ({name}) an attacker who is shown an image that was "
            f"trained on and another picks the right one {_of_100(area['value'])} times in 100 "
            f"({_of_100(area['low'])} to {_of_100(area['high'])}; guessing: 50).",
            _risk(area["value"], best["p_value"] < level),
            "membership",
        )
    ]
    dataset = result["dataset"]["p_value"]
    lines.append(
        Line(
            "Tell of the whole collection whether it was used",
            f"If it had not been used, so large a difference would come about by chance with p "
            f"{_p(dataset)} (below {level:.2g} it counts as found).",
            "found" if dataset < level else "none seen",
            "dataset",
        )
    )
    for space, copies in _spaces(result).items():
        beyond = any(f"copies in {space} " in line for line in result["findings"])
        lines.append(
            Line(
                "Can it reproduce training images?"
                + ("" if space == "pixels" else f" (features: {space})"),
                _copies(copies),
                "found" if beyond else "none seen",
                "copies",
            )
        )
    if completion := result["completion"]:
        error = completion["non_member_error"]
        change = completion["advantage"] / error if error else 0.0
        lines.append(
            Line(
                "Show half of an image and have it draw the rest",
                f"The rest is {abs(change):.1%} {'nearer to' if change >= 0 else 'further from'} "
                "the truth for images that were trained on than for others.",
                "found" if completion["p_value"] < level else "none seen",
                "completion",
            )
        )
    return lines


def _copies(copies: dict[str, Any]) -> str:
    """How many samples are copies, by the ratio with the lowest p-value."""
    ratios = [ratio for ratio in copies["ratios"].values() if ratio["quantile"]]
    strict = max((ratio["third"] for ratio in copies["ratios"].values()), key=lambda c: c["count"])
    text = (
        f"{strict['count']} of {copies['samples']:,} samples are copies of a training image by the "
        f"usual threshold ({_share(strict)})"
    )
    if not ratios:
        return f"{text}."
    counts = min((ratio["quantile"] for ratio in ratios), key=lambda c: float(c["p_value"]))
    return (
        f"{text}; {counts['count']} are nearer to one training image than non-members are "
        f"({_share(counts)}; by chance so many with p {_p(counts['p_value'])})."
    )


def _of_100(value: float) -> str:
    return f"{100 * value:.0f}"


def _p(value: float) -> str:
    """A p-value as part of a sentence: `= 0.03`."""
    return f"= {value:.2g}" if value >= 1e-4 else "below 0.0001"


def _risk(value: float, beyond: bool) -> str:
    if not beyond:
        return "none seen"
    return "high" if value > MODERATE else "moderate" if value > SLIGHT else "slight"


def _share(counts: dict[str, Any]) -> str:
    return f"95 % interval {counts['low']:.1%} to {counts['high']:.1%}"


def _row(name: str, attack: dict[str, Any], level: float) -> dict[str, str]:
    area = attack["auc"]
    rates = []
    for rate, value in attack["tpr_at"].items():
        if "needs" in value:
            continue
        tpr = value["tpr"]
        rates.append(
            f"{tpr['value']:.1%} ({tpr['low']:.1%} to {tpr['high']:.1%}) at {float(rate):.1%}"
        )
    return {
        "name": name,
        "auc": f"{area['value']:.3f} ({area['low']:.3f} to {area['high']:.3f})",
        "risk": _risk(area["value"], attack["p_value"] < level),
        "rates": "; ".join(rates) or "–",
        "accuracy": f"{attack['balanced_accuracy']['value']:.1%}",
    }


def _refused(result: dict[str, Any]) -> list[str]:
    """Rates for which there were too few images."""
    first = next(iter(result["membership"].values()))
    return [
        f"how many members are found at a false-positive rate of {float(rate):.1%}: that needs "
        f"{value['needs']:,} non-members, and there were {value['has']:,}"
        for rate, value in first["tpr_at"].items()
        if "needs" in value
    ]


def _spaces(result: dict[str, Any]) -> dict[str, Any]:
    """The numbers of copies by space; none of sealed images."""
    return dict((result["copies"] or {"spaces": {}})["spaces"])


def _counted(copies: dict[str, Any]) -> list[dict[str, str]]:
    """Rows of the table of copies of one space."""

    def cell(part: dict[str, Any] | None) -> str:
        if part is None:
            return "–"
        bounds = f"{part['low']:.1%} to {part['high']:.1%}"
        by_chance = f", p {_p(part['p_value'])}" if "p_value" in part else ""
        return f"{part['count']} ({bounds}), below {part['threshold']:.3g}{by_chance}"

    return [
        {"name": RATIOS[name], "third": cell(ratio["third"]), "quantile": cell(ratio["quantile"])}
        for name, ratio in copies["ratios"].items()
    ]


def _command(result: dict[str, Any]) -> str:
    """What to type to get the same figures."""
    asked = result["asked"]
    words = ["underpaint", "audit", result["source"], "--seed", str(result["seed"])]
    words += ["--weights", result["weights"]] if result["weights"] != "ema" else []
    words += ["--precision", result["precision"], "--attacks", ",".join(asked["attacks"])]
    for flag in ("members", "non_members", "features", "weights_file"):
        words += [f"--{flag.replace('_', '-')}", asked[flag]] if asked[flag] else []
    words += ["-n", str(asked["n"])] if asked["n"] else []
    words += ["--samples", str(asked["samples"])]
    words += ["--fpr", *(f"{rate:g}" for rate in asked["fpr"])] if asked["fpr"] else []
    words += ["--against", asked["against"]] if asked["against"] else []
    if asked["shadows"]:
        words += ["--against", "shadow", "--shadows", str(asked["shadows"])]
        words += ["--shadow-images", str(asked["shadow_images"])] if asked["shadow_images"] else []
    return shlex.join(words + ([] if asked["control"] else ["--no-control"]))
