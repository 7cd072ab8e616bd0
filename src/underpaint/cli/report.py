"""`underpaint report`: one page on a run."""

import argparse
import sys

from underpaint.cli.parser import Parser, print_json


def arguments(parser: Parser, verb: str) -> None:
    add = parser.add_argument
    add("run", metavar="RUN", help="a run's folder")
    add("--json", action="store_true", help="print one JSON object on stdout")


def run(args: argparse.Namespace, others: list[str]) -> None:
    from pathlib import Path

    from underpaint import config, report

    place = Path(args.run)
    path = report.build(place)
    recipe = config.load(place / "config.yaml")
    sources = sorted({(stage.data or recipe.data).source for stage in recipe.stages.values()})
    if sources and not args.json:  # a stranger's config.yaml may name a folder of ours
        print(f"shows images of {', '.join(sources)}, as its config.yaml says", file=sys.stderr)
    print_json({"report": str(path)}) if args.json else print(path)
