"""YAML files, presets and flags into settings, and settings into YAML."""

import dataclasses
import difflib
import os
import types
import typing
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from underpaint.config import plain
from underpaint.config.plain import Plain, is_null, typed
from underpaint.config.schema import DP, Run, Stage
from underpaint.errors import UserError

T = TypeVar("T")


def from_dict(cls: type[T], values: Any, where: str, base: T | None = None) -> T:
    """Build `cls` from nested plain values, on top of `base`; `where` names the place."""
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected settings as 'name: value', got {_shown(values)}")
    result: Any = cls() if base is None else dataclasses.replace(base)  # type: ignore[type-var]
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for name, value in values.items():
        if name not in names:
            raise UserError(_unknown(str(name), names, where))
        current = getattr(result, name)
        setattr(result, name, _convert(hints[name], value, _join(where, name), current))
    if isinstance(result, Stage):  # the length that was said last is the one that is meant
        if "images" in values and result.images and "minutes" not in values:
            result.minutes = 0.0
        if "minutes" in values and result.minutes and "images" not in values:
            result.images = 0
    return result


def _convert(hint: Any, value: Any, where: str, current: Any = None) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if is_null(value):
            return None
        return _convert(next(a for a in args if a is not type(None)), value, where, current)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where, current)  # type: ignore[arg-type]
    if origin is dict:
        if not isinstance(value, dict):
            raise UserError(f"{where}: expected 'name: value' pairs, got {_shown(value)}")
        merged = dict(current or {})
        for key, item in value.items():
            if dataclasses.is_dataclass(args[1]):
                if item == "" and isinstance(item, Plain):
                    raise UserError(
                        f"{_join(where, str(key))} is empty; write its settings below it, or null "
                        "to drop it"
                    )
                if is_null(item):  # a stage set to null is dropped from a preset's recipe
                    merged.pop(str(key), None)
                    continue
                item = _convert(args[1], item, _join(where, str(key)), merged.get(str(key)))
            merged[str(key)] = typed(item)
        return merged
    if origin is Literal:
        number = plain.whole(value) if isinstance(value, Plain) else None  # as it stands in YAML
        for choice in args:
            same = type(choice) is int and number == choice
            if same or (value == choice and isinstance(value, type(choice)) and value is not True):
                return choice
        options = ", ".join(str(a) for a in args)
        raise UserError(f"{where}: {_shown(value)} is not one of {options}")
    if origin is tuple:
        items = list(value) if isinstance(value, (list, tuple)) else [value]
        if args[-1] is not Ellipsis and len(items) != len(args):
            raise UserError(f"{where}: expected {len(args)} values, got {_shown(value)}")
        return tuple(_convert(args[0], item, where) for item in items)
    if hint is str and isinstance(value, (str, os.PathLike)) and not _is_empty(value):
        return str(os.fspath(value))
    if isinstance(value, str) and hint in (float, int, bool):
        parsed = _of_text(hint, value)
        value = value if parsed is None else parsed
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if hint is str and _is_empty(value):
        value = None
    if hint is Any:
        return typed(value)
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    kind = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}
    raise UserError(f"{where}: expected {kind[hint.__name__]}, got {_shown(value)}")


def _is_empty(value: Any) -> bool:
    """Whether a name stands in YAML with nothing behind it."""
    return isinstance(value, Plain) and value == ""


def _of_text(hint: type, text: str) -> float | int | bool | None:
    """What a text says where a number or true or false is expected; None for something else."""
    if hint is float:
        return plain.number(text)
    if not isinstance(text, Plain):  # in quotes: a text is meant
        return None
    return plain.whole(text) if hint is int else plain.boolean(text)


def _shown(value: Any) -> str:
    value = typed(value)
    return f"'{value}'" if isinstance(value, (str, int, float)) else f"{value!r}"


def _join(where: str, name: str) -> str:
    return f"{where}{name}" if where.endswith((": ", "--", ".")) else f"{where}.{name}"


def _unknown(name: str, names: list[str], where: str) -> str:
    place, _, section = where.rstrip(": ").partition(": ")
    of = f" of {section}" if section else ""
    close = difflib.get_close_matches(name, names, 1, 0.6)
    if not close and not name.startswith("--"):
        sections = typing.get_type_hints(Run) | {"stages.NAME": Stage, "stages.NAME.dp": DP}
        del sections["stages"]
        elsewhere = {f.name: s for s, cls in sections.items() for f in dataclasses.fields(cls)}
        close = difflib.get_close_matches(name, list(elsewhere), 1, 0.7)
        close = [f"{elsewhere[c]}.{c}" for c in close]
    hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(names)}"
    said = "" if place == "--" else f"{place}: "  # `--trian.seed` is of no section
    return f"{said}'{name}' is not a setting{of}; {hint}"


