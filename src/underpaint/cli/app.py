"""`underpaint app`: the page that draws with a trained model, served on this machine alone."""

import argparse
import functools
import http.server
import sys
from pathlib import Path
from typing import Any

from underpaint.cli.parser import Parser, add_output, print_json
from underpaint.cli.settings import RUN
from underpaint.progress import doing
from underpaint.serving import Quiet, check_port, serve

PORT = 8010


def arguments(parser: Parser, verb: str) -> None:
    add = parser.add_argument
    add("model", metavar="RUN", help=RUN)
    add(
        "--port",
        type=int,
        default=PORT,
        help="on this machine (default: %(default)s); if it is in use, the next free one",
    )
    add("--no-browser", action="store_true", help="only print the address")
    add_output(parser)


def run(args: argparse.Namespace, others: list[str]) -> None:
    check_port(args.port)
    with doing("starting"):
        from underpaint.interop import web

    def say(text: str) -> None:
        if not args.quiet:
            print(text, file=sys.stderr, flush=True)

    folder = web.made(args.model, say)

    def said(address: str, moved: bool) -> None:
        if moved:
            say(f"port {args.port} is in use; {address} is there instead")
        if args.json:
            print_json({"url": address, "folder": str(folder)})
        else:
            print(f"{address}   (Ctrl-C ends it)")
        sys.stdout.flush()

    serve(of(folder), args.port, said, browser=not args.no_browser)


def of(folder: Path) -> Any:
    """What serves the files of `folder`."""
    return functools.partial(Handler, directory=str(folder))


class Handler(Quiet, http.server.SimpleHTTPRequestHandler):
    """Files of one folder, with types that do not depend on the machine; no lists of folders."""

    extensions_map = {  # noqa: RUF012
        "": "application/octet-stream",
        ".html": "text/html; charset=utf-8",
        ".css": "text/css; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
        ".json": "application/json",
        ".svg": "image/svg+xml",
        ".md": "text/markdown; charset=utf-8",
        ".gz": "application/gzip",
    }

    def list_directory(self, path: Any) -> None:
        self.send_error(404, "Not found")
