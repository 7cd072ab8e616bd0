"""Every setting of a recipe with its type, default and help, read from the dataclasses.

`train --help` and docs/recipes.md print the same rows, so that neither can go stale.
"""

from __future__ import annotations

import dataclasses
import textwrap
import types
import typing
from typing import Any, Literal, NamedTuple

from underpaint import config
from underpaint.cli.parser import Parser

__all__ = ["Row", "Section", "add_precision", "as_help", "choices", "sections"]


class Row(NamedTuple):
    """One setting."""

    name: str  # as in YAML
    kind: str
    default: str
    help: str


class Section(NamedTuple):
    """The settings under one name of the recipe."""

    name: str  # data, stages.NAME, …
    summary: str
    rows: list[Row]


def sections() -> list[Section]:
    """All settings of `config.Run`, in its order."""
    hints = typing.get_type_hints(config.Run)
    found = []
    for part in dataclasses.fields(config.Run):
        cls, name = hints[part.name], part.name
        if name == "stages":
            cls, name = config.Stage, "stages.NAME"
        found.append(Section(name, (cls.__doc__ or "").strip(), _rows(cls)))
        if cls is config.Stage:
            about = (config.DP.__doc__ or "").strip()
            found.append(Section(f"{name}.dp", about, _rows(config.DP)))
    return found


def as_help(width: int) -> str:
    """The rows as text for `--help`: `--section.name KIND  help (default)`."""
    lines = ["settings of the recipe (write them as flags, or without the dashes in YAML):"]
    for section in sections():
        lines += ["", f"  {section.name}: {section.summary}"]
        for row in section.rows:
            flag = f"    --{section.name}.{row.name} {row.kind}"
            text = f"{row.help} (default: {row.default})" if row.default else row.help
            body = textwrap.wrap(text, max(30, width - 8))
            lines += [flag, *(" " * 8 + line for line in body)]
    return "\n".join(lines)


def choices(cls: type, name: str) -> tuple[str, ...]:
    """The values that a setting of one of several words can have."""
    return typing.get_args(typing.get_type_hints(cls)[name])


def _rows(cls: type) -> list[Row]:
    hints = typing.get_type_hints(cls)
    defaults = cls()
    return [
        Row(f.name, _kind(hints[f.name]), _shown(getattr(defaults, f.name)), f.metadata["help"])
        for f in dataclasses.fields(cls)
    ]


def _kind(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "|".join(str(a) for a in args)
    if origin is tuple:
        return " ".join([{int: "INT", str: "TEXT"}.get(args[0], "NUMBER")] * 2)
    if origin in (types.UnionType, typing.Union) or origin is dict:
        return "SETTINGS"
    return {int: "INT", float: "NUMBER", bool: "true|false", str: "TEXT"}[hint]


def _shown(value: Any) -> str:
    """The default as one would write it; empty where there is none."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, tuple):
        return " ".join(_shown(v) for v in value)
    return str(value) if value else ""


def add_precision(parser: Parser, default: str) -> None:
    """`--precision` of the network that images are drawn with."""
    parser.add_argument(
        "--precision",
        choices=choices(config.Train, "precision"),
        default=default,
        help="of the network; auto: bf16 where the machine is fast at it, drawing slightly "
        "other images (default: %(default)s)",
    )
