"""`underpaint plan`: which recipe, for these images, this machine and this budget."""

import argparse
import dataclasses
import shlex
from pathlib import Path

from underpaint import config
from underpaint.cli.parser import Parser, add_output, console, print_json
from underpaint.cli.settings import add_images, add_setting, images_of
from underpaint.cli.train import name_of, print_cost
from underpaint.errors import UserError
from underpaint.progress import doing

DEVICES = "auto, cpu, cuda, mps: measured here; or a GPU by its data sheet: h100, rtx-4090, l4 …"


def arguments(parser: Parser, verb: str) -> None:
    add, default = parser.add_argument, "(default: %(default)s)"
    add("data", metavar="DATA", help="images, in any form that `prepare` reads")
    add_images(parser, ("size",))
    few = "3, or rgba where most images have transparent pixels"
    add_setting(parser, "--channels", "data.channels", few)
    add("--budget", default="1h", metavar="TIME", help=f"as 45min, 24h, 2d, 1h30m {default}")
    add("--device", default="auto", metavar="DEVICE", help=f"{DEVICES} {default}")
    add("--seconds", type=float, default=20, metavar="S", help=f"for measuring {default}")
    compiled = "plan with torch.compile (default: on a CUDA GPU)"
    add("--compile", action=argparse.BooleanOptionalAction, default=None, help=compiled)
    add("--out", metavar="FILE", help="recipe to write (default: plan-DATA-SIZE.yaml)")
    add("--overwrite", action="store_true", help="replace the recipe in --out")
    add("--explain", action="store_true", help="say why each choice was made")
    add_output(parser)


def run(args: argparse.Namespace, others: list[str]) -> None:
    """Measure, propose, write the recipe, and print what it will take."""
    if not 0 < args.seconds < float("inf"):
        raise UserError(f"--seconds {args.seconds:g}: give a number above 0")
    wanted = images_of(args, ("size", "channels") if args.channels else ("size",))
    parts = "plan", name_of(wanted.source), "x".join(map(str, wanted.size))
    out = Path(args.out or "-".join(filter(None, parts)) + ".yaml")
    from underpaint import data
    from underpaint.data.source import is_sealed
    from underpaint.io import check_new, check_place, replace_text, writing

    with doing("starting"):
        from underpaint.planning import candidates, machine, write
        from underpaint.planning.plan import propose, seconds_of, shown

    budget = seconds_of(args.budget)
    if out.suffix not in (".yaml", ".yml") and not out.is_dir():
        raise UserError(f"{out}: give --out a name that ends in .yaml, as train expects")
    check_new([out], args.overwrite)
    check_place(out.parent)
    found = machine.find(args.device)
    if not found.sheet and budget < 3 * args.seconds:
        raise UserError(
            f"a budget of {shown(budget)} is too small: measuring this machine takes "
            f"{shown(args.seconds)} of it; give at least {shown(3 * args.seconds)}"
        )
    if wanted.size:
        candidates.patches_that_fit((wanted.size[0], wanted.size[-1]))  # refuses, before decoding
    if is_sealed(wanted.source):
        raise UserError(
            f"'{wanted.source}' is sealed, and its masks are decided; plan with the images that it "
            "was made of"
        )
    dataset = data.prepare(wanted)
    transparent, count = dataset.report["transparent"], dataset.report["images"]
    on_channels = data.on_channels(wanted, dataset)
    if not args.channels and 2 * transparent > count:
        dataset = data.prepare(dataclasses.replace(wanted, channels="rgba"))
        on_channels = (
            f"channels rgba: {transparent:,} of {count:,} images have transparent pixels; with "
            "--channels 3 these become white"
        )
    images = candidates.Images.of(dataset, wanted.source)
    compiled = found.gpu if args.compile is None else args.compile
    plan = propose(images, found, budget, args.seconds, compiled)
    plan.reasons.extend([on_channels] if on_channels else [])
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_text(out, write.text(plan, str(out)))
    if args.json:
        names = ("budget", "seconds", "evaluating", "seen", "error", "evidence", "reasons")
        plain = {"images": dataclasses.asdict(images), "recipe": config.to_dict(plan.run)}
        here = {"device": found.name, "measured": not found.sheet, "memory_available": found.memory}
        result = plain | here | {name: getattr(plan, name) for name in names}
        print_json(
            plan.counted
            | result
            | {"config": str(out), "from": plan.start.removeprefix(" --from ") or None}
        )
        return
    print_cost(plan.counted)
    screen, how = console(), "measured here"
    if found.sheet:
        how = f"computed, not measured ({found.sheet['source']}; its utilisation is assumed)"
    screen.print(f"in all about {shown(plan.seconds)} on {found.name}, {how}")
    for reason in plan.reasons:
        if args.explain or not reason.startswith("network "):
            screen.print(f"- {reason}")
    command = f"underpaint train --config {shlex.quote(str(out))}{plan.start}"
    screen.print(f"recipe   {out}\ntrain    {command}")
