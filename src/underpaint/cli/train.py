"""`underpaint train`, and its halves `pretrain` and `finetune`: one loop, other stages."""

import argparse
import dataclasses
import os
import re
import shlex
from pathlib import Path
from typing import Any

from underpaint import config
from underpaint.cli.contradictions import check_saved
from underpaint.cli.parser import (
    Parser,
    add_output,
    console,
    print_facts,
    print_json,
    print_table,
    width,
)
from underpaint.cli.settings import REVISION, add_setting, as_help
from underpaint.config.plain import Plain
from underpaint.errors import UserError, said_once
from underpaint.handing_on import handing_on
from underpaint.progress import doing

SHORT = {  # flags of their own
    "--data": "data.source",
    "--size": "data.size",
    "--channels": "data.channels",
    "--held-out": "data.held_out",
    "--max-pixels": "data.max_pixels",
    "--levels": "data.levels",
    "--remove-duplicates": "data.remove_duplicates",
    "--audit-split": "data.audit_split",
    "--labels": "network.labels",
    "--compile": "train.compile",
    "--track": "train.track",
    "--stop": "train.stop",
}
DEFAULT = {"train": "default", "pretrain": "masked", "finetune": "default"}  # presets
LENGTH = re.compile(r"--stages\.\w+\.(images|minutes)\b")
ASSUMED = (64, 64)  # pixels, where the dry run of a named preset has no size


def arguments(parser: Parser, verb: str) -> None:
    """Flags; dotted settings are left over and go to `config.apply_flags`."""
    parser.set_defaults(verb=verb)
    for flag, setting in SHORT.items():
        add_setting(parser, flag, setting, "the recipe's", dest=setting)
    add = parser.add_argument
    add("--preset", metavar="NAME", help=f"recipe of the package (default: {DEFAULT[verb]})")
    add("--config", metavar="FILE", help="recipe in YAML; with --preset, it changes that preset")
    add("--out", metavar="RUN", help="folder of the run (default: runs/ and the name of DATA)")
    add(
        "--from",
        dest="start",
        metavar="RUN",
        help=(
            "start from the weights of a run, a checkpoint, pretrained:NAME or ORG/NAME, and "
            "with their network, unless --preset or --config says otherwise"
        ),
    )
    add("--revision", metavar="REV", help=REVISION)
    add(
        "--minutes",
        type=float,
        metavar="M",
        help="total time, report included, divided among the stages",
    )
    add("--images", type=int, metavar="N", help="with --resume: images to add to a finished run")
    add(
        "--microbatch",
        metavar="N|auto",
        help=(
            "images per forward pass (default: the recipe's); auto: halved until they fit "
            "into memory"
        ),
    )
    add("--timeout", type=float, metavar="M", help="minutes to wait for other processes (torchrun)")
    add("--resume", action="store_true", help="continue the run in --out, with its saved settings")
    add("--overwrite", action="store_true", help="replace the run in --out")
    add("--dry-run", action="store_true", help="show what the run would cost, without training")
    add_output(parser)
    parser.settings = config.flag_names(config.preset(DEFAULT[verb]))
    parser.epilog = as_help(width())


def run(args: argparse.Namespace, others: list[str]) -> None:
    with handing_on():
        _run(args, others)


def _run(args: argparse.Namespace, others: list[str]) -> None:
    if args.resume:
        _resume(args, others)
        return
    if args.images is not None:
        raise UserError(
            "--images adds to a finished run: give --resume too, or --stages.NAME.images"
        )
    with doing("starting"):  # what fits patches to the images is imported, too
        chosen = recipe(args, others)
    if args.dry_run:
        _dry_run(chosen, args)
        return
    for place, images in _sources(chosen).items():
        if not images:
            flag = "--data" if place == "data.source" else f"--{place}"
            raise UserError(f"no images were given; add {flag} FOLDER")
    out = Path(args.out or _default_out(chosen, args.verb))
    with doing("starting"):
        from underpaint import api

    how = {"start": args.start, "overwrite": args.overwrite, "quiet": args.quiet}
    folder = api.train(chosen, out, began=args.began, **how)
    _finish(folder, args)