def load(path: str | Path, base: Run | None = None) -> Run:
    """Read a YAML recipe on top of `base`. Raises UserError for a missing or invalid file."""
    path = Path(path).expanduser()
    return from_dict(Run, plain.read_yaml(path, "a YAML recipe"), f"{path.name}: ", base)


def checked(run: T) -> T:
    """The same settings, with the type that each must have: for those that were set in Python.

    Raises UserError for a value of another type, and for one that is none of the choices.
    """
    place = "recipe: " if isinstance(run, Run) else f"{type(run).__name__.lower()}."
    return from_dict(type(run), to_dict(run), place)


def preset_names() -> list[str]:
    """Names of the recipes that are part of the package."""
    folder = resources.files("underpaint") / "presets"
    return sorted(
        f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")
    )


def preset(name: str) -> Run:
    """A recipe of the package by its name."""
    return from_dict(Run, plain.parse(preset_text(name), name), f"{name}.yaml: ")


def presets() -> dict[str, str]:
    """The recipes of the package: names, each with one line on what it is."""
    return {
        name: preset_text(name).splitlines()[0].removeprefix("#").strip() for name in preset_names()
    }


def preset_text(name: str) -> str:
    """The YAML of a recipe of the package, with its comments."""
    names = preset_names()
    if name not in names:
        close = difflib.get_close_matches(name, names, 1, 0.5)
        hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(names)}"
        raise UserError(f"preset '{name}' does not exist; {hint}")
    path = resources.files("underpaint") / "presets" / f"{name}.yaml"
    return path.read_text(encoding="utf-8")


def apply_flags(run: Run, flags: list[str]) -> Run:
    """Apply `--stages.whole.batch 64` or `--train.seed=1`; several values make a list."""
    values: dict[str, list[str]] = {}
    name = None
    for token in flags:
        if token.startswith("--"):
            name, _, value = token[2:].partition("=")
            values[name] = [value] if value else []
        elif name is None:
            raise UserError(f"'{token}' was not expected here; settings look like --train.seed 1")
        else:
            values[name].append(token)
    for name, items in values.items():
        parsed = [_parse_flag(item) for item in items]
        if "." not in name:
            close = difflib.get_close_matches(f"--{name}", flag_names(run), 1, 0.5)
            hint = f"did you mean '{close[0]}'?" if close else "settings look like --train.seed 1"
            raise UserError(f"'--{name}' is not a setting; {hint}")
        head, *path = name.split(".")
        if head == "stages" and path[0] not in run.stages:
            raise UserError(
                f"--{name}: the recipe has no stage '{path[0]}'; it has {', '.join(run.stages)}"
            )
        if head == "stages" and path[1:] == ["minutes"]:
            other = f"stages.{path[0]}.images"
            if not {"0", "0.0"} & {*items, *values.get(other, ["0"])}:
                raise UserError(f"--{other} and --{name}: give one of them")
        nested: Any = True if not parsed else parsed[0] if len(parsed) == 1 else parsed
        for part in reversed(path):
            nested = {part: nested}
        run = from_dict(Run, {head: nested}, "--", run)
    return run


def _parse_flag(text: str) -> Any:
    """A flag's value: `[1, 2]` and `{x: 1}` as YAML reads them, all else as a plain text."""
    if not text.startswith(("[", "{")):
        return Plain(text)
    try:
        value = plain.parse(text, "flag")
    except UserError:
        return Plain(text)
    return value if isinstance(value, (list, dict)) else Plain(text)


def flag_names(run: Run) -> list[str]:
    """All settings of `run` as flags: `--train.seed`, `--stages.whole.batch`, …"""
    names = []
    for section, value in to_dict(run).items():
        for key, item in value.items():
            names += [f"--{section}.{key}.{k}" for k in item] if section == "stages" else []
            names.append(f"--{section}.{key}")
    return names


def to_dict(config: Any) -> dict[str, Any]:
    """Plain nested values (tuples become lists), ready for YAML or JSON."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, (tuple, list)) else value

    return plain(dataclasses.asdict(config))


def flat(config: Any) -> dict[str, Any]:
    """All settings by their dotted names."""

    def found(values: dict[str, Any], place: str) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in values.items():
            name = f"{place}{key}"
            result |= (
                found(value, f"{name}.") if isinstance(value, dict) and value else {name: value}
            )
        return result

    return found(to_dict(config), "")


def to_yaml(config: Any) -> str:
    """YAML that `load` reads back to the same settings."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True, width=100)
