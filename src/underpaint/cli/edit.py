"""`underpaint edit`: parts of images drawn anew, wider images, variations, interpolation.

Reads images and masks, has `Model` edit them, and writes a grid (before, erased, after) or files.
"""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from underpaint.cli.edit_images import blank, erased_of, read
from underpaint.cli.parser import Parser, add_output, check_least, flag_of, print_json
from underpaint.cli.sample import labels_of
from underpaint.cli.settings import RUN, add_model, add_sampling, sampling_of
from underpaint.errors import UserError
from underpaint.progress import doing

if TYPE_CHECKING:
    import numpy as np

    from underpaint.model import Model

MODES = ("mask", "box", "outpaint", "strength", "interpolate", "restore")
EDGES = ("top", "right", "bottom", "left")
REPAINTING = ("mask", "box", "outpaint", "restore")
ONLY = {  # flags, and the modes in which they mean something
    "resample": REPAINTING,
    "soft": REPAINTING,
    "fit": ("mask", "box", "outpaint", "strength"),
    "seed": ("mask", "box", "outpaint", "strength", "restore"),
}
DEFAULT_N = {"interpolate": 8, "restore": 8}
END = """\
Give one of --mask and --box (or both), --outpaint, --strength, --interpolate, --restore:

  underpaint edit RUN photo.png --mask mask.png       what is white in mask.png is erased
  underpaint edit RUN photo.png --box 8,8,16,16       x, y, width and height, in pixels
  underpaint edit RUN photo.png --outpaint right=32   pixels beyond an edge; 32: beyond every edge
  underpaint edit RUN photo.png --strength 0.6 -n 8   eight images like it
  underpaint edit RUN --interpolate 0 1 -n 8          from the sample of seed 0 to that of seed 1
  underpaint edit RUN sealed.up --restore -n 8        the images of sealed data, from their patches
"""


class Edited(NamedTuple):
    """What comes out: images uint8 [n, H, W, C], beside them what to show of each, and names."""

    images: "np.ndarray"
    beside: "list[tuple[str, np.ndarray]]"  # caption and images [n / versions, H, W, C]
    stems: list[str]  # [n] of files
    versions: int


def arguments(parser: Parser, verb: str) -> None:
    """Flags; what is left out of the sampling is taken from the model's own settings."""
    parser.epilog = END
    add = parser.add_argument
    add("model", metavar="RUN", help=RUN)
    add("images", nargs="*", metavar="IMAGE", help="images of the model's size, or see --fit")
    add(
        "--mask",
        nargs="+",
        metavar="FILE",
        help="erase what is white here (one file for all images, or one for each); 'alpha': what "
        "is transparent in the images themselves",
    )
    add(
        "--box",
        nargs="+",
        action="extend",
        metavar="X,Y,W,H",
        help="erase a box: its left and top edge, width and height in pixels; several are allowed",
    )
    add(
        "--outpaint",
        nargs="+",
        action="extend",
        metavar="EDGE=N",
        help="draw N pixels beyond an edge (top, right, bottom, left), or N beyond every edge",
    )
    add(
        "--strength",
        type=float,
        metavar="S",
        help="draw variations: near 0 almost the same image, at 1 an entirely new one",
    )
    add(
        "--interpolate",
        nargs=2,
        type=int,
        metavar=("A", "B"),
        help="images between those of two seeds; takes no IMAGE",
    )
    add("--restore", action="store_true", help="IMAGE is a sealed file: draw its missing patches")
    add(
        "-n",
        type=int,
        metavar="N",
        help="versions of each image (default: 1); with --interpolate or --restore: images "
        "(default: 8)",
    )
    add("--fit", action="store_true", help="scale images and crop them to the model's size")
    add(
        "--resample",
        type=int,
        metavar="N",
        help="times each step is taken: more fits better and takes longer (default: 5)",
    )
    add(
        "--soft",
        type=int,
        metavar="N",
        help="pixels inside the erased part over which the seam is blended (default: 2)",
    )
    add("--seed", type=int, help="image i has seed SEED + i (default: 0)")
    add("--label", nargs="+", metavar="NAME", help="labels, in turn (default: none)")
    add_sampling(parser)
    add_model(parser, "fp32")
    add(
        "--out",
        default="edited.png",
        metavar="PATH",
        help="a grid, before and after (.png, .jpg, .webp), or a folder of PNGs "
        "(default: %(default)s)",
    )
    add("--overwrite", action="store_true", help="replace existing files")
    add_output(parser)


