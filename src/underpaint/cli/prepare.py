"""`underpaint prepare`: decode once, into the cache, and report."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from underpaint import config
from underpaint.cli.parser import Bar, Parser, add_output, console, print_json
from underpaint.cli.settings import choices

if TYPE_CHECKING:
    from underpaint.data import Dataset

__all__ = ["arguments", "run", "shown"]


def arguments(parser: Parser, verb: str) -> None:
    """Flags."""
    defaults = config.Data()
    parser.add_argument(
        "data",
        metavar="DATA",
        help="images: a folder, .zip, .tar, .npy/.npz, IDX .gz, .csv, parquet/arrow, avatars:STYLE",
    )
    parser.add_argument(
        "--size", type=int, nargs="+", metavar=("H", "W"), help="pixels; without: the images' own"
    )
    parser.add_argument(
        "--channels",
        type=int,
        choices=(1, 3),
        default=defaults.channels,
        help="default: %(default)s",
    )
    parser.add_argument(
        "--fit",
        choices=choices(config.Data, "fit"),
        default=defaults.fit,
        help="how another aspect is met (default: %(default)s)",
    )
    parser.add_argument(
        "--background",
        default=defaults.background,
        metavar="COLOUR",
        help="behind transparent pixels and padding (default: %(default)s)",
    )
    parser.add_argument(
        "--max-bad",
        type=float,
        default=defaults.max_bad,
        metavar="SHARE",
        help="share of unreadable files that is skipped (default: %(default)s)",
    )
    parser.add_argument(
        "--held-out",
        default=defaults.held_out,
        metavar="SPEC",
        help="images kept for judging: auto, a number, none, or DATA (default: %(default)s)",
    )
    parser.add_argument(
        "--latents",
        metavar="VAE",
        help="also compute latents with this folder of a diffusers AutoencoderKL or "
        "AutoencoderTiny (space.vae)",
    )
    add_output(parser)


def run(args: argparse.Namespace, others: list[str]) -> None:
    """Prepare and print what was found."""
    from underpaint import data

    wanted = config.Data(
        source=args.data,
        size=tuple(args.size or ()),
        channels=args.channels,
        fit=args.fit,
        background=args.background,
        max_bad=args.max_bad,
        held_out=args.held_out,
    )
    config.check_data(wanted)
    with Bar("decoding", quiet=args.quiet) as bar:
        dataset = data.prepare(wanted, progress=bar)
    if args.latents:
        dataset = _latents(dataset, args)
    if args.json:
        print_json(dataset.report)
    else:
        _print(dataset.report)


def _latents(dataset: Dataset, args: argparse.Namespace) -> Dataset:
    from underpaint import vae
    from underpaint.data import latents
    from underpaint.hardware import pick_device

    encoder = vae.read(args.latents, dataset.channels)
    with Bar("encoding", quiet=args.quiet) as bar:
        return latents.prepare(dataset, encoder, progress=bar, device=pick_device())


def _print(report: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in report.items():
        table.add_row(key.replace("_", " "), shown(value))
    console().print(table)


def shown(value: Any, most: int = 12) -> str:
    """A value of the report for a person: lists and counts are cut after `most`."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        if set(value) == {"path", "reason"}:
            return f"{value['path']}: {value['reason']}"
        parts = [f"{key} {shown(item)}" for key, item in value.items()]
        return _cut(parts, most, ", ")
    if isinstance(value, (list, tuple)):
        if value and all(isinstance(item, int) for item in value):
            return " × ".join(str(item) for item in value)
        return _cut([shown(item) for item in value], most, "\n")
    return "none" if value is None else str(value)


def _cut(parts: list[str], most: int, between: str) -> str:
    if not parts:
        return "none"
    rest = [f"and {len(parts) - most:,} more"] if len(parts) > most else []
    return between.join(parts[:most] + rest)
