"""From an audit to `audit.json` and `audit.html`, for a reader who is no engineer.

Every figure is put into a sentence with its interval: what was tried, what was found, how bad that
would be. Risks have three words, by how often an attacker is right who sees one image that was
trained on and one that was not: slight (up to 6 in 10), moderate (up to 9 in 10), high.
"""

import json
import shlex
from pathlib import Path
from typing import Any

from underpaint.io import replace_text, writing
from underpaint.privacy.attacks import ATTACKS
from underpaint.privacy.audit import Audit
from underpaint.privacy.verdict import ERROR
from underpaint.report.html import render, write_page

FILES = ("audit.json", "audit.html")
SLIGHT, MODERATE = 0.6, 0.9


def write(audit: Audit, folder: Path) -> Path:
    """Write both files into `folder` and return the page's path.

    Raises UserError if the folder cannot be written.
    """
    result = audit.result
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(result, indent=1, allow_nan=False)
        replace_text(folder / FILES[0], text + "\n")
    level = ERROR / result["tests"]
    shown = [pair for pairs in audit.pairs.values() for pair in pairs]
    page = render(
        "audit.html.jinja",
        title=f"Privacy audit of {result['source']}",
        pixelated=max((max(pair[0].shape[:2]) for pair in shown), default=0) <= 128,
        result=result,
        level=level,
        best=min(result["membership"].items(), key=lambda item: float(item[1]["p_value"])),
        risk=lambda attack: _risk(attack["auc"]["value"], attack["p_value"] < level),
        spaces=result["copies"]["spaces"] if result["copies"] else {},  # none of sealed images
        copied=lambda space: any(f"copies in {space} " in line for line in result["findings"]),
        explained={name: ATTACKS[name] for name in result["asked"]["attacks"]},
        pairs=audit.pairs,
        command=_command(result),
    )
    # no line ends between a number and its per cent
    return write_page(folder / FILES[1], page.replace(" %", "\u00a0%"))


def _risk(value: float, beyond: bool) -> str:
    if not beyond:
        return "none seen"
    return "high" if value > MODERATE else "moderate" if value > SLIGHT else "slight"


def _command(result: dict[str, Any]) -> str:
    asked = result["asked"]
    words = ["underpaint", "audit", result["source"], "--seed", str(result["seed"])]
    words += ["--weights", result["weights"]] if result["weights"] != "ema" else []
    words += ["--precision", result["precision"], "--attacks", ",".join(asked["attacks"])]
    for flag in ("data", "members", "non_members", "features", "weights_file"):
        words += [f"--{flag.replace('_', '-')}", asked[flag]] if asked[flag] else []
    words += ["--thorough"] if asked["thorough"] else []
    words += ["-n", str(asked["n"])] if asked["n"] else []
    words += ["--samples", str(asked["samples"])]
    words += ["--fpr", *(f"{rate:g}" for rate in asked["fpr"])] if asked["fpr"] else []
    words += ["--against", asked["against"]] if asked["against"] else []
    if asked["shadows"]:
        words += ["--against", "shadow", "--shadows", str(asked["shadows"])]
        words += ["--shadow-images", str(asked["shadow_images"])] if asked["shadow_images"] else []
    return shlex.join(words + ([] if asked["control"] else ["--no-control"]))
