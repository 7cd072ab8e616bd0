"""YAML files, presets and flags into settings, and settings into YAML."""

import dataclasses
import difflib
import types
import typing
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

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
        if values.get("images") and "minutes" not in values:
            result.minutes = 0.0
        if values.get("minutes") and "images" not in values:
            result.images = 0
    return result


def _convert(hint: Any, value: Any, where: str, current: Any = None) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
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
                if item is None:  # a stage set to null is dropped from a preset's recipe
                    merged.pop(str(key), None)
                    continue
                item = _convert(args[1], item, _join(where, str(key)), merged.get(str(key)))
            merged[str(key)] = item
        return merged
    if origin is Literal:
        if not any(value == a and type(value) is type(a) for a in args):
            options = ", ".join(str(a) for a in args)
            raise UserError(f"{where}: {_shown(value)} is not one of {options}")
        return value
    if origin is tuple:
        items = list(value) if isinstance(value, (list, tuple)) else [value]
        if args[-1] is not Ellipsis and len(items) != len(args):
            raise UserError(f"{where}: expected {len(args)} values, got {_shown(value)}")
        return tuple(_convert(args[0], item, where) for item in items)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-4 as a string
        try:
            return float(value)
        except ValueError:
            pass
    if hint is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if hint is Any or (isinstance(value, hint) and not (hint is int and isinstance(value, bool))):
        return value
    kind = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}
    raise UserError(f"{where}: expected {kind[hint.__name__]}, got {_shown(value)}")


def _shown(value: Any) -> str:
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
    return f"{place}: '{name}' is not a setting{of}; {hint}"


def load(path: str | Path, base: Run | None = None) -> Run:
    """Read a YAML recipe on top of `base`. Raises UserError for a missing or invalid file."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a YAML recipe") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not a text file; give a YAML recipe") from None
    return from_dict(Run, _parse(text, str(path)), f"{path.name}: ", base)


def _parse(text: str, where: str) -> Any:
    try:
        values = yaml.safe_load(text)
        return {} if values is None else values  # an empty file is no settings
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        raise UserError(f"{where}: is not valid YAML{line}") from None


def preset_names() -> list[str]:
    """Names of the recipes that are part of the package."""
    folder = resources.files("underpaint") / "presets"
    return sorted(
        f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")
    )


def preset(name: str) -> Run:
    """A recipe of the package by its name."""
    return from_dict(Run, _parse(preset_text(name), name), f"{name}.yaml: ")


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
        nested: Any = True if not parsed else parsed[0] if len(parsed) == 1 else parsed
        for part in reversed(path):
            nested = {part: nested}
        run = from_dict(Run, {head: nested}, "--", run)
    return run


def _parse_flag(text: str) -> Any:
    """A flag's value as YAML reads it; all but plain values (`#fff`, a date, `a: b`) are texts."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if value is None and text in ("null", "~"):
        return None
    nested = isinstance(value, (list, dict)) and text.startswith(("[", "{"))
    return value if nested or isinstance(value, (bool, int, float)) else text


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


def to_yaml(config: Any) -> str:
    """YAML that `load` reads back to the same settings."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True, width=100)
