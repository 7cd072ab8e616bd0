"""`underpaint compare`: does an arm reach the baseline's score in less compute?"""

import argparse
from pathlib import Path
from typing import Any

from underpaint.cli.parser import Parser, add_output, console, print_json
from underpaint.errors import UserError, plain


def arguments(parser: Parser, verb: str) -> None:
    add = parser.add_argument
    add(
        "sources",
        metavar="STUDY.yaml|RUN",
        nargs="+",
        help="a study, which is run and can be stopped and continued; or two runs that exist and "
        "more, the first being the baseline",
    )
    add(
        "--out",
        metavar="FOLDER",
        help="for the runs of a study, results.json and comparison.html (default: where study.yaml "
        "is, or studies/ and another name; of runs that exist nothing is written without it)",
    )
    add("--overwrite", action="store_true", help="replace other results that are in --out")
    add("--workers", type=int, default=0, metavar="N", help="runs at once (default: the cores)")
    add_output(parser)


def run(args: argparse.Namespace, others: list[str]) -> None:
    if args.workers < 0:
        raise UserError(f"--workers {args.workers}: give a number from 1 up")
    yamls = [source for source in args.sources if source.endswith((".yaml", ".yml"))]
    if len(args.sources) == 1 and not yamls:
        raise UserError(f"compare {args.sources[0]}: give a study, or two runs at least")
    if yamls and len(args.sources) > 1:
        raise UserError(f"compare takes one study alone; leave out all but {yamls[0]}")
    out = Path(args.out) if args.out else None
    if yamls:
        from underpaint.compare import runner, study

        chosen = study.load(yamls[0])
        path = Path(yamls[0])
        out = out or (path.parent if path.stem == "study" else Path("studies") / path.stem)
        if out.exists() and not out.is_dir():
            raise UserError(f"{out}: is a file; choose another --out")
        stderr = console(stderr=True, quiet=args.quiet)
        results = runner.conduct(
            chosen, out, workers=args.workers, overwrite=args.overwrite, say=stderr.print
        )
    else:
        from underpaint.compare import compare_runs
        from underpaint.compare.runner import RESULTS
        from underpaint.io import check_new, check_place

        if out is not None:
            check_new([out / name for name in RESULTS], args.overwrite)
            check_place(out)
        results = compare_runs.compare(args.sources)
    page = None
    if out is not None:
        from underpaint.report import comparison

        page = comparison.write(results, out)
    if args.json:
        print_json({**results, "page": str(page) if page else None})
    else:
        _print(results, page)


def _print(results: dict[str, Any], page: Path | None) -> None:
    out = console()
    ways = {"verdicts": "", "amortised": "without its pre-training: ", "by_seconds": "by time: "}
    for name, intro in ways.items():
        for verdict in results.get(name, {}).values():
            out.print(plain(f"{intro}{verdict['sentence']}"))
    for note in results.get("notes", []):
        out.print(plain(f"note: {note}"))
    if page:
        out.print(f"page     {page}")
