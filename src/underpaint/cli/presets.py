"""`underpaint presets`: the recipes of the package."""

import argparse

from underpaint import config
from underpaint.cli.parser import Parser, print_json


def arguments(parser: Parser, verb: str) -> None:
    add = parser.add_argument
    add("name", nargs="?", metavar="NAME", help="print this recipe's YAML, to copy and edit")
    add("--json", action="store_true", help="print one JSON object on stdout")


def run(args: argparse.Namespace, others: list[str]) -> None:
    if args.name:
        text = config.preset_text(args.name)
        print_json({"name": args.name, "yaml": text}) if args.json else print(text, end="")
        return
    if args.json:
        print_json({"presets": config.presets()})
        return
    found = config.presets()
    column = max(map(len, found)) + 2
    for name, line in found.items():
        print(f"{name:<{column}}{line}")
    print("\nunderpaint presets NAME > my.yaml makes one your own.")
