"""`underpaint audit`: what does a model reveal about its training images?"""

from __future__ import annotations

import argparse
from typing import Any

from underpaint.cli.evaluate import EXTRACTORS
from underpaint.cli.parser import Bar, Parser, add_output, console, print_json
from underpaint.cli.settings import add_precision
from underpaint.errors import UserError

__all__ = ["arguments", "run"]


def arguments(parser: Parser, verb: str) -> None:
    """Flags."""
    add = parser.add_argument
    add("source", metavar="RUN", help="a run, a checkpoint, an exported model or pretrained:NAME")
    add(
        "--attacks",
        metavar="NAMES",
        default="loss,secmi,pia,sima,masks",
        help="attacks on single images, with commas between them (default: %(default)s)",
    )
    add(
        "--against",
        metavar="MODEL|shadow",
        help="a reference model that saw none of these images; shadow: models trained for it",
    )
    add("--shadows", type=int, metavar="K", help="with shadow: how many models (default: 4)")
    add(
        "--shadow-images",
        type=int,
        metavar="N",
        help="with shadow: length of each training in images (default: as long as the run)",
    )
    add("--members", metavar="DATA", help="images trained on (default: as the run recorded)")
    add("--non-members", metavar="DATA", help="images not trained on (default: those held out)")
    add(
        "-n",
        type=int,
        metavar="N",
        help="images of each kind (default: 1000, or what --fpr needs)",
    )
    add("--samples", type=int, default=512, help="searched for copies (default: %(default)s)")
    add(
        "--features",
        choices=EXTRACTORS,
        help="also look for copies in this feature space (default: pixels alone)",
    )
    add("--weights-file", metavar="FILE", help="weights of the feature network")
    add(
        "--fpr",
        type=float,
        nargs="+",
        default=[],
        help="false-positive rates that must be shown (default: 0.01 and 0.001, where there are "
        "images enough)",
    )
    add("--no-control", action="store_true", help="leave out the positive control and any verdict")
    add("--weights", choices=("ema", "model"), default="ema", help="default: %(default)s")
    add("--seed", type=int, default=0, help="of noises, masks and halves (default: %(default)s)")
    add("--vae", metavar="FOLDER", help="where the model's autoencoder is now, if it has moved")
    add("--batch", type=int, default=64, help="images at once (default: %(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda or mps (default: %(default)s)")
    add_precision(parser, "auto")
    add("--out", metavar="FOLDER", help="where page and JSON go (default: RUN/audit)")
    add("--overwrite", action="store_true", help="replace an audit that is in --out")
    add_output(parser)


def run(args: argparse.Namespace, others: list[str]) -> None:
    """Write `audit.json` and `audit.html`, and print what was found."""
    for flag, value, least in (
        ("-n", args.n, 1),
        ("--samples", args.samples, 1),
        ("--batch", args.batch, 1),
        ("--seed", args.seed, 0),
        ("--shadows", args.shadows, 2),
        ("--shadow-images", args.shadow_images, 1),
    ):
        if value is not None and value < least:
            raise UserError(f"{flag} {value}: give a number from {least} up")
    shadow = args.against == "shadow"
    if not shadow and (args.shadows or args.shadow_images):
        raise UserError("--shadows and --shadow-images say how --against shadow trains; add that")
    if args.weights_file and not args.features:
        raise UserError("--weights-file is of the network that --features names; add that")
    from pathlib import Path

    from underpaint.io import check_new, check_place
    from underpaint.privacy.audit import audit
    from underpaint.report.audit import FILES, write

    source = Path(args.source)
    of_run = source / "audit" if (source / "config.yaml").is_file() else None
    out = Path(args.out) if args.out else of_run or Path("audit")
    check_new([out / name for name in FILES], args.overwrite or out == of_run)
    check_place(out)

    bars: dict[str, Bar] = {}

    def progress(what: str, done: int, total: int) -> None:
        bars.setdefault(what, Bar(what, quiet=args.quiet))(done, total)

    found = audit(
        args.source,
        names=[name.strip() for name in args.attacks.split(",") if name.strip()],
        n=args.n or 0,
        samples=args.samples,
        fpr=args.fpr,
        reference=None if shadow else args.against,
        shadow_models=(args.shadows or 4) if shadow else 0,
        shadow_images=args.shadow_images or 0,
        extractor=args.features,
        weights_file=args.weights_file,
        members=args.members,
        non_members=args.non_members,
        weights=args.weights,
        control=not args.no_control,
        seed=args.seed,
        batch=args.batch,
        device=args.device,
        vae=args.vae,
        precision=args.precision,
        progress=progress,
    )
    page = write(found, out)
    if args.json:
        print_json({**found.result, "page": str(page)})
    else:
        _print(found.result, page)


def _print(result: dict[str, Any], page: object) -> None:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for i, column in enumerate(("attack", "AUC", "interval", "balanced accuracy")):
        table.add_column(column, justify="right" if i else "left")
    for name, record in result["membership"].items():
        found = record["auc"]
        table.add_row(
            name,
            f"{found['value']:.3f}",
            f"{found['low']:.3f} to {found['high']:.3f}",
            f"{record['balanced_accuracy']['value']:.3f}",
        )
    out = console()
    out.print(table)
    for space, record in (result["copies"] or {}).get("spaces", {}).items():
        count = record["ratios"]["second"]["third"]["count"]
        out.print(f"copies by {space}: {count} of {record['samples']} samples")
    if result["completion"]:
        out.print(f"completion: advantage {result['completion']['advantage']:+.4f}")
    out.print(f"data set as a whole: p = {result['dataset']['p_value']:.2g}")
    out.print(f"[bold]{result['verdict']}[/bold]")
    for line in [*result["reasons"], *result["findings"], *result["notes"]]:
        out.print(f"  {line}")
    out.print(f"page     {page}")
