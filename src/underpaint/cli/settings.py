"""Every setting of a recipe with its type, default and help, read from the dataclasses.

`train --help` and docs/recipes.md print the same rows, and the flags of other verbs that stand for
a setting have its help and its range, so that none can go stale.
"""

import argparse
import dataclasses
import textwrap
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from underpaint import config
from underpaint.cli.parser import Parser, flag_of
from underpaint.errors import UserError


class Row(NamedTuple):
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


# --- flags that stand for settings ---------------------------------------------------------------

IMAGES = ("size", "channels", "fit", "background", "max_bad", "max_pixels", "levels", "held_out")
METAVARS = {"source": "DATA", "background": "COLOUR", "max_bad": "SHARE", "held_out": "SPEC"}
SAMPLING = ("sampler", "steps", "grid", "guidance", "clip", "eta", "corrections", "snr")


def add_setting(parser: Parser, flag: str, setting: str, left_out: str = "", **other: Any) -> None:
    """A flag that stands for `setting`, as `train.seed`, with its kind and help.

    `left_out`: whose setting counts where the flag, which is None then, is left out. `other`:
    options of argparse instead of those that follow.
    """
    section, name = setting.split(".")
    cls = typing.get_type_hints(config.Run)[section]
    field = next(f for f in dataclasses.fields(cls) if f.name == name)
    hint = typing.get_type_hints(cls)[name]
    found: dict[str, Any] = {"default": None if left_out else field.default}
    found["help"] = field.metadata["help"].replace("%", "%%")
    if left_out or field.default:
        found["help"] += f" (default: {left_out or '%(default)s'})"
    if hint is bool:
        found["action"] = argparse.BooleanOptionalAction
    elif typing.get_origin(hint) is Literal:
        found["choices"] = typing.get_args(hint)
        if int in map(type, found["choices"]):
            found["type"] = lambda text: int(text) if text.isdecimal() else text
    elif typing.get_origin(hint) is tuple:
        found |= {"type": int, "nargs": "+", "metavar": ("H", "W")}
    else:
        found |= {"type": hint, "metavar": METAVARS.get(name, _kind(hint))}
    parser.add_argument(flag, **found | other)


def add_images(parser: Parser, names: Sequence[str] = IMAGES, **about: str) -> None:
    """The settings of images of these names; `about`: help that is not theirs."""
    for name in names:
        other = {"help": about[name]} if name in about else {}
        add_setting(parser, flag_of(name), f"data.{name}", **other)


def images_of(args: argparse.Namespace, names: Sequence[str] = IMAGES) -> config.Data:
    """The images that such flags ask for, and DATA. Raises UserError for what cannot be."""
    given = {name: getattr(args, name) for name in names}
    data = config.Data(source=args.data, **given | {"size": tuple(args.size)})
    config.check_data(data)
    return data


RUN = "a run, a checkpoint, an exported model, pretrained:NAME, or ORG/NAME on the Hugging Face Hub"
WEIGHTS = "ema: averaged over training; model: the last ones (default: %(default)s)"
MOVED = "where the run's images are now, if they have moved"
REVISION = "branch, tag or commit of ORG/NAME on the Hub (default: its main branch)"


def add_model(parser: Parser, precision: str) -> None:
    """How a model is loaded, and asked."""
    add = parser.add_argument
    add("--revision", metavar="REV", help=REVISION)
    add("--weights", choices=("ema", "model"), default="ema", help=WEIGHTS)
    add("--vae", metavar="FOLDER", help="where the model's autoencoder is now, if it has moved")
    add("--batch", type=int, default=64, help="images per batch (default: %(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda or mps (default: %(default)s)")
    add_setting(
        parser,
        "--precision",
        "train.precision",
        default=precision,
        help=(
            "of the network; auto: bf16 where it is fast, with slightly different images "
            "(default: %(default)s)"
        ),
    )


def add_sampling(parser: Parser) -> None:
    """The settings of `sampling` that may differ from the model's own."""
    for name in SAMPLING:
        add_setting(parser, flag_of(name), f"sampling.{name}", "the model's")


def sampling_of(args: argparse.Namespace) -> dict[str, Any]:
    """What such flags ask for, None where they are left out. Raises UserError beyond a range."""
    given = {name: getattr(args, name) for name in SAMPLING}
    for field in dataclasses.fields(config.Sampling):
        allowed, value = field.metadata["allowed"], given.get(field.name)
        if value is not None and allowed and (refusal := allowed.refusal(value)):
            raise UserError(f"{flag_of(field.name)} {refusal}")
    return given
