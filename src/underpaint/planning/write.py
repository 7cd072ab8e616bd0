"""A plan as the YAML that `underpaint train --config` takes, with a comment that says why."""

import shlex
import textwrap
from typing import Any

import yaml

from underpaint import config
from underpaint._version import __version__
from underpaint.planning.plan import Plan, shown

ALWAYS = {  # settings that one looks for, also where they are as without the file
    *("source", "size", "channels", "patch", "kind", "width", "depth", "heads", "labels"),
    *("process", "prediction", "time", "images", "mask", "rate", "batch", "learning_rate"),
}


def text(plan: Plan, name: str) -> str:
    """The recipe of `plan`, which `config.load` reads back to `plan.run`; `name`: of its file."""
    images, run, plain = plan.images, config.to_dict(plan.run), config.to_dict(config.Run())
    stages, size = run.pop("stages"), "×".join(map(str, images.size))
    reasons = [textwrap.wrap(f"- {r}", 98, subsequent_indent="  ") for r in plan.reasons]
    lines = [
        f"# {images.count:,} images of {size}: about {shown(plan.seconds)} on "
        f"{plan.machine.name} ({'computed, not measured' if plan.machine.sheet else 'measured'}).",
        f"# By `underpaint plan` {__version__}, for a budget of {shown(plan.budget)}. Why:",
        *(f"# {line}" for reason in reasons for line in reason),
        f"# Train by it: underpaint train --config {shlex.quote(name)}{plan.start}",
    ]
    comments = {
        "patch": f"{plan.counted['stages'][-1]['patches']} patches per image",
        "width": f"{plan.counted['parameters']:,} parameters",
    }
    for section, values in run.items():
        body = _lines(values, plain[section], comments)
        lines += ["", f"{section}:", *body] if body else []
    lines += ["", "stages:"]
    for row in plan.counted["stages"]:
        length = f"about {shown(row['seconds'])} at {row['images_per_s']:,.3g} images/s"
        comments = {
            "images": f"{length}, {row['images'] / images.count:,.3g} epochs",
            "rate": f"{row['visible']} of {row['patches']} patches are seen",
        }
        body = _lines(stages[row["name"]], config.to_dict(config.Stage()), comments)
        lines += [f"  {row['name']}:", *(f"  {line}" for line in body)]
    return "\n".join(lines) + "\n"


def _lines(values: dict[str, Any], plain: dict[str, Any], comments: dict[str, str]) -> list[str]:
    """The settings that differ from those without them, and those that one looks for."""
    left, lines = ("mask", "rate") if values.get("mask") == "none" else (), []
    for key, value in values.items():
        if value != plain[key] or (key in ALWAYS and key not in left and value != []):
            flow = yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=10**6)
            line, comment = f"  {key}: {flow.strip()[1:-1]}", comments.get(key)
            lines.append(f"{line:<28}# {comment}" if comment else line)
    return lines
