"""`underpaint report`: one page on a run."""

import argparse

from underpaint.cli.parser import Parser, print_json


def arguments(parser: Parser, verb: str) -> None:
    add = parser.add_argument
    add("run", metavar="RUN", help="a run's folder")
    add("--json", action="store_true", help="print one JSON object on stdout")


def run(args: argparse.Namespace, others: list[str]) -> None:
    from pathlib import Path

    from underpaint import report

    path = report.build(Path(args.run))
    print_json({"report": str(path)}) if args.json else print(path)
