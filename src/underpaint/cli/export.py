"""`underpaint export`: a trained model in a form that other software reads."""

import argparse

from underpaint.cli.parser import Parser, add_output, print_json
from underpaint.cli.settings import REVISION, RUN, WEIGHTS
from underpaint.errors import UserError
from underpaint.progress import doing

END = """\
FORM is one of

  folder         the model alone, for every command here: what you keep or give away
  hub:ORG/NAME   the same, uploaded to the Hugging Face Hub with a model card
  web            a page that draws in the browser, with no server behind it
  onnx           one graph, and a script that draws with it, without PyTorch
  diffusers      a pipeline that diffusers loads
  torch-export   one graph that torch runs without underpaint
"""


def arguments(parser: Parser, verb: str) -> None:
    parser.epilog = END
    add = parser.add_argument
    add("model", metavar="RUN", help=RUN)
    add("--to", required=True, metavar="FORM", help="what to write: see below")
    add("--out", metavar="DIR", help="folder to write")
    add("--revision", metavar="REV", help=REVISION)
    add("--weights", choices=("ema", "model"), default="ema", help=WEIGHTS)
    add("--half", action="store_true", help="weights in float16: half the size")
    add("--vae", metavar="DIR", help="folder of the autoencoder, for a model of latents")
    add("--overwrite", action="store_true", help="replace an existing export")
    add("--private", action="store_true", help="with hub: make a new repository private")
    add_output(parser)


def run(args: argparse.Namespace, others: list[str]) -> None:
    with doing("starting"):
        from underpaint.hub import PREFIX
        from underpaint.interop.export import export
        from underpaint.model_folder import pinned

    if args.to.startswith(PREFIX):
        _upload(args)
        return
    if args.private:
        raise UserError("--private is for repositories on the Hub; use it with --to hub:ORG/NAME")
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
        raise UserError(
            "--out and --overwrite are for folders; leave them out with --to hub:ORG/NAME"
        )
    Repository.named(args.to)
    how = {name: getattr(args, name) for name in ("revision", "weights", "vae")}
    loaded = model.load(args.model, device="cpu", **how)
    address = loaded.push_to_hub(args.to, private=args.private or None, half=args.half)
    assert loaded.origin is not None
    found = {"address": address, "to": args.to, "model": loaded.origin.source, "half": args.half}
    print_json(found) if args.json else print(address)
