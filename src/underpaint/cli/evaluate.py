"""`underpaint evaluate`: how near samples are to real images, with the noise floor beside it."""

from __future__ import annotations

import argparse
import math
import os
from typing import Any

from underpaint import config
from underpaint.cli.parser import Bar, Parser, add_output, console, print_json
from underpaint.cli.settings import add_precision, choices
from underpaint.errors import UserError

__all__ = ["arguments", "run"]

EXTRACTORS = ("mobilenetv2", "inception", "torchscript")
COLUMNS = {"train": "train", "held_out": "held-out", "floor": "real images"}


def arguments(parser: Parser, verb: str) -> None:
    """Flags; what is left out of sampling is taken from the model's own `sampling` settings."""
    add = parser.add_argument
    add(
        "source",
        metavar="RUN|FOLDER",
        nargs="+",
        help="a run, a checkpoint, an exported model, pretrained:NAME, or images as `prepare` "
        "reads",
    )
    add(
        "--reference",
        metavar="DATA",
        help="real images, as `prepare` reads them (default: the run's own data)",
    )
    add(
        "-n",
        type=int,
        metavar="N",
        help="images a side (default: as many as are held out, at most 10,000)",
    )
    add(
        "--features",
        choices=EXTRACTORS,
        default=EXTRACTORS[0],
        help="feature space; only inception gives an FID (default: %(default)s)",
    )
    add("--weights-file", metavar="FILE", help="weights of the feature network")
    add("--held-out", metavar="SPEC", help="as in `prepare` (default: as in the run, else auto)")
    add("--size", type=int, nargs="+", metavar=("H", "W"), help="pixels of the reference")
    add("--seed", type=int, default=0, help="image i has seed SEED + i (default: %(default)s)")
    add("--steps", type=int, help="sampling steps (default: the model's own)")
    for name in ("sampler", "grid", "clip"):
        add(f"--{name}", choices=choices(config.Sampling, name), help="default: the model's own")
    add("--guidance", type=float, help="classifier-free guidance, 1: none (default: its own)")
    add("--eta", type=float, help="noise of the ancestral sampler (default: the model's own)")
    add(
        "--corrections",
        type=int,
        help="Langevin steps at each level (langevin, pc; default: its own)",
    )
    add("--snr", type=float, help="size of a Langevin step (langevin, pc; default: its own)")
    add("--weights", choices=("ema", "model"), default="ema", help="default: %(default)s")
    add("--vae", metavar="FOLDER", help="where the model's autoencoder is now, if it has moved")
    add("--batch", type=int, default=64, help="images drawn at once (default: %(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda or mps (default: %(default)s)")
    add_precision(parser, "fp32")
    add("--no-interval", action="store_true", help="leave out the intervals, which take longest")
    add_output(parser)


def run(args: argparse.Namespace, others: list[str]) -> None:
    """Score each source and print a table."""
    for flag, value, least in (
        ("--steps", args.steps, 1),
        ("--seed", args.seed, 0),
        ("--batch", args.batch, 1),
        ("--guidance", args.guidance, 0),
        ("--eta", args.eta, 0),
        ("--corrections", args.corrections, 0),
    ):
        if value is not None and not least <= value < math.inf:
            raise UserError(f"{flag} {value:g}: give a number from {least} up")
    if len(args.source) > 1 and os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError("evaluate under torchrun takes one RUN|FOLDER; call it once for each")
    from underpaint.evaluation.evaluate import evaluate
    from underpaint.evaluation.results import SAMPLING, differences

    results: list[dict[str, Any]] = []
    for source in args.source:
        with Bar(f"features of {source}", quiet=args.quiet) as bar:
            result = evaluate(
                source,
                args.reference,
                n=args.n,
                extractor=args.features,
                weights_file=args.weights_file,
                held_out=args.held_out,
                size=tuple(args.size or ()),
                seed=args.seed,
                sampling={name: getattr(args, name) for name in SAMPLING},
                weights=args.weights,
                batch=args.batch,
                device=args.device,
                vae=args.vae,
                precision=args.precision,
                interval=not args.no_interval,
                progress=bar,
            )
        if result is not None:
            results.append(result)
    if not results:
        return  # another process of torchrun prints
    warnings = [
        f"{other['source']} cannot be compared with {results[0]['source']}: {'; '.join(found)}"
        for other in results[1:]
        if (found := differences(results[0]["protocol"], other["protocol"]))
    ]
    if args.json:
        print_json({"results": results, "warnings": warnings})
    else:
        _print(results, warnings)


def _print(results: list[dict[str, Any]], warnings: list[str]) -> None:
    from rich.table import Table

    out = console()
    for result in results:
        protocol = result["protocol"]
        names = {
            "frechet": protocol["scores"][0],
            "kernel": protocol["scores"][1],
            **{name: name for name in ("precision", "recall", "density", "coverage")},
        }
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        table.add_column(result["source"], style="bold", no_wrap=True)
        columns = {name: COLUMNS[name] for name in COLUMNS if name in result["scores"]}
        for column in columns.values():
            table.add_column(column, justify="right")
        for key, name in names.items():
            table.add_row(name, *(_cell(key, result["scores"][column]) for column in columns))
        out.print(table)
        out.print(_protocol_line(protocol))
        for note in result["warnings"]:
            out.print(f"note: {note}")
    for warning in warnings:
        out.print(f"warning: {warning}")


def _cell(key: str, scores: dict[str, Any]) -> str:
    value = scores[key]
    digits = ".4f" if key == "kernel" else ".4g" if key == "frechet" else ".3f"
    if interval := scores.get(f"{key}_interval"):
        low, high = interval
        return f"{value:{digits}} ({low:{digits}} to {high:{digits}})"
    if deviation := scores.get(f"{key}_std"):
        return f"{value:{digits}} ± {deviation:{digits}}"
    return f"{value:{digits}}"


def _protocol_line(protocol: dict[str, Any]) -> str:
    """The protocol in a line."""
    parts = [
        f"{protocol['count']:,} images a side of {protocol['reference']['source']}",
        f"{protocol['extractor']} {protocol['extractor_sha256'][:8]}",
    ]
    if protocol["sampling"]:
        sampling = protocol["sampling"]
        first, last = protocol["seeds"]
        parts.append(
            f"{sampling['sampler']} {sampling['steps']} steps, guidance {sampling['guidance']:g}"
        )
        parts.append(sampling["precision"])
        parts.append(f"seeds {first} to {last}")
        ema = f" {protocol['ema']:g}" if protocol["ema"] else ""
        parts.append(f"weights {protocol['weights']}{ema}")
    return "; ".join(parts)
