"""`underpaint import`: another software's checkpoint as a model of ours."""

import argparse
from pathlib import Path

from underpaint.cli.parser import Parser, add_output, check_least, print_json
from underpaint.errors import UserError


def arguments(parser: Parser, verb: str) -> None:
    add = parser.add_argument
    add(
        "file",
        metavar="FILE",
        help="a checkpoint (.pt, .pth, .bin, .safetensors), or a folder of diffusers",
    )
    add(
        "--as",
        dest="kind",
        required=True,
        choices=("maskdm", "uvit", "dit", "diffusers"),
        help="what wrote it: maskdm (MaskedUViT), uvit, dit (its authors' names), or diffusers "
        "(DiTTransformer2DModel, UNet2DModel, DiTPipeline, DDPMPipeline)",
    )
    add("--out", required=True, metavar="DIR", help="folder to write the model to")
    add(
        "--size",
        type=int,
        nargs="+",
        metavar=("H", "W"),
        help="pixels, if the weights do not say: one number for a square",
    )
    add(
        "--heads",
        type=int,
        default=0,
        metavar="N",
        help="attention heads (default: as published for this width)",
    )
    add(
        "--vae",
        default="",
        metavar="DIR",
        help=("folder of the autoencoder, for a model of latents"),
    )
    add(
        "--process",
        default="",
        metavar="NAME",
        help="noise process, if the file does not say: vp-linear, vp-cosine, flow, edm or ve",
    )
    add(
        "--noise-steps",
        type=int,
        metavar="N",
        help="steps of the noise process (default: 1000 for vp-*; 0: continuous)",
    )
    add(
        "--prediction",
        default="",
        metavar="NAME",
        help="what the network predicts: eps, x0, v, flow, score or edm",
    )
    add(
        "--labels",
        metavar="FILE",
        help="names of the classes, one per line, in their order (default: numbers)",
    )
    add(
        "--weights",
        default="ema",
        choices=("ema", "model"),
        help=(
            "if a checkpoint has both: the averaged or the trained weights (default: %(default)s)"
        ),
    )
    add("--overwrite", action="store_true", help="replace an existing model")
    add_output(parser)


def run(args: argparse.Namespace, others: list[str]) -> None:
    check_least(args, heads=0, noise_steps=0)
    from underpaint import config
    from underpaint.interop.importing import import_model

    found = import_model(
        args.file,
        args.kind,
        args.out,
        overwrite=args.overwrite,
        size=config.image_size(tuple(args.size or ())) or (),
        heads=args.heads,
        process=args.process,
        prediction=args.prediction,
        noise_steps=args.noise_steps,
        vae=args.vae,
        labels=_names(args.labels) if args.labels else (),
        weights=args.weights,
    )
    if args.json:
        print_json(found)
        return
    print(found["model"])
    for note in [found["noise"], *found["notes"]]:
        print(f"  {note}")
    print(found["out"])


def _names(path: str) -> tuple[str, ...]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise UserError(
            f"--labels {path}: cannot be read; give a text file, a name a line"
        ) from None
    return tuple(line.strip() for line in text.splitlines() if line.strip())
