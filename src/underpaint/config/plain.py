"""YAML as nested plain values, in which a scalar stays the text that was written.

What `2024_01`, `007`, `12:30` or `no` means is decided where it is known what is expected (see
`reading`): a folder's name stays one. Keys that stand twice are refused, and so is what would take
minutes or all memory: many references to one anchor, deep nesting, a file of more than LARGEST.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from underpaint.bounded import read_regular
from underpaint.errors import UserError

LARGEST = 1 << 20  # bytes
VALUES = 100_000  # after anchors are followed
NULL = ("", "~", "null", "Null", "NULL")
TRUE, FALSE = ("true", "yes", "on"), ("false", "no", "off")
WHOLE = re.compile(r"[-+]?[0-9][0-9_]*")
MERGE = "tag:yaml.org,2002:merge"


class Plain(str):
    """A scalar without quotes, as it was written."""

    __slots__ = ()


def parse(text: str, where: str) -> Any:
    """Nested dicts, lists and texts of a YAML text; `where` names it in what is raised.

    Raises UserError for what is not valid, keys that stand twice, and what is too large.
    """
    if len(text) > LARGEST:
        raise UserError(f"{where}: is larger than {LARGEST >> 20} MiB, as no settings are")
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        return {} if node is None else _value(node, where, [VALUES])
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        raise UserError(f"{where}: is not valid YAML{line}") from None
    except RecursionError:
        raise UserError(f"{where}: is nested too deeply for settings") from None


def read_yaml(path: Path, what: str) -> Any:
    """`parse` of a file; `what` it should be. Raises UserError if it cannot be read."""
    try:
        text = read_regular(path, LARGEST).decode("utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give {what}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not a text file; give {what}") from None
    return parse(text, str(path))


def _value(node: yaml.Node, where: str, left: list[int]) -> Any:
    left[0] -= 1
    if left[0] < 0:
        raise UserError(f"{where}: holds more than {VALUES:,} values when its anchors are followed")
    if isinstance(node, yaml.ScalarNode):
        return Plain(node.value) if node.style is None else str(node.value)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, where, left) for item in node.value]
    found: dict[str, Any] = {}
    merged: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for key, item in node.value:
        value = _value(item, where, left)
        line = key.start_mark.line + 1
        if key.tag == MERGE:
            for part in reversed(value if isinstance(value, list) else [value]):
                if isinstance(part, dict):
                    merged |= part
            continue
        if not isinstance(key, yaml.ScalarNode):
            raise UserError(f"{where}: is not valid YAML at line {line}: a name must be a text")
        if key.value in found:
            raise UserError(
                f"{where}: '{key.value}' is given twice, at lines {lines[key.value]} and {line}; "
                "keep one of them"
            )
        found[key.value], lines[key.value] = value, line
    return merged | found


def is_null(value: Any) -> bool:
    """Whether nothing is meant where nothing can be."""
    return value is None or (isinstance(value, Plain) and value in NULL)


def whole(text: str) -> int | None:
    """A whole number, or None."""
    return int(text.replace("_", "")) if WHOLE.fullmatch(text) and len(text) < 40 else None


def number(text: str) -> float | None:
    """A number, or None."""
    try:
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:
        return None


def boolean(text: str) -> bool | None:
    """True or false, or None."""
    return text.lower() in TRUE if text.lower() in TRUE + FALSE else None


def typed(value: Any) -> Any:
    """What is meant where nothing is known of what is expected: a number, true, null, a text."""
    if isinstance(value, dict):
        return {str(key): typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [typed(item) for item in value]
    if not isinstance(value, Plain):
        return value
    if value in NULL:
        return None
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    if re.fullmatch(r"[-+]?(0|[1-9][0-9]*)", value):
        return whole(value)
    looks = re.fullmatch(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=e))(e[-+]?[0-9]+)?", value, re.I)
    looks = looks or re.fullmatch(r"[-+]?\.inf|\.nan", value, re.I)
    found = number(value) if looks else None
    return str(value) if found is None else found
