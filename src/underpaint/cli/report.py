"""`underpaint report`: one page on a run, when it is finished or while it goes on."""

import argparse
import functools
import html
import sys
import threading
from pathlib import Path
from typing import Any

from underpaint.cli.parser import Parser, print_json
from underpaint.cli.settings import MOVED
from underpaint.errors import UserError
from underpaint.progress import doing
from underpaint.serving import Quiet, check_port, serve

PORT = 8030
DRAWING = threading.Lock()  # charts are drawn one at a time
EVERY = 10  # seconds between two looks at a run that goes on


def arguments(parser: Parser, verb: str) -> None:
    add = parser.add_argument
    add("run", metavar="RUN", help="a run's folder")
    add(
        "--no-training-images",
        dest="training_images",
        action="store_false",
        help="leave training images out of the page, so that it can be shared",
    )
    add("--data", metavar="DATA", help=MOVED)
    add("--live", action="store_true", help="follow an unfinished run in the browser")
    add(
        "--port",
        type=int,
        default=PORT,
        help="of --live (default: %(default)s); if it is in use, the next free one",
    )
    add("--no-browser", action="store_true", help="with --live: only print the address")
    add("--json", action="store_true", help="print one JSON object on stdout")


def run(args: argparse.Namespace, others: list[str]) -> None:
    with doing("starting"):
        from underpaint import config, report

    place = Path(args.run).expanduser()
    if args.live:
        check_port(args.port)
        report.live(place, EVERY)  # refuses what is no run
        serve(functools.partial(Live, run=place), args.port, _said(args), not args.no_browser)
        return
    with doing("writing the report"):
        path = report.build(place, training_images=args.training_images, data=args.data)
    recipe = config.load(place / "config.yaml")
    sources = sorted({(stage.data or recipe.data).source for stage in recipe.stages.values()})
    if sources and args.training_images and not (args.json or args.data):
        # a stranger's may name a folder of ours
        print(f"shows images of {', '.join(sources)}, as its config.yaml says", file=sys.stderr)
    print_json({"report": str(path)}) if args.json else print(path)


def _said(args: argparse.Namespace) -> Any:
    def said(address: str, moved: bool) -> None:
        if moved:
            print(f"port {args.port} is in use; {address} is there instead", file=sys.stderr)
        print_json({"url": address}) if args.json else print(f"{address}   (Ctrl-C ends it)")
        sys.stdout.flush()

    return said


class Live(Quiet):
    """The page of a run as it is now, at `/`; nothing else of the folder."""

    def __init__(self, *args: Any, run: Path, **more: Any) -> None:
        self.run = run
        super().__init__(*args, **more)

    def do_GET(self) -> None:  # noqa: N802
        """Answer a browser."""
        from underpaint import report

        if self.path != "/":
            self.send_error(404, "Not found")
            return
        try:
            with DRAWING:
                page = report.live(self.run, EVERY)
        except UserError as error:  # as while a run begins anew
            page = f'<meta http-equiv="refresh" content="{EVERY}"><p>{html.escape(str(error))}</p>'
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(page.encode("utf-8", "backslashreplace"))
