"""`underpaint plan`: which recipe, for these images, this machine and this budget."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from underpaint import config
from underpaint.cli.parser import Bar, Parser, add_output, console, print_json, print_table
from underpaint.cli.settings import add_images, images_of
from underpaint.cli.train import name_of
from underpaint.errors import UserError

if TYPE_CHECKING:
    from underpaint.planning.plan import Plan

__all__ = ["arguments", "run"]

LEAST = 3  # times what measuring takes
CHOICES = ("patch ", "network:", "batch ")  # reasons that one has to ask for


def arguments(parser: Parser, verb: str) -> None:
    add = parser.add_argument
    add("data", metavar="DATA", help="images, as `prepare` reads them")
    add_images(parser, ("size", "channels"))
    add(
        "--budget",
        default="1h",
        metavar="TIME",
        help="time for training: 45min, 24h, 2d, 1h30m (default: %(default)s)",
    )
    add(
        "--device",
        default="auto",
        metavar="DEVICE",
        help="auto, cpu, cuda, mps: measured here; or a GPU that is not here, by its data sheet: "
        "h100, a100-80, rtx-4090, l4 … (default: %(default)s)",
    )
    add(
        "--seconds",
        type=float,
        default=20.0,
        metavar="S",
        help="for measuring this machine (default: %(default)g)",
    )
    add(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="plan with torch.compile (default: on a CUDA GPU)",
    )
    add("--out", metavar="FILE", help="recipe to write (default: plan-, DATA's name and the size)")
    add("--overwrite", action="store_true", help="replace the recipe in --out")
    add("--explain", action="store_true", help="say why each choice was made")
    add_output(parser)


def run(args: argparse.Namespace, others: list[str]) -> None:
    """Measure, propose, write the recipe, and print what it will take."""
    if not 0 < args.seconds < float("inf"):
        raise UserError(f"--seconds {args.seconds:g}: give a number above 0")
    wanted = images_of(args, ("size", "channels"))
    out = Path(args.out or _default_out(wanted))
    from underpaint import data
    from underpaint.data.source import is_sealed
    from underpaint.planning import candidates, machine, write
    from underpaint.planning.plan import propose, seconds_of, shown

    budget = seconds_of(args.budget)
    write.check_out(out, args.overwrite)
    known = machine.is_known(args.device)  # refuses a device that is not
    if not known and budget < LEAST * args.seconds:
        raise UserError(
            f"a budget of {shown(budget)} is too small: measuring this machine takes "
            f"{shown(args.seconds)} of it; give at least {shown(LEAST * args.seconds)}"
        )
    if wanted.size:
        candidates.patches_that_fit((wanted.size[0], wanted.size[-1]))  # refuses, before decoding
    if is_sealed(wanted.source):
        raise UserError(
            f"'{wanted.source}' is sealed, and its masks are decided; plan with the images that it "
            "was made of"
        )
    with Bar("decoding", quiet=args.quiet) as bar:
        dataset = data.prepare(wanted, progress=bar)
    images = candidates.Images(
        source=wanted.source,
        count=len(dataset.train_ids),
        held_out=len(dataset.held_out_ids),
        size=dataset.size,
        channels=dataset.channels,
        classes=len(dataset.label_names),
    )
    candidates.patches_that_fit(images.size)
    half = args.seconds / 2
    with Bar("measuring this machine, seconds", quiet=args.quiet) as bar:
        found = machine.find(args.device, half, bar)
    compiled = found.compiles if args.compile is None else args.compile
    with Bar("measuring the network, seconds", quiet=args.quiet) as bar:
        plan = propose(images, found, budget, seconds=half, compile=compiled, progress=bar)
    write.write(plan, out)
    print_json(_values(plan, out)) if args.json else _print(plan, out, args.explain)


def _default_out(wanted: config.Data) -> str:
    parts = ["plan", name_of(wanted.source), "x".join(map(str, wanted.size))]
    return "-".join(part for part in parts if part) + ".yaml"


def _values(plan: Plan, out: Path) -> dict[str, Any]:
    """The plan as plain values: seconds, bytes, images."""
    machine = plan.machine
    return {
        "config": str(out),
        "from": plan.start,
        "device": machine.name,
        "measured": machine.measured,
        "device_source": machine.source or None,
        "threads": machine.threads or None,
        "budget": plan.budget,
        "seconds": plan.seconds,
        "evaluating_seconds": plan.evaluating,
        "memory": max(row.memory for row in plan.rows),
        "memory_available": machine.memory,
        "parameters": plan.parameters,
        "patches": plan.patches,
        "stages": [dataclasses.asdict(row) for row in plan.rows],
        "images_per_s": {str(V): speed for V, speed in plan.speeds.items()},
        "prior": dataclasses.asdict(plan.cell),
        "reasons": plan.reasons,
        "images": dataclasses.asdict(plan.images),
        "recipe": config.to_dict(plan.run),
    }


def _print(plan: Plan, out: Path, explain: bool) -> None:
    from underpaint.planning.plan import shown

    run, images, machine = plan.run, plan.images, plan.machine
    height, width = images.size
    screen = console()
    screen.print(
        f"{images.count:,} images of {height}×{width}×{images.channels}, "
        f"{images.classes or 'no'} labels; {plan.patches} patches of {run.space.patch}×"
        f"{run.space.patch}; {plan.parameters:,} parameters; learning rate "
        f"{run.stages['whole'].learning_rate:g}"
        + (f"; microbatches of {run.train.microbatch}" if run.train.microbatch else "")
    )
    columns = ["stage", "mask", "hidden", "batch", "images", "images/s", "time", "memory"]
    rows = [
        [
            row.name,
            row.mask,
            f"{row.rate:.1%}",
            str(run.stages[row.name].batch),
            f"{row.images:,}",
            f"{row.images_per_s:,.4g}",
            shown(row.seconds),
            f"{row.memory / 2**30:.2f} GiB",
        ]
        for row in plan.rows
    ]
    rows.append(["grids, checks", "", "", "", "", "", shown(plan.evaluating), ""])
    print_table(columns, rows, words=2)
    if machine.measured:
        screen.print(f"in all about {shown(plan.seconds)}, measured here ({machine.shown})")
    else:
        screen.print(
            f"in all about {shown(plan.seconds)} on one {machine.name}: computed, not measured "
            f"({machine.source}; the share of its peak that training reaches is assumed)"
        )
    for reason in plan.reasons:
        if explain or not reason.startswith(CHOICES):
            screen.print(f"- {reason}")
    start = f" --from {plan.start}" if plan.start else ""
    screen.print(f"recipe   {out}\ntrain    underpaint train --config {out}{start}")
