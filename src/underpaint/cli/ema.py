"""`underpaint ema`: averages of other widths, from a run's snapshots."""

import argparse

from underpaint.cli.parser import Parser, add_output, print_json


def arguments(parser: Parser, verb: str) -> None:
    add = parser.add_argument
    add("run", metavar="RUN", help="a run trained with --train.snapshots")
    add(
        "--width",
        type=float,
        nargs="+",
        default=[0.05, 0.1, 0.2],
        metavar="W",
        help="relative widths of the averages, 0.05 to 0.25 (default: 0.05 0.1 0.2)",
    )
    add("--out", metavar="FOLDER", help="folder for the models, one per width (default: RUN/ema)")
    add("--overwrite", action="store_true", help="replace the models in --out")
    add_output(parser)


def run(args: argparse.Namespace, others: list[str]) -> None:
    from pathlib import Path

    from underpaint.training.checkpointing import snapshots
    from underpaint.training.posthoc import NEAR, rebuild, snapshots_for

    out = Path(args.out) if args.out else None
    errors = rebuild(Path(args.run), args.width, out, args.overwrite)
    counted = len(snapshots(Path(args.run)))
    notes = [
        f"width {width:g}: the profile of {counted} snapshots is {error:.1%} off; train with a "
        f"smaller --train.snapshots, about {snapshots_for(width)} in the run, for {NEAR:.0%}"
        for width, error in zip(args.width, errors.values(), strict=True)
        if error > NEAR
    ]
    if args.json:
        models = [
            {"width": width, "model": path, "profile_error": error}
            for width, (path, error) in zip(args.width, errors.items(), strict=True)
        ]
        print_json({"models": models, "warnings": notes})
        return
    for path, error in errors.items():
        print(f"{path}  (profile within {error:.2%})")
    for note in notes:
        print(f"note: {note}")
