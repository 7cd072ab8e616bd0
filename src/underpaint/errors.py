"""The exceptions that a command turns into one line, a sentence for a person, and an exit code.

Anything else that is raised is a defect of the software and keeps its traceback.
"""

import contextlib
import os
from collections.abc import Iterator
from unicodedata import category


class UserError(Exception):
    """Wrong use: a path, a setting or a file that cannot work, or a full disk. Exit code 2."""


class RunFailed(Exception):
    """A run that began well and could not go on, as when it diverges. Exit code 1."""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM, after a checkpoint was written. Exit code 130."""


@contextlib.contextmanager
def said_once() -> Iterator[None]:
    """Of wrong use that all processes of a run meet alike one line is said, by the first."""
    try:
        yield
    except UserError:
        if os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0":
            raise
        raise UserError("") from None


def plain(text: str) -> str:
    """A line without the control characters that a name may hold, and a terminal would obey.

    Line breaks are among them: what is one line stays one.
    """
    return "".join("\ufffd" if category(c) in ("Cc", "Zl", "Zp") else c for c in text)
