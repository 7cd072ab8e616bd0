"""From an audit to `audit.json` and `audit.html`, for a reader who is no engineer."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from underpaint.privacy.attacks import ATTACKS
from underpaint.privacy.audit import Audit
from underpaint.report.page import _picture, text_of, write_page
from underpaint.training.state import writing

__all__ = ["write"]


def write(audit: Audit, folder: Path) -> Path:
    """Write both files into `folder` and return the page's path.

    Raises UserError if the folder cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(audit.result, indent=1, allow_nan=False)
        (folder / "audit.json").write_text(text + "\n", encoding="utf-8")
    templates = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    templates.lstrip_blocks = True
    templates.filters |= {"picture": _picture, "number": lambda v: f"{v:.3f}"}
    result = audit.result
    small = max((max(pair[0].shape[:2]) for pair in audit.pairs), default=0) <= 128
    page = templates.from_string(text_of("audit.html.jinja")).render(
        css=Markup(text_of("page.css")),
        result=result,
        headline=_headline(result),
        rows=[_row(name, own) for name, own in result["membership"].items()],
        refused=_refused(result),
        explained=ATTACKS,
        copies=[_counted(name, own) for name, own in result["copies"]["ratios"].items()],
        pairs=audit.pairs,
        pixelated=small,
        command=f"underpaint audit {shlex.quote(result['source'])} --seed {result['seed']} "
        f"-n {max(result['members'], result['non_members'])} "
        f"--samples {result['copies']['samples']}",
    )
    return write_page(folder / "audit.html", page)


def _headline(result: dict[str, Any]) -> str:
    if result["verdict"] == "leak found":
        return "This model gives away something of the images it was trained on."
    if result["verdict"] == "no leak found":
        return (
            "No leak was found by these attacks, which would have found one that tells members "
            f"from others with an AUC of {result['detectable']:.2f} or more, four times in five."
        )
    return "This audit allows no verdict, because a control failed."


def _row(name: str, own: dict[str, Any]) -> dict[str, str]:
    found = own["auc"]
    rates = {}
    for rate, value in own["tpr_at"].items():
        if "needs" in value:
            continue
        tpr = value["tpr"]
        rates[rate] = f"{tpr['value']:.1%} ({tpr['low']:.1%} to {tpr['high']:.1%})"
    return {
        "name": name,
        "auc": f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})",
        "words": _words(found["value"], own["corrected"]["low"]),
        "rates": "; ".join(f"at {float(rate):.1%}: {text}" for rate, text in rates.items()) or "–",
        "accuracy": f"{own['balanced_accuracy']['value']:.1%}",
    }


def _words(value: float, low: float) -> str:
    """What an AUC means for one image."""
    if low <= 0.5:
        return "not told from guessing"
    right = f"right in {value:.0%} of pairs of a member and another"
    return f"{right}: {'high risk' if value > 0.9 else 'a risk' if value > 0.6 else 'slight'}"


def _refused(result: dict[str, Any]) -> list[str]:
    """Rates for which there were too few images."""
    first = next(iter(result["membership"].values()))
    return [
        f"a false-positive rate of {float(rate):.1%} needs {value['needs']:,} non-members, and "
        f"there were {value['has']:,}"
        for rate, value in first["tpr_at"].items()
        if "needs" in value
    ]


def _counted(name: str, own: dict[str, Any]) -> dict[str, str]:
    def told(part: dict[str, Any] | None) -> str:
        if part is None:
            return "–"
        bounds = f"{part['low']:.1%} to {part['high']:.1%}"
        return f"{part['count']} ({bounds}), below {np.round(part['threshold'], 3):g}"

    what = {"second": "nearest / second nearest", "next": "nearest / mean of the next 50"}
    return {"name": what[name], "third": told(own["third"]), "quantile": told(own["quantile"])}
