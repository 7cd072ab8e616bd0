"""A server for this machine alone: pages on 127.0.0.1, by the standard library."""

import errno
import http.server
import threading
import webbrowser
from collections.abc import Callable
from typing import Any

from underpaint.errors import Interrupted, UserError

TRIES = 20  # ports that are tried, one after the other
HERE = "127.0.0.1"

Handler = Callable[..., http.server.BaseHTTPRequestHandler]


def check_port(port: int) -> None:
    """Raise UserError for a number that is no port's."""
    if not 1 <= port <= 65535:
        raise UserError(f"--port {port}: give a number from 1 to 65535")


def bound(handler: Handler, port: int) -> http.server.ThreadingHTTPServer:
    """A server on the first free port from `port` on. Raises UserError if none of TRIES is free."""
    check_port(port)
    for number in range(port, min(port + TRIES, 65536)):
        try:
            return http.server.ThreadingHTTPServer((HERE, number), handler)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
    raise UserError(f"--port {port}: is in use, and so are the next {TRIES - 1}; give another")


def serve(
    handler: Handler, port: int, said: Callable[[str, bool], None], browser: bool = True
) -> None:
    """Serve until Ctrl-C, which raises Interrupted without a word.

    `said` hears of the address, and whether it has another port than was asked for. `browser`: open
    one there.
    """
    with bound(handler, port) as server:
        number = server.server_address[1]
        address = f"http://{HERE}:{number}/"
        said(address, number != port)
        if browser:
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            raise Interrupted("") from None


class Quiet(http.server.BaseHTTPRequestHandler):
    """Says nothing on the terminal, and has browsers ask anew each time."""

    def end_headers(self) -> None:
        """With headers that every answer has."""
        self.send_header("Cache-Control", "no-cache")
        self.send_header("X-Content-Type-Options", "nosniff")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: what the page says is on the page."""
