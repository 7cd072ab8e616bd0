"""A plan as the YAML that `underpaint train --config` takes, with a comment that says why."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import yaml

from underpaint import config
from underpaint._version import __version__
from underpaint.errors import UserError
from underpaint.io import check_new, check_place, replace_text, writing
from underpaint.planning.plan import Plan, shown

__all__ = ["check_out", "text", "write"]


def check_out(path: Path, overwrite: bool) -> None:
    """Raise UserError if the plan cannot be written there, before anything is measured."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give --out FILE.yaml")
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(f"{path}: give --out a name that ends in .yaml, as train expects")
    check_new([path], overwrite)
    check_place(path.parent)


def write(plan: Plan, path: Path) -> None:
    """Write the recipe of `plan`."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, text(plan, str(path)))


def text(plan: Plan, name: str) -> str:
    """The recipe of `plan`, which `config.load` reads back to `plan.run`; `name`: of its file."""
    run, defaults = config.to_dict(plan.run), config.to_dict(config.Run())
    comments = _comments(plan)
    lines = _head(plan, name)
    for section in SECTIONS:
        values, body = run[section], []
        if section == "stages":
            plain = config.to_dict(config.Stage())
            for name, stage in values.items():
                body += [_line(2, f"{name}:", comments.get(name))]
                body += _lines(4, stage, plain, name, comments)
        else:
            body = _lines(2, values, defaults[section], section, comments)
        if body:
            lines += ["", f"{section}:", *body]
    return "\n".join(lines) + "\n"


SECTIONS = ("data", "space", "network", "noise", "stages", "train", "sampling")
ALWAYS = {  # settings that one looks for, also where they are as without the file
    *("source", "size", "channels", "patch", "kind", "width", "depth", "heads", "labels"),
    *("process", "prediction", "time", "images", "mask", "rate", "batch", "learning_rate"),
}


def _lines(
    indent: int,
    values: dict[str, Any],
    plain: dict[str, Any],
    place: str,
    comments: dict[str, str],
) -> list[str]:
    """The settings that differ from those without them, and those that one looks for."""
    left = ("mask", "rate") if values.get("mask") == "none" else ()
    return [
        _line(indent, _yaml(key, value), comments.get(f"{place}.{key}"))
        for key, value in values.items()
        if value != plain[key] or (key in ALWAYS and key not in left and value != [])
    ]


def _yaml(key: str, value: Any) -> str:
    flow = yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=10**6)
    return f"{key}: {flow.strip()[1:-1]}"


def _line(indent: int, text: str, comment: str | None) -> str:
    line = " " * indent + text.strip()
    return f"{line:<30}# {comment}" if comment else line


def _head(plan: Plan, name: str) -> list[str]:
    images, machine = plan.images, plan.machine
    height, width = images.size
    how = "measured" if machine.measured else "computed, not measured"
    start = f" --from {plan.start}" if plan.start else ""
    wrapped = [
        line
        for reason in plan.reasons
        for line in textwrap.wrap(reason, 98, initial_indent="# - ", subsequent_indent="#   ")
    ]
    return [
        f"# {images.count:,} images of {height}×{width}: about {shown(plan.seconds)} on "
        f"{machine.shown} ({how}).",
        f"# By `underpaint plan` {__version__}, for a budget of {shown(plan.budget)}. Why:",
        *wrapped,
        f"# Train by it: underpaint train --config {name}{start}",
    ]


def _comments(plan: Plan) -> dict[str, str]:
    found = {
        "space.patch": f"{plan.patches} patches an image",
        "network.width": f"{plan.parameters:,} parameters",
    }
    for row in plan.rows:
        found[f"{row.name}.images"] = (
            f"about {shown(row.seconds)} at {row.images_per_s:,.3g} images/s, "
            f"{row.images / plan.images.count:,.3g} epochs"
        )
        found[f"{row.name}.rate"] = f"{row.visible} of {plan.patches} patches are seen"
        if row.mask == "none" and len(plan.rows) == 1:
            found["whole"] = "masking is not expected to pay here, see above"
    if plan.run.train.microbatch:
        found["train.microbatch"] = "a whole batch does not fit in memory at once"
    if plan.run.train.sample_every > 0:
        found["train.sample_every"] = "rarer than by itself: grids take a share of the budget"
    return found
