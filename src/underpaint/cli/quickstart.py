"""`underpaint quickstart`: the product in small."""

import argparse
from pathlib import Path

from underpaint.cli.parser import Parser, print_json
from underpaint.errors import UserError


def arguments(parser: Parser, verb: str) -> None:
    parser.add_argument(
        "--minutes",
        type=float,
        default=4.5,
        help="until the report is there (default: %(default)s)",
    )
    parser.add_argument(
        "--out", default="runs/quickstart", metavar="RUN", help="folder (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument(
        "--resume", action="store_true", help="go on with a quick start that was interrupted"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the runs that are there")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")


def run(args: argparse.Namespace, others: list[str]) -> None:
    """Train three small models and report."""
    from underpaint import quickstart

    if args.resume and args.overwrite:
        raise UserError("--resume goes on with what is there; it cannot be with --overwrite")
    page = quickstart.run(
        args.out, args.minutes, args.seed, args.overwrite, args.resume, args.began
    )
    grids = sorted(str(path) for path in (Path(args.out) / "samples").glob("*.png"))
    if args.json:
        print_json({"run": args.out, "report": str(page), "samples": grids})
        return
    print(f"\nsamples  {grids[-1] if grids else args.out}\nreport   {page}")
