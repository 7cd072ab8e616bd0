"""`underpaint export`: a trained model in a form that other software reads."""

import argparse

from underpaint.cli.parser import Parser, add_output, print_json
from underpaint.cli.settings import REVISION, RUN
from underpaint.errors import UserError


def arguments(parser: Parser, verb: str) -> None:
    add = parser.add_argument
    add("model", metavar="RUN", help=RUN)
    add("--to", required=True, metavar="FORM", help="the form; hub:ORG/NAME uploads it")
    add("--out", metavar="DIR", help="the folder to write")
    add("--revision", metavar="REV", help=REVISION)
    add("--weights", default="ema", help="which weights (default: %(default)s)")
    add("--half", action="store_true", help="weights in float16: half the size")
    add("--vae", metavar="DIR", help="where the autoencoder of a model of latents is now")
    add("--overwrite", action="store_true", help="replace an export that is there already")
    add("--private", action="store_true", help="hub: of a new repository: only you can see it")
    add_output(parser)


def run(args: argparse.Namespace, others: list[str]) -> None:
    from underpaint.hub import PREFIX
    from underpaint.interop.export import export
    from underpaint.model_folder import pinned

    if args.to.startswith(PREFIX):
        _upload(args)
        return
    if args.private:
        raise UserError("--private is of a repository on the Hub; give --to hub:ORG/NAME with it")
    if not args.out:
        raise UserError(f"export --to {args.to} needs --out DIR, the folder to write")
    found = export(
        pinned(args.model, args.revision),
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


def _upload(args: argparse.Namespace) -> None:
    from underpaint import model
    from underpaint.hub import Repository

    if args.out or args.overwrite:
        raise UserError("--out and --overwrite are of a folder; leave them out with --to hub:")
    Repository.named(args.to)
    how = {name: getattr(args, name) for name in ("revision", "weights", "vae")}
    loaded = model.load(args.model, device="cpu", **how)
    address = loaded.push_to_hub(args.to, private=args.private or None, half=args.half)
    assert loaded.origin is not None
    found = {"address": address, "to": args.to, "model": loaded.origin.source, "half": args.half}
    print_json(found) if args.json else print(address)
