"""`underpaint app`: the page that draws with a trained model, served on this machine alone."""

import argparse
import errno
import functools
import http.server
import sys
import threading
import webbrowser
from pathlib import Path
from typing import Any

from underpaint.cli.parser import Parser, add_output, print_json
from underpaint.cli.settings import RUN
from underpaint.errors import Interrupted, UserError

PORT = 8010
TRIES = 20  # ports that are tried, one after the other
HERE = "127.0.0.1"


def arguments(parser: Parser, verb: str) -> None:
    add = parser.add_argument
    add("model", metavar="RUN", help=RUN)
    add(
        "--port",
        type=int,
        default=PORT,
        help="of this machine (default: %(default)s); if it is in use, the next that is not",
    )
    add("--no-browser", action="store_true", help="open no browser; only say the address")
    add_output(parser)


def run(args: argparse.Namespace, others: list[str]) -> None:
    if not 1 <= args.port <= 65535:
        raise UserError(f"--port {args.port}: give a number from 1 to 65535")
    from underpaint.interop import web

    def say(text: str) -> None:
        if not args.quiet:
            print(text, file=sys.stderr, flush=True)

    folder = web.made(args.model, say)
    with bound(folder, args.port) as server:
        port = server.server_address[1]
        if port != args.port:
            say(f"port {args.port} is in use; {port} is taken")
        address = f"http://{HERE}:{port}/"
        if args.json:
            print_json({"url": address, "folder": str(folder)})
        else:
            print(f"{address}   (Ctrl-C ends it)")
        sys.stdout.flush()
        if not args.no_browser:
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            raise Interrupted("") from None  # the way to end it: nothing to say


def bound(folder: Path, port: int) -> http.server.ThreadingHTTPServer:
    """A server of the files in `folder`, on the first free port from `port` on.

    Raises UserError if none of `TRIES` is free.
    """
    handler = functools.partial(Handler, directory=str(folder))
    for number in range(port, min(port + TRIES, 65536)):
        try:
            return http.server.ThreadingHTTPServer((HERE, number), handler)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
    raise UserError(f"--port {port}: is in use, and so are the next {TRIES - 1}; give another")


class Handler(http.server.SimpleHTTPRequestHandler):
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

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-cache")  # the page is made anew for other weights
        self.send_header("X-Content-Type-Options", "nosniff")
        super().end_headers()

    def list_directory(self, path: Any) -> None:
        self.send_error(404, "Not found")

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: what the page says is on the page."""