def recipe(args: argparse.Namespace, others: list[str]) -> config.Run:
    """The recipe that preset, file and flags describe, with the stages of this verb."""
    base = config.preset(args.preset) if args.preset else None
    unnamed = not (args.preset or args.config)
    if args.config:
        chosen = config.load(args.config, base)
    else:
        chosen = base or config.preset(_default(args))
    if args.verb == "finetune" and not args.start and not args.dry_run:
        raise UserError("finetune needs --from RUN, a checkpoint or pretrained:NAME; or use train")
    if args.revision and not args.start:
        raise UserError("--revision is of the model on the Hub that --from names; add that")
    if args.start:
        from underpaint.model_folder import pinned

        args.start = str(pinned(args.start, args.revision))
    if args.start and unnamed:
        from underpaint.training import adopt

        chosen = adopt(chosen, args.start)
    for name, value in _settings(args).items():
        section, _, key = name.partition(".")
        chosen = config.from_dict(config.Run, {section: {key: value}}, "--", chosen)
    chosen = config.apply_flags(chosen, others)
    named = any(flag.partition("=")[0] == "--space.patch" for flag in others)
    if args.verb == "train" and unnamed and not args.start and not named:
        chosen = _fitted(chosen, args)
    if args.verb != "train":
        from underpaint.api import only_stages

        chosen = only_stages(chosen, masked=args.verb == "pretrain")
    if args.minutes is not None:
        lengths = [f.partition("=")[0] for f in others if LENGTH.match(f)]
        if lengths:
            raise UserError(f"--minutes and {lengths[0]}: give one of them")
        from underpaint.training.minutes import within

        chosen = within(chosen, args.minutes)
    with said_once():
        config.check(chosen)
    return chosen


def _default(args: argparse.Namespace) -> str:
    """The preset where none is named: sealed data have masks, which `masked` can take."""
    from underpaint.data.source import is_sealed

    source = vars(args)["data.source"]
    return "masked" if source and is_sealed(source) else DEFAULT[args.verb]


def _fitted(run: config.Run, args: argparse.Namespace) -> config.Run:
    """The default recipe with patches for images of this size, as `plan` has them."""
    from underpaint.data.source import is_sealed
    from underpaint.planning.candidates import patch_for

    size = config.image_size(run.data.size)
    if size is None and run.data.source and not is_sealed(run.data.source):
        from underpaint import data

        size = data.prepare(run.data).size
    if size is None or is_sealed(run.data.source) or run.space.kind != "pixels":
        return run
    space = dataclasses.replace(run.space, patch=patch_for(run, size))
    return dataclasses.replace(run, space=space)


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that are given by flags of their own, by their dotted names."""
    found = {name: v for name, v in vars(args).items() if "." in name and v is not None}
    if args.microbatch is not None:
        found["train.microbatch"] = -1 if args.microbatch == "auto" else Plain(args.microbatch)
    if args.timeout is not None:
        found["train.timeout"] = args.timeout
    return found


def _sources(run: config.Run) -> dict[str, str]:
    """Where each stage's images come from: {setting: source}."""
    found = {}
    for name, stage in run.stages.items():
        if stage.data is None:
            found["data.source"] = run.data.source
        else:
            found[f"stages.{name}.data.source"] = stage.data.source
    return found


def _default_out(run: config.Run, verb: str) -> str:
    name = name_of(run.data.source or next(iter(_sources(run).values()))) or "run"
    return str(Path("runs") / (name if verb == "train" else f"{name}-{verb}"))


def name_of(source: str) -> str:
    """A name for files that are about these images."""
    name = (
        source.replace(":", "-")
        if source.startswith("avatars:")
        else Path(source).expanduser().resolve().stem
    )
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")


def _resume(args: argparse.Namespace, others: list[str]) -> None:
    if args.overwrite or args.dry_run:
        raise UserError("--resume goes on with a run; it cannot be with --overwrite or --dry-run")
    given = _settings(args)
    source = given.get("data.source", "")
    if args.out is None and not source:
        raise UserError("--resume needs --out RUN, the folder of the run to go on with")
    out = args.out or _default_out(config.Run(data=config.Data(source=source)), args.verb)
    check_saved(Path(out).expanduser(), args, given, others)
    more = {"images": args.images, "minutes": args.minutes}
    for name, value in more.items():
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"--{name} {value:g}: give a number above 0")
    with doing("starting"):
        from underpaint import api

    how = {name: value for name, value in more.items() if value is not None}
    how |= {"data": args_data} if (args_data := given.get("data.source")) else {}
    folder = api.resume(out, quiet=args.quiet, began=args.began, **how)
    _finish(folder, args)


