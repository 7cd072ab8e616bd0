"""results.json of a study: a line for each run, with its settings and what was measured.

```
settings   ARM: the settings of the arm's first run, in full
timed      ARM: those with which seconds_an_image was measured
runs       the runs that are reported
trials     those of tuning
earlier    those that the study no longer asks for
```

Of a run: arm, point, seed, run (its name), settings, protocol, score, images, flops, seconds. Its
settings, and those timed, are what differs from the arm's, by dotted names.

A run that stands here with the settings and the protocol that the study has now is not run again.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from underpaint import config
from underpaint.bounded import read_json
from underpaint.errors import UserError

PARTS = ("runs", "trials", "earlier")
ROWS = {"settings", "timed", "units"}  # names whose values have a line each, as items of a list

Values = dict[str, Any]


def read(path: Path) -> Values:
    """What the file holds; nothing where there is none."""
    if not path.is_file():
        return {}
    try:
        return dict(read_json(path))
    except (OSError, ValueError, TypeError):
        raise UserError(f"{path}: is not valid JSON; restore it, or give another --out") from None


def is_record(path: Path) -> bool:
    """Whether the file is what a study wrote, wherever it was copied or checked out."""
    try:
        return {"underpaint", "study", "runs"} <= read(path).keys()
    except (UserError, TypeError):
        return False


def runs_of(results: Values) -> dict[str, Values]:
    """Every run by its name, with its settings in full."""
    return {
        run["run"]: run | {"settings": changed(results["settings"][run["arm"]], run["settings"])}
        for part in PARTS
        for run in results.get(part, [])
        if "settings" in run  # not of an older version
    }


def of_arms(parts: Values, timed: Values) -> Values:
    """`parts`, lists of runs with their settings in full, and `timed`, as the file has them."""
    settings: Values = {}
    for runs in parts.values():
        for run in runs:
            settings.setdefault(run["arm"], run["settings"])
    return {
        "settings": settings,
        "timed": {arm: differences(settings[arm], values) for arm, values in timed.items()},
        **{
            part: [
                run | {"settings": differences(settings[run["arm"]], run["settings"])}
                for run in runs
            ]
            for part, runs in parts.items()
        },
    }


def timed_stages(results: Values) -> Values:
    """The stages of each arm whose speed was measured."""
    settings = results.get("settings", {})
    timed = results.get("timed", {})
    return {arm: changed(settings[arm], given)["stages"] for arm, given in timed.items()}


def differences(base: Any, values: Any, name: str = "") -> Values:
    """What `values` has other than `base`: nested values by dotted names; "" where all differs."""
    alike = isinstance(values, dict) and isinstance(base, dict) and list(values) == list(base)
    if alike and not any("." in key for key in values):
        start = f"{name}." if name else ""
        each = (differences(base[key], values[key], start + key) for key in values)
        return {key: value for found in each for key, value in found.items()}
    return {} if values == base else {name: values}


def changed(base: Values, given: Values) -> Values:
    """The inverse of `differences`: `base` with the values of dotted names `given`."""
    values = {"": json.loads(json.dumps(base))}
    for name, value in given.items():
        place, *path = values, *([""] if name else []), *name.split(".")
        for part in path[:-1]:
            place = place[part]
        place[path[-1]] = value
    return dict(values[""])


def same(began: config.Run, run: config.Run) -> bool:
    """Whether a run was begun by the recipe `run`: with the precision that `auto` was there.

    It was read, so that a setting that is new since then stands at its default.
    """
    if run.train.precision == "auto":
        began = dataclasses.replace(began, train=dataclasses.replace(began.train, precision="auto"))
    return config.to_yaml(began) == config.to_yaml(run)


def text(value: Any) -> str:
    """JSON that is short and readable: a line for each name, and for each run."""
    return _text(value, "\n") + "\n"


def _text(value: Any, end: str, rows: bool = False) -> str:
    """`rows`: whether each item of `value` gets one line, however long, as those of a list do."""
    items = list(value.values() if isinstance(value, dict) else value if _nested(value) else [])
    if not any(map(_nested, items)):
        return _line(value)
    inner = end + " "
    if isinstance(value, dict):
        lines = [
            f"{_line(str(name))}: {_line(item) if rows else _text(item, inner, name in ROWS)}"
            for name, item in value.items()
        ]
        return "{" + inner + f",{inner}".join(lines) + end + "}"
    return "[" + inner + f",{inner}".join(map(_line, items)) + end + "]"


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _nested(value: Any) -> bool:
    return isinstance(value, (dict, list, tuple))
