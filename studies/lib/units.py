"""A study's work in units: each is done once, by whichever process comes first, and kept.

    WORK/UNIT/result.json       what a finished unit measured
    WORK/UNIT.lock              held by the process that works on it; free when that process ends

The same command may run in several processes at once, one core each, and again after any of them
was stopped: finished units are left alone, and begun ones go on from their checkpoints.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = [
    "EULER",
    "INDEPENDENT",
    "NotYet",
    "base",
    "committed",
    "conduct",
    "gather",
    "heads",
    "made",
    "main",
    "restore",
    "shared",
    "spent",
    "trained",
    "write_json",
]

PAUSE = 10.0  # seconds
# how presets drew training times before studies/times; studies begun then keep to it
INDEPENDENT = {"time": "logit-normal", "stratified": False}
# how presets drew samples when studies were measured; studies/samplers/run.py asks for a better way
EULER = {"sampler": "euler", "steps": 30}

Result = dict[str, Any]


class NotYet(Exception):
    """A unit needs the result of another that is not done."""


def base(name: str) -> Any:
    """The recipe `name` as it was when studies were measured with it; else the preset."""
    from underpaint import config

    kept = Path(__file__).parent / "recipes" / f"{name}.yaml"
    return config.load(kept) if kept.is_file() else config.preset(name)


def conduct(
    names: Iterable[str],
    work: Path,
    do: Callable[[str], Result],
    write: Callable[[], None],
) -> int:
    """Do what is left of the units `names`; `write` is called after each one. Returns an exit code.

    `do` raises NotYet for a unit whose turn has not come; it is asked for again after the others.
    One that raises UserError, such as for weights that are not here, is said and left to another
    call, which goes on with it.
    """
    from underpaint.errors import Interrupted, UserError

    left, code = list(names), 0
    while left:
        before = len(left)
        for name in list(left):
            path = work / name / "result.json"
            with _claimed(work / f"{name}.lock") as mine:
                if not mine:
                    continue
                if path.is_file():
                    left.remove(name)
                    continue
                try:
                    result = do(name)
                except NotYet:
                    continue
                except UserError as error:
                    print(f"{name}: {error}", flush=True)
                    left.remove(name)
                    code = 1
                    continue
                except (Interrupted, KeyboardInterrupt):  # in training, in scoring
                    print(f"stopped in {name}; the same command goes on with it")
                    return 130
                write_json(path, result)
            left.remove(name)
            told = {key: value for key, value in result.items() if isinstance(value, (int, float))}
            print(name, json.dumps(told), flush=True)
            write()
        if len(left) == before:  # another process works on what they wait for
            time.sleep(PAUSE)
    write()
    return code


def main(
    about: str,
    names: Iterable[str],
    out: Path,
    do: Callable[[str, Path, float], Result],
    write: Callable[[Path, Path, float], None],
    table: Callable[[list[str]], str] | None = None,
) -> int:
    """The command line of a study: units that `out` does not hold yet, one thread; an exit code.

    `about`: the docstring, whose first line is the help. `do` gets a unit, the folder of the runs
    and the share of the lengths; `write` the folder, the JSON and the share. `table`: what there
    is to do of some units, in words, for `--table`.
    """
    import torch

    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    names, work = list(names), Path("runs") / out.parent.name
    parser.add_argument("--only", nargs="+", default=names, choices=names, metavar="UNIT")
    parser.add_argument("--begins", default="", help="of these, units whose names begin so")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the lengths")
    parser.add_argument("--work", type=Path, default=work, help="runs")
    parser.add_argument("--out", type=Path, default=out, help="results")
    if table:
        parser.add_argument("--table", action="store_true", help="say what there is to do, and end")
    given = parser.parse_args()
    chosen = [name for name in given.only if name.startswith(given.begins)]
    if table and given.table:
        print(table(chosen))
        return 0
    torch.set_num_threads(1)
    restore(committed(given.out, given.scale).get("units", {}), given.work)
    return conduct(
        chosen,
        given.work,
        lambda unit: do(unit, given.work, given.scale),
        lambda: write(given.work, given.out, given.scale),
    )


def trained(run: Any, folder: Path, start: str | None = None) -> Result:
    """Do what is left of `run` in `folder`; `start`: the weights it begins with.

    Returns what `spent` does.
    """
    from underpaint import api

    if (folder / "checkpoints" / "LATEST").is_file():
        api.resume(folder, quiet=True, write_report=False)
    else:
        api.train(run, folder, start=start, overwrite=True, quiet=True, write_report=False)
    return spent(folder)


def heads(work: Path) -> str:
    """The run of a DiT on drawn heads that the package had when studies began with its weights.

    Training it takes an hour or two of one core.
    """
    return shared(base("heads"), work / "heads")


def shared(run: Any, folder: Path) -> str:
    """`folder`, with a run that several units begin with, trained where it is not there.

    Raises NotYet where another process is at it.
    """
    with _claimed(folder.with_name(f"{folder.name}.lock")) as mine:
        if not mine:
            raise NotYet
        if not (folder / "result.json").is_file():
            write_json(folder / "result.json", trained(run, folder))
    return str(folder)


def spent(folder: Path) -> Result:
    """Images, training FLOPs and seconds of a finished run, and the seconds of each stage."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    ends = {m["stage"]: m for m in found if m["kind"] == "stage" and m["event"] == "end"}
    last = list(ends.values())[-1]
    seconds, before = {}, 0.0
    for name, end in ends.items():
        seconds[name], before = end["seconds"] - before, end["seconds"]
    told = {key: last[key] for key in ("images", "flops", "seconds")}
    return told | {"stage_seconds": seconds}


def gather(
    names: Iterable[str], work: Path, settings: Callable[[str], Result] | None = None
) -> dict[str, Result]:
    """The results of the units that are done, each with the `settings` that its name stands for."""
    paths = {name: work / name / "result.json" for name in names}
    return {
        name: ({"settings": settings(name)} if settings else {})
        | json.loads(path.read_text(encoding="utf-8"))
        for name, path in paths.items()
        if path.is_file()
    }


def committed(out: Path, scale: float) -> Result:
    """What `out` holds of a study at this `scale` of its lengths; nothing where it is not there.

    Ends the program where it is of another scale, whose units cannot stand beside these.
    """
    if not out.is_file():
        return {}
    told = dict(json.loads(out.read_text(encoding="utf-8")))
    if told["scale"] != scale:
        raise SystemExit(f"{out} is of --scale {told['scale']:g}; give another --out and --work")
    return told


def restore(results: dict[str, Result], work: Path) -> None:
    """Take units with committed results as done, on a machine that has not done them."""
    for name, result in results.items():
        path = work / name / "result.json"
        if not path.is_file():
            write_json(path, result)


def made() -> Result:
    """What a study was made with, for its JSON."""
    import torch

    from underpaint import __version__
    from underpaint.hardware import use_bf16

    bf16 = use_bf16("auto", torch.device("cpu"))
    return {
        "underpaint": __version__,
        "torch": torch.__version__,
        "precision": "bf16" if bf16 else "fp32",
    }


def write_json(path: Path, value: Any) -> None:
    """Readable and short: a line for each unit."""
    from underpaint.compare import record

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(record.text(value), encoding="utf-8")


@contextmanager
def _claimed(lock: Path) -> Iterator[bool]:
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
