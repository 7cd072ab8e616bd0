"""`underpaint audit`: what does a model reveal about its training images?"""

import argparse
from typing import Any

from underpaint.cli.evaluate import EXTRACTORS
from underpaint.cli.parser import (
    Parser,
    add_output,
    check_least,
    console,
    print_json,
    print_table,
    settings_of,
)
from underpaint.cli.settings import MOVED, RUN, add_model
from underpaint.errors import UserError, plain
from underpaint.progress import doing


def arguments(parser: Parser, verb: str) -> None:
    add = parser.add_argument
    add("source", metavar="RUN", help=RUN)
    add(
        "--attacks",
        dest="names",
        type=lambda text: [name.strip() for name in text.split(",") if name.strip()],
        metavar="NAMES",
        default="loss,secmi,pia,sima,masks",
        help="attacks on single images, separated by commas (default: %(default)s)",
    )
    add(
        "--against",
        dest="reference",
        metavar="MODEL|shadow",
        help=(
            "a reference model that was trained on none of these images; shadow: train such models"
        ),
    )
    add("--shadows", type=int, metavar="K", help="with shadow: how many models (default: 4)")
    add(
        "--shadow-images",
        type=int,
        metavar="N",
        help="with shadow: length of each training in images (default: as long as the run)",
    )
    add("--data", metavar="DATA", help=MOVED)
    add("--members", metavar="DATA", help="images trained on (default: as the run recorded)")
    add("--non-members", metavar="DATA", help="images not trained on (default: those held out)")
    add(
        "-n",
        type=int,
        metavar="N",
        help="images per side (default: 300, with --thorough 1000, or what --fpr needs)",
    )
    add(
        "--samples",
        type=int,
        metavar="N",
        help="samples to search for copies (default: 128, with --thorough 512)",
    )
    add(
        "--thorough",
        action="store_true",
        help="more images and samples: finds smaller leaks, takes five times as long",
    )
    add(
        "--features",
        dest="extractor",
        choices=EXTRACTORS,
        help="also look for copies in this feature space (default: pixels alone)",
    )
    add("--weights-file", metavar="FILE", help="weights of the feature network")
    add(
        "--fpr",
        type=float,
        nargs="+",
        default=(),
        help=(
            "false-positive rates that must be reported (default: 0.01 and 0.001, if there "
            "are enough images)"
        ),
    )
    add(
        "--no-control",
        dest="control",
        action="store_false",
        help="skip the positive control; the verdict says so",
    )
    add("--seed", type=int, default=0, help="of noises, masks and splits (default: %(default)s)")
    add_model(parser, "auto")
    add("--out", metavar="FOLDER", help="folder for the page and the JSON (default: RUN/audit)")
    add("--overwrite", action="store_true", help="replace an audit in --out")
    add_output(parser)


def run(args: argparse.Namespace, others: list[str]) -> None:
    check_least(args, n=1, samples=1, batch=1, seed=0, shadows=2, shadow_images=1)
    settings = settings_of(args)
    shadows = settings.pop("shadows", 0)
    if args.reference == "shadow":
        settings |= {"reference": None, "shadow_models": shadows or 4}
    elif shadows or args.shadow_images:
        raise UserError("--shadows and --shadow-images say how --against shadow trains; add that")
    if args.weights_file and not args.extractor:
        raise UserError("--weights-file is of the network that --features names; add that")
    from pathlib import Path

    from underpaint.io import check_new, check_place

    with doing("starting"):
        from underpaint.model_folder import pinned
        from underpaint.privacy.audit import audit
        from underpaint.report.audit import FILES, write

    settings["source"] = pinned(args.source, settings.pop("revision", None))
    source = Path(args.source)
    of_run = source / "audit" if (source / "config.yaml").is_file() else None
    out = Path(args.out) if args.out else of_run or Path("audit")
    check_new([out / name for name in FILES], args.overwrite or out == of_run)
    check_place(out)

    found = audit(**settings)
    page = write(found, out)
    if args.json:
        print_json({**found.result, "page": str(page)})
    else:
        _print(found.result, page)


def _print(result: dict[str, Any], page: object) -> None:
    from underpaint.privacy.verdict import sentence

    rows = []
    for name, record in result["membership"].items():
        area, accuracy = record["auc"], record["balanced_accuracy"]
        interval = f"{area['low']:.3f} to {area['high']:.3f}"
        rows.append([name, f"{area['value']:.3f}", interval, f"{accuracy['value']:.3f}"])
    print_table(["attack", "AUC", "interval", "balanced accuracy"], rows)
    out = console()
    for space, record in (result["copies"] or {}).get("spaces", {}).items():
        count = record["ratios"]["second"]["third"]["count"]
        out.print(f"copies by {space}: {count} of {record['samples']} samples")
    if result["completion"]:
        out.print(f"completion: advantage {result['completion']['advantage']:+.4f}")
    out.print(f"data set as a whole: p = {result['dataset']['p_value']:.2g}")
    out.print(sentence(result), style="bold")
    for line in [*result["reasons"], *result["findings"], *result["notes"]]:
        out.print(plain(f"  {line}"))
    out.print(f"page     {page}")
