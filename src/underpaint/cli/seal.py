"""`underpaint seal`: visible patches of images in one file, to train on; `--verify` reads one."""

import argparse
from typing import Any

from underpaint.cli.parser import Parser, add_output, check_least, print_facts, print_json
from underpaint.cli.settings import add_images, images_of
from underpaint.errors import UserError


def arguments(parser: Parser, verb: str) -> None:
    add = parser.add_argument
    add("data", metavar="DATA", nargs="?", help="images, in any form that `prepare` reads")
    add("--verify", metavar="FILE", help="instead: read a sealed file and show what it holds")
    add("--out", metavar="FILE", help="the file to write, for example sealed.up")
    add("--patch", type=int, default=4, help="side of a patch in pixels (default: %(default)s)")
    add(
        "--kind",
        choices=("patch", "block", "crop"),
        default="block",
        help="shape of the mask (default: %(default)s)",
    )
    add(
        "--rate",
        type=float,
        default=0.9,
        help=("share of the patches to hide (default: %(default)s)"),
    )
    add("--block", type=int, default=2, help="side of a block in patches (default: %(default)s)")
    add(
        "--multiple",
        type=int,
        default=1,
        metavar="PATCHES",
        help="sides and corners of a crop are multiples of this, for a U-Net (default: 1)",
    )
    add("--key", metavar="FILE", help="key of the masks (default: a random one that is not kept)")
    add("--labels", action="store_true", help="keep the images' labels (names of folders)")
    add(
        "--drop-duplicates",
        action="store_true",
        help=("keep one image of each group of near duplicates"),
    )
    held_out = "images kept for evaluation: auto, a number or none (default: %(default)s)"
    add_images(parser, held_out=held_out)
    add_output(parser)


def run(args: argparse.Namespace, others: list[str]) -> None:
    if args.verify:
        if args.data or args.out:
            raise UserError(
                "--verify reads a sealed file and writes none; leave DATA and --out out"
            )
        from underpaint.sealed.format import verify

        found = verify(args.verify)
    else:
        found = _seal(args)
    print_json(found) if args.json else print_facts(_facts(found))


def _seal(args: argparse.Namespace) -> dict[str, Any]:
    if not args.data or not args.out:
        raise UserError("seal needs DATA and --out FILE, or --verify FILE; see underpaint seal -h")
    data = images_of(args)
    check_least(args, patch=1, block=1, multiple=1)
    from underpaint.data import fixed_masks
    from underpaint.sealed.writer import seal

    key = fixed_masks.read_key(args.key) if args.key else None
    return seal(
        data,
        args.out,
        patch=args.patch,
        kind=args.kind,
        rate=args.rate,
        block=args.block,
        multiple=args.multiple,
        key=key,
        labels=args.labels,
        drop_duplicates=args.drop_duplicates,
    )


def _facts(found: dict[str, Any]) -> dict[str, str]:
    height, width = found["size"]
    V, N, P, n = (found[name] for name in ("visible", "patches", "patch_dim", "images"))
    size, near = found["bytes"], found["duplicates"]
    kind = f"{found['kind']} of {found['block']}" if found["kind"] == "block" else found["kind"]
    lines = {
        "file": f"{found['file']}, version {found['version']}",
        "images": f"{n:,} of {height}×{width}×{found['channels']}, {found['held_out']:,} held out",
        "mask": f"{kind}, {found['hidden']:.1%} hidden",
        "each image": f"{V} of {N} patches of {P} bytes, and their {V} positions",
        "bytes": f"{size['all']:,} in total: {size['header']:,} headers + "
        f"{size['patches']:,} patches + "
        f"{size['positions']:,} positions + {size['held_out']:,} held-out marks + "
        f"{size['labels']:,} labels + {size['checksums']:,} checksums",
        "checksums": found["checksums"],
        "labels": ", ".join(found["label_names"][:12]) or "none",
        "resampling": f"mixes up to {found['bleed']} pixels beside a patch into it"
        if found["bleed"]
        else "none: images had this size",
        "near duplicates": f"{near['images']:,} images in {near['groups']:,} groups (the largest "
        f"of {near['largest']:,}), {near['exact']:,} exact copies; a group shows together "
        f"{near['joint_coverage_mean']:.1%} of an image on average, at most "
        f"{near['joint_coverage_largest']:.1%}"
        if near["groups"]
        else "none",
    }
    if near["dropped"]:
        lines["dropped"] = f"{near['dropped']:,} near duplicates"
    if found.get("unreadable"):
        lines["unreadable"] = f"{found['unreadable']:,} files, skipped"
    return lines
