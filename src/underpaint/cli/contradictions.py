"""Flags, a preset or a file that contradict the recipe of the run that they would go on with."""

import argparse
import re
from pathlib import Path
from typing import Any, NamedTuple

from underpaint import config
from underpaint.errors import UserError

SETTLED = {  # when a run begins: lengths by its minutes, the rest by the machine and the images
    *("stages.*.images", "stages.*.minutes", "stages.*.warmup", "train.precision"),
    *("train.check_every", "train.sample_every", "train.check_images", "train.microbatch"),
    *("data.size", "space.patch"),
}
NAMED = 3  # of several differences, beside the first


def check_saved(
    folder: Path, args: argparse.Namespace, given: dict[str, Any], others: list[str]
) -> None:
    """Raise UserError where flags, a preset or a file contradict the recipe that the run has."""
    path = folder / "config.yaml"
    if not path.is_file():
        return  # `api.resume` says it
    saved = config.load(path)
    flagged = saved
    for name, value in given.items():
        if name != "data.source":
            section, _, key = name.partition(".")
            flagged = config.from_dict(config.Run, {section: {key: value}}, "--", flagged)
    asked = config.apply_flags(flagged, others)
    measured: tuple[Any, ...] = ("auto", -1, 0, [])
    different = [
        change
        for change in _differences(asked, saved)
        if not (_settled(change.name) and change.asked in measured)
        and not change.name.endswith(".minutes")
    ]
    if args.preset or args.config:
        base = config.preset(args.preset) if args.preset else None
        named = config.load(args.config, base) if args.config else base
        flags = {change.name for change in different} | given.keys()
        recipe = f"--config {args.config}" if args.config else f"--preset {args.preset}"
        different += [
            change._replace(source=recipe)
            for change in _differences(named, saved)
            if not _settled(change.name) and change.name not in flags | {"data.source"}
        ]
    if args.start is not None:
        from underpaint.model_folder import pinned
        from underpaint.training import provenance

        start, began = str(pinned(args.start, args.revision)), provenance.recorded(folder)["start"]
        if began != start:
            different.append(Change("from", start, began))
    if different:
        change = different[0]
        flag = f"--{_flag(change.name) if change.name in given else change.name}"
        where = flag if change.source is None else f"{change.source}: {change.name}"
        further = ", ".join(other.name for other in different[1 : 1 + NAMED])
        more = f" and {n} more" if (n := len(different) - 1 - NAMED) > 0 else ""
        verb = "differ" if len(different) > 2 else "differs"
        beside = f" ({further}{more} {verb} too)" if further else ""
        raise UserError(
            f"{where} {_shown(change.asked)}: the run in {folder} has {_shown(change.saved)}"
            f"{beside}, and a resumed run keeps its settings; leave that out, or begin another run "
            "with other settings (--from to start with these weights)"
        )


def _flag(name: str) -> str:
    """`remove-duplicates` of `data.remove_duplicates`, which has a flag of its own."""
    return name.rpartition(".")[2].replace("_", "-")


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value)) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


class Change(NamedTuple):
    """A setting by its dotted name, as it is asked for and as a run has it."""

    name: str
    asked: Any
    saved: Any
    source: str | None = None  # what asked for it, where that is no flag


def _settled(name: str) -> bool:
    return re.sub(r"^stages\.\w+", "stages.*", name) in SETTLED


def _differences(asked: Any, saved: config.Run) -> list[Change]:
    """The settings that differ, of stages that the run has."""
    one, two = (config.flat(run) for run in (asked, saved))
    names = [name for name in one if not name.startswith("stages.") or name in two]
    return [Change(n, one[n], two.get(n)) for n in names if one[n] != two.get(n)]
