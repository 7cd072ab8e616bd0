"""`underpaint prepare`: decode once, into the cache, and report."""

import argparse
import re
from pathlib import Path
from typing import Any

from underpaint.cli.parser import Parser, add_output, print_facts, print_json
from underpaint.cli.settings import IMAGES, add_images, images_of
from underpaint.errors import UserError

MOST = 12
WRONG = ("unreadable", "unread", "outside", "hints", "damaged")  # said where there is some


def arguments(parser: Parser, verb: str) -> None:
    add = parser.add_argument
    add(
        "data",
        metavar="DATA",
        help="images: a folder, .zip, .tar, .npy/.npz, IDX .gz, .csv, parquet/arrow, "
        "avatars:STYLE; shards that are streamed: 'set-{0000..0999}.tar', 'train-*.parquet', a "
        "folder of .tar, @list.txt, URLs",
    )
    add_images(parser)
    add_images(parser, ("remove_duplicates",))
    add(
        "--latents",
        metavar="VAE",
        help=(
            "also compute latents with the diffusers AutoencoderKL or AutoencoderTiny in this"
            " folder (space.vae)"
        ),
    )
    add(
        "--page",
        metavar="FILE",
        help="write an HTML page: images by label, duplicates, unusual images",
    )
    add("--overwrite", action="store_true", help="replace an existing page")
    add(
        "--part",
        type=_part,
        metavar="K/N",
        help=(
            "index only the K-th of N parts of the shards, as one of several processes or "
            "machines with a common cache; then run prepare without --part"
        ),
    )
    add(
        "--verify",
        action="store_true",
        help=("check the hashes of all cached pixels (otherwise of a few images)"),
    )
    add_output(parser)


def run(args: argparse.Namespace, others: list[str]) -> None:
    from underpaint import data

    wanted = images_of(args, (*IMAGES, "remove_duplicates"))
    if args.part:
        shards, images = data.prepare_part(wanted, *args.part)
        found = {"part": "{}/{}".format(*args.part), "shards": shards, "images": images}
        print_json(found) if args.json else print_facts({k: lines(v) for k, v in found.items()})
        return
    page = _page(args)
    dataset = data.prepare(wanted, verify=args.verify)
    if args.latents:
        from underpaint import vae
        from underpaint.data import latents
        from underpaint.hardware import pick_device

        encoder = vae.read(args.latents, dataset.channels)
        dataset = latents.prepare(dataset, encoder, device=pick_device())
    report = dict(dataset.report)
    if not isinstance(dataset.images, data.Streamed):
        first = data.duplicates.first_of_each(dataset.images, dataset.key)
        groups = [[dataset.names[i] for i in group] for group in data.duplicates.groups(first)]
        report["near_duplicates"] = groups
    elif page is not None:
        raise UserError(f"--page shows all images, and {args.data} is streamed; leave --page out")
    if page is not None:
        from underpaint.report.data import write

        report["page"] = str(write(dataset, first, page))
    if args.json:
        print_json(report)
    else:
        said = {key: fact for key, fact in report.items() if fact or key not in WRONG}
        print_facts({key.replace("_", " "): lines(fact) for key, fact in said.items()})
        if sentence := data.on_channels(wanted, dataset):
            print(sentence)


def _part(text: str) -> tuple[int, int]:
    """`3/16` → (3, 16)."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError("give K/N with K from 1 to N, as 3/16")
    return int(found[1]), int(found[2])


def _page(args: argparse.Namespace) -> Path | None:
    """Where the page goes. Raises UserError if it cannot."""
    from underpaint.io import check_new, check_place

    if args.page is None:
        return None
    page = Path(args.page)
    if page.suffix not in (".html", ".htm"):
        raise UserError(f"--page {page}: give a name that ends in .html")
    check_new([page], args.overwrite, "--page")
    check_place(page.parent)
    return page


def lines(value: Any) -> list[str]:
    """A value of the report for a person, a line each of a list, which is cut after MOST."""
    if isinstance(value, (list, tuple)) and not all(isinstance(item, int) for item in value):
        return _cut([shown(item) for item in value])
    return [shown(value)]


def shown(value: Any) -> str:
    """A value in one line: counts are cut after MOST."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    if isinstance(value, dict):
        if set(value) == {"path", "reason"}:
            return f"{value['path']}: {value['reason']}"
        if set(value) == {"files", "first", "reason"}:
            more = f", {value['first']} and others" if value["files"] > 1 else f", {value['first']}"
            return f"{value['files']:,} ({value['reason']}){more}"
        return ", ".join(_cut([f"{key} {shown(item)}" for key, item in value.items()]))
    if isinstance(value, (list, tuple)):
        if value and all(isinstance(item, str) for item in value):  # a group of duplicates
            return " = ".join(_cut([*value]))
        return " × ".join(str(item) for item in value) or "none"
    return "none" if value is None else str(value)


def _cut(parts: list[str]) -> list[str]:
    rest = [f"and {len(parts) - MOST:,} more"] if len(parts) > MOST else []
    return parts[:MOST] + rest or ["none"]
