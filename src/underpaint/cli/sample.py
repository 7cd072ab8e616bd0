"""`underpaint sample`: images from a trained model, as a grid, a folder or an array."""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING
from unicodedata import normalize

from underpaint.cli.parser import Parser, add_output, check_least, closest, print_json
from underpaint.cli.settings import RUN, add_model, add_sampling, sampling_of
from underpaint.errors import UserError
from underpaint.progress import doing

if TYPE_CHECKING:
    from underpaint.model import Model


def arguments(parser: Parser, verb: str) -> None:
    """Flags; what is left out is taken from the model's own `sampling` settings."""
    add = parser.add_argument
    add("model", metavar="RUN", help=RUN)
    add("-n", type=int, default=64, metavar="N", help="images (default: %(default)s)")
    add("--seed", type=int, default=0, help="image i has seed SEED + i (default: %(default)s)")
    add(
        "--label",
        nargs="+",
        metavar="NAME",
        help="labels to draw, in turn (default: all of the model's; 'none': unconditional)",
    )
    add_sampling(parser)
    add_model(parser, "fp32")
    add(
        "--out",
        default="samples.png",
        metavar="PATH",
        help="a grid (.png, .jpg, .webp), an array (.npz) or a folder of PNGs "
        "(default: %(default)s)",
    )
    add("--overwrite", action="store_true", help="replace existing files")
    add_output(parser)


def run(args: argparse.Namespace, others: list[str]) -> None:
    check_least(args, n=1, seed=0, batch=1)
    sampling = sampling_of(args)
    from underpaint.io import check_new, check_place
    from underpaint.pictures import GRIDS

    out = Path(args.out)
    kind = "folder" if out.is_dir() or not out.suffix else out.suffix.lower()
    if kind not in ("folder", ".npz", *GRIDS):
        raise UserError(
            f"--out {out}: give a .png, .jpg or .webp (grid), a .npz (array) or a folder"
        )
    if kind != "folder":
        check_new([out], args.overwrite)
    check_place(out if kind == "folder" else out.parent)
    with doing("starting"):
        from underpaint import model as models
        from underpaint import pictures

    named = ("revision", "weights", "device", "vae", "precision")
    how = {name: getattr(args, name) for name in named}
    model = models.load(args.model, **how)
    labels = labels_of(model, args)
    seeds = [args.seed + i for i in range(args.n)]
    drawn = [labels[i % len(labels)] for i in range(args.n)] if labels else None
    if kind == "folder":
        check_new([out / name for name in pictures.names(seeds, drawn)], args.overwrite)
    began = time.perf_counter()
    images = model.sample(args.n, seed=args.seed, labels=labels, batch=args.batch, **sampling)
    seconds = time.perf_counter() - began
    assert model.origin is not None
    about = {"model": model.origin.source, "weights": args.weights, "precision": model.precision}
    about["seed"] = args.seed
    for name, given in sampling.items():
        about[name] = getattr(model.spec.sampling, name) if given is None else given
    if kind == "folder":
        pictures.save_folder(out, images, seeds, drawn, about)
    elif kind == ".npz":
        pictures.save_npz(out, images, seeds, drawn, about)
    else:
        columns, captions = pictures.columns(args.n, labels)
        chunks = about | ({"labels": ", ".join(labels)} if labels else {})
        pictures.save_grid(out, images, columns, captions, chunks)
    if args.json:
        print_json({"out": str(out), "n": args.n, "seconds": round(seconds, 3), **about})
    else:
        print(out)


def labels_of(model: "Model", args: argparse.Namespace) -> list[str] | None:
    """Names of the classes to draw in turn; None: without a label."""
    known = list(model.label_names)
    if not known:
        if args.label and args.label != ["none"]:
            raise UserError(
                f"--label {args.label[0]}: this model was trained without labels; leave --label out"
            )
        if args.guidance is not None and args.guidance != 1:
            raise UserError(
                f"--guidance {args.guidance:g}: needs labels, and this model was trained without; "
                "leave --guidance out"
            )
        return None
    if args.label == ["none"] and "none" not in known:
        return None
    args.label = [normalize("NFC", name) for name in args.label or ()]
    for name in args.label:
        if name not in known:
            raise UserError(f"--label {name}: this model does not know it; {closest(name, known)}")
    return args.label or known
