"""`underpaint export`: a trained model in a form that other software reads."""

import argparse

from underpaint.cli.parser import Parser, add_output, print_json


def arguments(parser: Parser, verb: str) -> None:
    add = parser.add_argument
    add("model", metavar="RUN", help="a run, a checkpoint, an exported model or pretrained:NAME")
    add("--to", required=True, metavar="FORM", help="the form")
    add("--out", required=True, metavar="DIR", help="the folder to write")
    add("--weights", default="ema", help="which weights (default: %(default)s)")
    add("--half", action="store_true", help="weights in float16: half the size")
    add("--vae", metavar="DIR", help="where the autoencoder of a model of latents is now")
    add("--overwrite", action="store_true", help="replace an export that is there already")
    add_output(parser)


def run(args: argparse.Namespace, others: list[str]) -> None:
    from underpaint.interop.export import export

    found = export(
        args.model,
        args.to,
        args.out,
        weights=args.weights,
        half=args.half,
        vae=args.vae,
        overwrite=args.overwrite,
    )
    if args.json:
        print_json(found)
    else:
        print(found["out"])
