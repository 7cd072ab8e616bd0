"""`underpaint prepare`: decode once, into the cache, and report."""

import argparse
from typing import Any

from underpaint.cli.parser import Bar, Parser, add_output, print_facts, print_json
from underpaint.cli.settings import add_images, images_of

MOST = 12


def arguments(parser: Parser, verb: str) -> None:
    add = parser.add_argument
    add(
        "data",
        metavar="DATA",
        help="images: a folder, .zip, .tar, .npy/.npz, IDX .gz, .csv, parquet/arrow, avatars:STYLE",
    )
    add_images(parser)
    add(
        "--latents",
        metavar="VAE",
        help="also compute latents with this folder of a diffusers AutoencoderKL or "
        "AutoencoderTiny (space.vae)",
    )
    add("--verify", action="store_true", help="hash all pixels in the cache (else of a few images)")
    add_output(parser)


def run(args: argparse.Namespace, others: list[str]) -> None:
    from underpaint import data

    wanted = images_of(args)
    with Bar("decoding", quiet=args.quiet) as bar:
        dataset = data.prepare(wanted, verify=args.verify, progress=bar)
    if args.latents:
        from underpaint import vae
        from underpaint.data import latents
        from underpaint.hardware import pick_device

        encoder = vae.read(args.latents, dataset.channels)
        with Bar("encoding", quiet=args.quiet) as bar:
            dataset = latents.prepare(dataset, encoder, progress=bar, device=pick_device())
    if args.json:
        print_json(dataset.report)
    else:
        print_facts({key.replace("_", " "): lines(fact) for key, fact in dataset.report.items()})
        if sentence := data.transparency(wanted, dataset.report):
            print(sentence)


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
        return " × ".join(str(item) for item in value) or "none"
    return "none" if value is None else str(value)


def _cut(parts: list[str]) -> list[str]:
    rest = [f"and {len(parts) - MOST:,} more"] if len(parts) > MOST else []
    return parts[:MOST] + rest or ["none"]
