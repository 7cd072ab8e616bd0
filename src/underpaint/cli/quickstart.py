"""`underpaint quickstart`: the whole idea on two embedded sets of avatars, in minutes on a CPU.

Three runs of one small network, in one report: training on `lorelei`; the same weights taught
another style, `pixel-art`, from 1,000 images; and that style from scratch on as many of them.
"""

import argparse
import dataclasses
import shlex
import sys
from pathlib import Path

from underpaint import config
from underpaint.cli.parser import Parser, print_json
from underpaint.errors import Interrupted, RunFailed, UserError
from underpaint.progress import doing

MINUTES = 6.0
SHARES = {"main": 0.8, "transfer": 0.09, "scratch": 0.09}  # of the minutes; the rest: one report


def arguments(parser: Parser, verb: str) -> None:
    add = parser.add_argument
    add(
        "--minutes",
        type=float,
        default=MINUTES,
        help="total time, report included (default: %(default)s)",
    )
    add("--out", default="runs/quickstart", metavar="RUN", help="folder (default: %(default)s)")
    add("--seed", type=int, default=0, help="default: %(default)s")
    add("--resume", action="store_true", help="continue an interrupted quick start")
    add("--overwrite", action="store_true", help="replace the runs in --out")
    add("--json", action="store_true", help="print one JSON object on stdout")


def run(args: argparse.Namespace, others: list[str]) -> None:
    if args.resume and args.overwrite:
        raise UserError("--resume goes on with what is there; it cannot be with --overwrite")
    page = train(args.out, args.minutes, args.seed, args.overwrite, args.resume, args.began)
    grids = sorted(str(path) for path in (Path(args.out) / "samples").glob("*.png"))
    web = Path(args.out) / "web"
    if args.json:
        made = str(web) if web.is_dir() else None
        print_json({"run": args.out, "report": str(page), "samples": grids, "web": made})
        return
    print(f"\nsamples  {grids[-1] if grids else args.out}\nreport   {page}")
    first = "" if web.is_dir() else "pip install 'underpaint[onnx]' && "
    print(f"browser  {first}underpaint app {shlex.quote(args.out)}")


def recipes(minutes: float, seed: int) -> dict[str, config.Run]:
    """The three recipes for a quick start of `minutes` in all."""
    if not 0 < minutes < float("inf"):
        raise UserError(f"--minutes {minutes:g}: give a positive number of minutes")
    main = config.preset("quickstart")
    main.train.seed = seed
    if minutes < 1:  # a trial: images shall not take longer than the training
        main.sampling.steps = 10
    whole_minutes = sum(stage.minutes for stage in main.stages.values())
    for stage in main.stages.values():
        stage.minutes *= SHARES["main"] * minutes / whole_minutes
    target = dataclasses.replace(main.data, source="avatars:pixel-art", limit=1000)
    length = SHARES["transfer"] * minutes
    short = dataclasses.replace(main.last, minutes=length, keep_optimizer=False)
    transfer = dataclasses.replace(main, data=target, stages={"whole": short})
    return {"main": main, "transfer": transfer, "scratch": dataclasses.replace(transfer)}


def train(
    out: str | Path,
    minutes: float,
    seed: int = 0,
    overwrite: bool = False,
    resume: bool = False,
    began: float | None = None,
) -> Path:
    """Train all three into `out`, `out/transfer` and `out/scratch`; returns the report's path.

    `resume`: go on where one stopped. `began`: when `minutes` began, as of `api.train`.
    Raises UserError for wrong use, Interrupted after Ctrl-C.
    """
    with doing("starting"):
        from underpaint import api, report
        from underpaint.evaluation.as_seen import as_seen
        from underpaint.io import numbered
        from underpaint.training.checkpointing import RunFolder

    out = Path(out).expanduser()
    parts = recipes(minutes, seed)
    folders = {"main": out, "transfer": out / "transfer", "scratch": out / "scratch"}
    if resume and not (out / "config.yaml").exists():
        raise UserError(f"{out}: holds no quick start to go on with; leave --resume out")
    # the others may have been stopped before their first checkpoint: then they begin anew
    begun = {n: resume and bool(numbered(f / "checkpoints")) for n, f in folders.items()}
    begun["main"] = resume
    overwrite |= resume
    for name, folder in folders.items():
        if not begun[name]:
            RunFolder(folder).check(overwrite)
    for folder in (folders["transfer"], folders["scratch"]):
        if not resume and folder.exists():  # of an earlier quick start: none to resume with this
            earlier = RunFolder(folder)
            earlier.create(overwrite)
            earlier.unlock()
    for name, recipe in parts.items():
        if name == "scratch" and not begun[name]:
            transfer = as_seen(
                config.load(folders["transfer"] / "config.yaml"), folders["transfer"]
            )
            recipe.stages, recipe.train = transfer.stages, transfer.train
        try:
            if begun[name]:
                api.resume(folders[name], write_report=False)
                continue
            api.train(
                recipe,
                folders[name],
                start=str(out) if name == "transfer" else None,
                overwrite=overwrite or name != "main",
                write_report=name == "main",  # from the start; that of all three takes its place
                began=began if name == "main" else None,
            )
        except Interrupted:
            again = f"underpaint quickstart --resume --minutes {minutes:g} --out "
            again += shlex.quote(str(out))
            raise Interrupted(f"go on with all of the quick start: {again}") from None
    _write_web(out)
    also = [
        ("transfer to 1,000 images of another style", folders["transfer"]),
        ("the same images from scratch", folders["scratch"]),
    ]
    with doing("writing the report"):
        return report.build(out, title="Quick start", also=also)


def _write_web(run: Path) -> None:
    """The page that draws in the browser, if what writes it is installed."""
    from underpaint.interop import onnx, web

    if onnx.missing():
        return
    try:
        with doing("writing the page that draws"):
            web.made(run)
    except (UserError, RunFailed) as error:  # the runs are whole: their report comes all the same
        print(f"no page for the browser: {error}", file=sys.stderr)