def run(args: argparse.Namespace, others: list[str]) -> None:
    mode = _mode(args)
    check_least(args, seed=0, batch=1, n=1, resample=1, soft=0)
    sampling = sampling_of(args)
    boxes = [_box(text) for text in args.box or ()]
    margins = _margins(args.outpaint) if mode == "outpaint" else {}
    from underpaint.io import check_new, check_place
    from underpaint.pictures import GRIDS

    out = Path(args.out)
    folder = out.is_dir() or not out.suffix
    if not folder and out.suffix.lower() not in GRIDS:
        raise UserError(f"--out {out}: give a .png, .jpg or .webp (grid) or a folder")
    if not folder:
        check_new([out], args.overwrite)
    check_place(out if folder else out.parent)
    with doing("starting"):
        from underpaint import editing, pictures
        from underpaint import model as models

    named = ("revision", "weights", "device", "vae", "precision")
    how = {name: getattr(args, name) for name in named}
    model = models.load(args.model, **how)
    labels = labels_of(model, args) if args.label else None
    if not labels and args.guidance not in (None, 1):
        raise UserError(f"--guidance {args.guidance:g}: needs labels; add --label NAME")
    repainting: dict[str, Any] = {}
    if mode in REPAINTING:
        repainting["resample"] = editing.RESAMPLE if args.resample is None else args.resample
        repainting["soft"] = editing.SOFT if args.soft is None else args.soft
    began = time.perf_counter()
    seed = args.seed or 0
    asked = {"seed": seed, "labels": labels, "batch": args.batch} | repainting | sampling
    edited = _edited(model, mode, args, boxes, margins, asked)
    seconds = time.perf_counter() - began
    n = len(edited.images)
    seeds = [] if mode == "interpolate" else [seed + i for i in range(n)]
    about: dict[str, Any] = {"model": args.model, "weights": args.weights}
    about |= {"precision": model.precision, "edit": mode, **_settings(args, mode), **repainting}
    if mode != "interpolate":  # whose images lie between those of two seeds
        about["seed"] = seed
    for name, given in sampling.items():
        about[name] = getattr(model.spec.sampling, name) if given is None else given
    drawn = [labels[i % len(labels)] for i in range(n)] if labels else None
    if folder:
        files = pictures.names(seeds, edited.stems) if seeds else _numbered(args.interpolate, n)
        check_new([out / name for name in files], args.overwrite)
        pictures.save_folder(out, edited.images, seeds, drawn, about, files)
    else:
        chunks = about | ({"labels": ", ".join(labels)} if labels else {})
        _save_grid(out, edited, chunks)
    if args.json:
        print_json({"out": str(out), "n": n, "seconds": round(seconds, 3), **about})
    else:
        print(out)


# --- what is asked for -----------------------------------------------------------------------


def _mode(args: argparse.Namespace) -> str:
    """What is to be done: a name of MODES (`mask` for boxes, too)."""
    given = [name for name in MODES if _is_given(args, name)]
    modes = ["mask" if name == "box" else name for name in given]
    if not given:
        flags = ", ".join(flag_of(name) for name in MODES[:-1])
        raise UserError(f"nothing to do: give {flags} or {flag_of(MODES[-1])}")
    if len({*modes}) > 1:
        raise UserError(f"{flag_of(given[0])} and {flag_of(given[-1])}: give one of them")
    mode = modes[0]
    for name, allowed in ONLY.items():
        if _is_given(args, name) and mode not in allowed:
            raise UserError(f"{flag_of(name)} has no meaning with {flag_of(mode)}; leave it out")
    if mode == "interpolate" and args.images:
        raise UserError(
            f"--interpolate goes between two seeds, not images; leave {args.images[0]} out"
        )
    if mode != "interpolate" and not args.images:
        raise UserError("edit needs IMAGE, before the flags: underpaint edit RUN IMAGE … --flags")
    if mode == "restore" and len(args.images) > 1:
        raise UserError("--restore takes one sealed file")
    return mode


def _is_given(args: argparse.Namespace, name: str) -> bool:
    value = getattr(args, name)
    return value is not None and value is not False  # 0 is a number that is given


def _settings(args: argparse.Namespace, mode: str) -> dict[str, Any]:
    """What of the edit is recorded in the files."""
    if mode == "mask":
        return {name: ", ".join(v) for name in ("mask", "box") if (v := getattr(args, name))}
    if mode == "outpaint":
        return {"outpaint": " ".join(args.outpaint)}
    if mode == "interpolate":
        return {"seeds": "{} to {}".format(*args.interpolate)}
    return {"strength": args.strength} if mode == "strength" else {}


def _numbered(ends: list[int], count: int) -> list[str]:
    """Names of files between two seeds: `seeds0-1_00.png`."""
    digits = max(2, len(str(count - 1)))
    return [f"seeds{ends[0]}-{ends[1]}_{i:0{digits}d}.png" for i in range(count)]


