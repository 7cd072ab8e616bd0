"""`underpaint compare`: does an arm reach the baseline's score in less compute?"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from underpaint.cli.parser import Parser, add_output, console, print_json, print_table
from underpaint.errors import UserError, plain
from underpaint.progress import doing


def arguments(parser: Parser, verb: str) -> None:
    add = parser.add_argument
    add(
        "sources",
        metavar="STUDY.yaml|RUN",
        nargs="+",
        help=(
            "a study to run (it can be stopped and continued), or two or more finished runs, "
            "the first being the baseline"
        ),
    )
    add(
        "--out",
        metavar="FOLDER",
        help=(
            "folder for results.json, comparison.html and a study's runs (default: beside "
            "study.yaml, or studies/NAME for NAME.yaml; for finished runs comparison-NAMES "
            "beside the first)"
        ),
    )
    add("--overwrite", action="store_true", help="replace other results in --out")
    add(
        "--workers",
        type=int,
        default=0,
        metavar="N",
        help="runs at once (default: the number of cores; with submitit 64)",
    )
    add(
        "--launcher",
        choices=("local", "submitit"),
        default="local",
        help="submitit: each run of a study is a SLURM job (docs/clusters.md)",
    )
    add(
        "--job",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=(
            "what a job requests, in submitit's names: slurm_partition=gpu, gpus_per_node=1, "
            "timeout_min=720 (default: one day)"
        ),
    )
    add_output(parser)


def run(args: argparse.Namespace, others: list[str]) -> None:
    if args.workers < 0:
        raise UserError(f"--workers {args.workers}: give a number from 1 up")
    yamls = [source for source in args.sources if source.endswith((".yaml", ".yml"))]
    if len(args.sources) == 1 and not yamls:
        raise UserError(f"compare {args.sources[0]}: give a study, or two runs at least")
    if yamls and len(args.sources) > 1:
        raise UserError(f"compare takes one study alone; leave out all but {yamls[0]}")
    if args.job and args.launcher != "submitit":
        raise UserError("--job is for jobs; add --launcher submitit")
    out = Path(args.out) if args.out else None
    if args.launcher == "submitit" and not yamls:
        raise UserError("--launcher: runs that exist are compared here; leave it out")
    if yamls:
        with doing("starting"):
            from underpaint.compare import jobs, runner, study

        chosen = study.load(yamls[0])
        path = Path(yamls[0])
        out = out or (path.parent if path.stem == "study" else Path("studies") / path.stem)
        if out.exists() and not out.is_dir():
            raise UserError(f"{out}: is a file; choose another --out")
        stderr = console(stderr=True, quiet=args.quiet)
        how = {"workers": args.workers, "overwrite": args.overwrite, "say": stderr.print}
        if args.launcher == "submitit":
            how["jobs"] = jobs.settings(args.job)
        results = runner.conduct(chosen, out, **how)
    else:
        with doing("starting"):
            from underpaint.compare import compare_runs
            from underpaint.compare.runner import RESULTS
            from underpaint.io import check_new, check_place, is_marked, mark, writing

        out = out or beside(args.sources)
        ours = is_marked(out, "comparison")
        check_new([out / name for name in RESULTS], args.overwrite or ours)
        check_place(out)
        results = compare_runs.compare(args.sources)
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
            mark(out, "comparison")
    with doing("writing the page"):
        from underpaint.report import comparison

        page = comparison.write(results, out)
    if args.json:
        print_json({**results, "page": str(page)})
    else:
        _print(results, page)


def beside(sources: list[str]) -> Path:
    """The folder for a comparison of runs: beside the first, and named by them."""
    first, *others = (Path(source).expanduser().resolve() for source in sources)
    more = f"-and-{len(others) - 1}-more" if len(others) > 1 else ""
    return first.parent / f"comparison-{first.name}-{others[0].name}{more}"


def _overview(results: dict[str, Any]) -> None:
    """The runs and what differs, a column for each run."""
    from underpaint.report.summary import clock, flops

    runs, out = results["overview"], console()

    def cells(key: str, text: Callable[[Any], str]) -> list[str]:
        return ["–" if run[key] is None else text(run[key]) for run in runs]

    rows = [
        [name, *("–" if value is None else str(value) for value in values)]
        for name, values in results["differs"].items()
    ]
    rows += [
        ["images", *cells("images", lambda n: f"{n:,}")],
        ["compute", *cells("flops", flops)],
        ["time of training", *cells("seconds", clock)],
        ["error on held-out images", *cells("error", lambda v: f"{v:.4f}")],
        ["Fréchet distance", *cells("frechet", lambda v: f"{v:.4g}")],
    ]
    print_table(["", *(Path(run["run"]).name for run in runs)], rows)
    for protocol in {run["protocol"] for run in runs if run["frechet"] is not None}:
        out.print(plain(protocol))


def _print(results: dict[str, Any], page: Path | None) -> None:
    out = console()
    if "overview" in results:
        _overview(results)
    ways = {"verdicts": "", "amortised": "without its pre-training: ", "by_seconds": "by time: "}
    for name, intro in ways.items():
        for verdict in results.get(name, {}).values():
            out.print(plain(f"{intro}{verdict['sentence']}"))
    for note in results.get("notes", []):
        out.print(plain(f"note: {note}"))
    if page:
        out.print(f"page     {page}")