def _finish(folder: Path, args: argparse.Namespace) -> None:
    """Say where everything is; of several processes the first says it."""
    if os.environ.get("RANK", "0") != "0":
        return
    from underpaint.evaluation import records
    from underpaint.evaluation.verdict import verdict

    page, found = folder / "report.html", records.read(folder / "metrics.jsonl")
    sentences = " ".join(verdict(found))
    if not args.json:
        sample = f"underpaint sample {shlex.quote(str(folder))} -n 64"
        print(f"run      {folder}\nreport   {page}\nsample   {sample}")
        if sentences:
            print_facts({"verdict": sentences})
        return
    last = {r["kind"]: r for r in found if r["kind"] != "check" or r["mask"] == "whole"}
    stage, check = last.get("stage", {}), last.get("check", {})
    checked = ("train_mean", "held_out_mean", "held_out", "wiener", "below_wiener")
    print_json(
        {
            "run": str(folder),
            "report": str(page) if page.exists() else None,
            "images": stage.get("images"),
            "seconds": stage.get("seconds"),
            "flops": stage.get("flops"),
            **{key: check.get(key) for key in checked},
            "verdict": sentences or None,
        }
    )


# --- what it would cost ------------------------------------------------------------------------


def _dry_run(run: config.Run, args: argparse.Namespace) -> None:
    from underpaint.training import cost

    size, channels = config.image_size(run.data.size), config.CHANNELS[run.data.channels]
    classes = 0
    if run.data.source:
        from underpaint import data
        from underpaint.sealed import format as sealed

        dataset: data.Dataset | sealed.Sealed
        if sealed.is_sealed(run.data.source):
            dataset = sealed.read(run.data.source)
        else:
            dataset = data.prepare(run.data)
        size, channels, classes = dataset.size, dataset.channels, len(dataset.label_names)
        config.check_labels(run, run.data.source, dataset.label_names)
    if size is None and not args.preset:
        raise UserError("--dry-run without images needs their --size")
    found = cost.describe(run, size or ASSUMED, channels, classes)
    found["assumed"] = size is None
    print_json(found) if args.json else print_cost(found)


def print_cost(found: dict[str, Any]) -> None:
    """A table of what `cost.describe` found."""
    height, wide = found["size"]
    out = console()
    out.print(f"{found['parameters']:,} parameters, images of {height}×{wide}×{found['channels']}")
    if found.get("assumed"):
        out.print("no images and no --size were given, so a size is assumed")
    columns = ["stage", "mask", "hidden", "patches", "GFLOP/image", "cost", "length"]
    rows = [
        [
            stage["name"],
            stage["mask"],
            f"{stage['rate']:.1%}",
            f"{stage['visible']:.4g} of {stage['patches']}",
            f"{stage['flops_per_image'] / 1e9:,.4g}",
            f"1/{stage['times_cheaper']:.3g}",
            f"{stage['images']:,} images" if stage["images"] else f"{stage['minutes']:.3g} min",
        ]
        for stage in found["stages"]
    ]
    print_table(columns, rows, words=2)
    if any(stage["minutes"] for stage in found["stages"]):
        out.print("minutes are in all: start, checks, sample grids and report are in them")
    for stage in found["stages"]:
        if not stage["saves"]:
            out.print(
                f"stage {stage['name']}: this network computes on hidden patches too, so mask "
                f"{stage['mask']} saves nothing; mask crop does"
            )
    for stage in found["stages"]:
        if share := stage["optimizer_flops_per_image"] / stage["flops_per_image"]:
            out.print(f"stage {stage['name']}: {share:.1%} of its FLOPs are the optimiser's")
    if found["flops"] is not None:
        from underpaint.report.summary import flops

        out.print(f"training: {flops(found['flops'])} in all")
    out.print(f"memory: {found['memory'] / 2**30:.2f} GiB, beside what Python and torch take")