def _box(text: str) -> tuple[int, int, int, int]:
    try:
        x, y, w, h = (int(part) for part in text.split(","))
    except ValueError:
        raise UserError(
            f"--box {text}: expected four whole numbers x,y,width,height, such as 8,8,16,16"
        ) from None
    if min(x, y) < 0 or min(w, h) < 1:
        raise UserError(f"--box {text}: x and y begin at 0, width and height at 1")
    return x, y, w, h


def _margins(texts: list[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for text in texts:
        edge, equals, number = text.rpartition("=")
        edges = EDGES if not equals else (edge,)
        if not number.isdecimal() or edges[0] not in EDGES:
            raise UserError(
                f"--outpaint {text}: expected EDGE=N, where EDGE is one of {', '.join(EDGES)}, or N"
            )
        if twice := found.keys() & {*edges}:
            raise UserError(f"--outpaint {text}: {min(twice)} is given twice; give each edge once")
        found |= dict.fromkeys(edges, int(number))
    return found


# --- images and masks ----------------------------------------------------------------------


def _edited(
    model: "Model",
    mode: str,
    args: argparse.Namespace,
    boxes: list[tuple[int, int, int, int]],
    margins: dict[str, int],
    how: dict[str, Any],
) -> Edited:
    import numpy as np

    count = args.n or DEFAULT_N.get(mode, 1)
    if mode == "interpolate":
        del how["seed"]
        seed_a, seed_b = args.interpolate
        return Edited(model.interpolate(seed_a, seed_b, count, **how), [], [], 1)
    if mode == "restore":
        return _restored(model, args.images[0], count, how)
    free = mode == "outpaint" and not args.fit
    pictures = [read(path, model, args.fit, free) for path in args.images]
    stems = [Path(path).stem for path in args.images for _ in range(count)]
    first = pictures[0].pixels.shape
    for path, picture in zip(args.images, pictures, strict=True):
        if picture.pixels.shape != first:
            raise UserError(f"{path}: is of another size than {args.images[0]}; edit it apart")
    before = np.stack([picture.pixels for picture in pictures])
    many = before.repeat(count, 0)
    if mode == "strength":
        images = model.vary(many, args.strength, **how)
        return Edited(images, [("before", before)], stems, count)
    if mode == "outpaint":
        images = model.outpaint(many, **margins, **how)
        top, left = margins.get("top", 0), margins.get("left", 0)
        canvas = blank((len(before), *images.shape[1:]))
        canvas[:, top : top + first[0], left : left + first[1]] = before
        return Edited(images, [("before", canvas)], stems, count)
    erased = erased_of(model, args, pictures, boxes)
    images = model.inpaint(many, ~erased.repeat(count, 0), **how)
    seen = np.where(erased[..., None], blank(before.shape), before)
    return Edited(images, [("before", before), ("erased", seen)], stems, count)


def _restored(model: "Model", path: str, count: int, how: dict[str, Any]) -> Edited:
    """The first images of sealed data."""
    import numpy as np

    from underpaint.core import alpha
    from underpaint.sealed import format as sealed

    found = sealed.read(path)
    if (found.size, found.channels) != (model.spec.size, model.spec.channels):
        given, asked = (
            "{}×{} pixels in {} channels".format(*size, channels)
            for size, channels in (
                (found.size, found.channels),
                (model.spec.size, model.spec.channels),
            )
        )
        raise UserError(f"{path}: images of {given} were sealed, and this model draws {asked}")
    ids = np.arange(min(count, len(found.labels)))
    patches, positions = found.batch(ids)
    images = model.restore(patches, positions, **how)
    grid = [size // found.about["patch"] for size in found.size]
    shown = np.zeros((len(ids), grid[0] * grid[1]), np.bool_)
    np.put_along_axis(shown, positions, True, 1)
    kept = shown.reshape(-1, *grid).repeat(found.about["patch"], 1).repeat(found.about["patch"], 2)
    seen = np.where(kept[..., None], images, blank(images.shape))
    stems = [Path(path).stem] * len(ids)
    return Edited(images, [("sealed", alpha.straight(alpha.premultiplied(seen)))], stems, 1)


def _save_grid(out: Path, edited: Edited, chunks: dict[str, Any]) -> None:
    """A row for each image: what it was, then its versions."""
    import numpy as np

    from underpaint import pictures

    if not edited.beside:
        pictures.save_grid(out, edited.images, min(8, len(edited.images)), None, chunks)
        return
    n, shape = len(edited.images) // edited.versions, edited.images.shape[1:]
    after = edited.images.reshape(n, edited.versions, *shape)
    columns = [shown[:, None] for _, shown in edited.beside] + [after]
    sheet = np.concatenate(columns, 1)
    captions = [caption for caption, _ in edited.beside] + ["after"] * edited.versions
    pictures.save_grid(out, sheet.reshape(-1, *shape), sheet.shape[1], captions, chunks)
