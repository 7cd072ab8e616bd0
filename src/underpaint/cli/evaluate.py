"""`underpaint evaluate`: how near samples are to real images, with the noise floor beside it."""

import argparse
import os
from typing import Any

from underpaint.cli.parser import (
    Parser,
    add_output,
    check_least,
    console,
    print_json,
    print_table,
    settings_of,
)
from underpaint.cli.settings import MOVED, RUN, add_model, add_sampling, add_setting, sampling_of
from underpaint.errors import UserError, plain
from underpaint.progress import doing

EXTRACTORS = ("mobilenetv2", "inception", "torchscript")
COLUMNS = {"train": "train", "held_out": "held-out", "floor": "real images"}


def arguments(parser: Parser, verb: str) -> None:
    """Flags; what is left out of sampling is taken from the model's own `sampling` settings."""
    add = parser.add_argument
    add(
        "source",
        metavar="RUN|FOLDER",
        nargs="+",
        help=f"{RUN}; or images as `prepare` reads",
    )
    add(
        "--reference",
        metavar="DATA",
        help="real images, in any form that `prepare` reads (default: the run's data)",
    )
    add("--data", metavar="DATA", help=MOVED)
    add(
        "-n",
        type=int,
        metavar="N",
        help="images per side (default: as many as are held out, at most 10,000)",
    )
    add(
        "--features",
        dest="extractor",
        choices=EXTRACTORS,
        default=EXTRACTORS[0],
        help="feature space; only inception gives an FID (default: %(default)s)",
    )
    add("--weights-file", metavar="FILE", help="weights of the feature network")
    add("--held-out", metavar="SPEC", help="as in `prepare` (default: as in the run, else auto)")
    add(
        "--size",
        type=int,
        nargs="+",
        metavar=("H", "W"),
        help="pixels to which the images of both sides are resized",
    )
    few = "3 for images, the model's for a model"
    add_setting(parser, "--channels", "data.channels", few)
    add("--seed", type=int, default=0, help="image i has seed SEED + i (default: %(default)s)")
    add_sampling(parser)
    add_model(parser, "fp32")
    add(
        "--no-interval",
        dest="interval",
        action="store_false",
        help="skip the intervals, which take longest",
    )
    add_output(parser)


def run(args: argparse.Namespace, others: list[str]) -> None:
    check_least(args, seed=0, batch=1)
    sampling = sampling_of(args)
    if len(args.source) > 1 and os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError("evaluate under torchrun takes one RUN|FOLDER; call it once for each")
    with doing("starting"):
        from underpaint.evaluation.evaluate import evaluate
        from underpaint.evaluation.results import differences
        from underpaint.model_folder import pinned

    settings = settings_of(args) | {"size": tuple(args.size or ()), "sampling": sampling}
    for name in (*sampling, "source", "revision"):
        settings.pop(name, None)
    results: list[dict[str, Any]] = []
    for source in [pinned(name, args.revision) for name in args.source]:
        result = evaluate(source, **settings)
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
    out = console()
    for result in results:
        protocol, scores = result["protocol"], result["scores"]
        names = dict(zip(("frechet", "kernel"), protocol["scores"], strict=True))
        names |= {name: name for name in ("precision", "recall", "density", "coverage")}
        there = [column for column in COLUMNS if column in scores]
        print_table(
            [result["source"], *(COLUMNS[column] for column in there)],
            [
                [name, *(_cell(key, scores[column]) for column in there)]
                for key, name in names.items()
            ],
        )
        if twice := result["twice"]:
            out.print(_twice_line(twice, protocol["scores"][0]))
        out.print(plain(_protocol_line(protocol)))
        for note in result["warnings"]:
            out.print(plain(f"note: {note}"))
    for warning in warnings:
        out.print(plain(f"warning: {warning}"))


def _cell(key: str, scores: dict[str, Any]) -> str:
    value = scores[key]
    digits = ".4f" if key == "kernel" else ".4g" if key == "frechet" else ".3f"
    if interval := scores.get(f"{key}_interval"):
        low, high = interval
        return f"{value:{digits}} ({low:{digits}} to {high:{digits}})"
    if deviation := scores.get(f"{key}_std"):
        return f"{value:{digits}} ± {deviation:{digits}}"
    return f"{value:{digits}}"


def _twice_line(found: dict[str, Any], distance: str) -> str:
    """How far the distance moves with twice the steps."""
    moved = f"{found['difference']:+.3g}"
    if found["interval"]:
        moved += " ({:+.3g} to {:+.3g})".format(*found["interval"])
    side = "held-out" if found["side"] == "held_out" else "training"
    return (
        f"with twice the steps ({found['steps']}): {distance} {moved}, of {found['count']} samples "
        f"of the same seeds against {side} images"
    )


def _protocol_line(protocol: dict[str, Any]) -> str:
    parts = [
        f"{protocol['count']:,} images per side of {protocol['reference']['source']}",
        f"{protocol['extractor']} {protocol['extractor_sha256'][:8]}",
    ]
    parts += [protocol["grounds"]] if protocol.get("grounds") else []
    if sampling := protocol["sampling"]:
        first, last = protocol["seeds"]
        ema = f" {protocol['ema']:g}" if protocol["ema"] else ""
        parts += [
            f"{sampling['sampler']} {sampling['steps']} steps, guidance {sampling['guidance']:g}",
            sampling["precision"],
            f"seeds {first} to {last}",
            f"weights {protocol['weights']}{ema}",
        ]
    return "; ".join(parts)
