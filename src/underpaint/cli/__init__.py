"""The command line: verbs, each a file that calls one function of the library.

Nothing heavy is imported before a verb runs, so that `--help` answers at once. Exit codes: 0 done,
1 the run failed, 2 wrong use (one line), 130 interrupted.
"""

import importlib
import io
import os
import sys
import time
from typing import Any

from underpaint import cores
from underpaint._version import __version__
from underpaint.cli.parser import Parser, closest
from underpaint.errors import Interrupted, RunFailed, UserError

VERBS = {  # verb: (module of this package, one line)
    "quickstart": ("quickstart", "train on drawn avatars, in minutes, and write a report"),
    "prepare": ("prepare", "decode a set of images and report what is in it"),
    "seal": ("seal", "keep only the visible patches of images, in one sealed file"),
    "presets": ("presets", "list the recipes of the package, or print one to copy"),
    "plan": ("plan", "propose a recipe for these images, this machine and a budget"),
    "train": ("train", "train a model on a set of images"),
    "pretrain": ("train", "train only the masked stages of a recipe"),
    "finetune": ("train", "train only the whole-image stages of a recipe, from other weights"),
    "sample": ("sample", "draw images from a trained model"),
    "edit": ("edit", "repaint parts of images, widen or vary them, or interpolate between seeds"),
    "evaluate": ("evaluate", "score samples against training and held-out images"),
    "compare": ("compare", "compare runs, or run a study of how much compute each recipe needs"),
    "audit": ("audit", "attack a trained model: what does it reveal about its training images?"),
    "ema": ("ema", "compute weight averages (EMA) of other widths after training"),
    "export": ("export", "write a trained model in a format that other software reads"),
    "app": ("app", "draw, repaint and vary images with a trained model in the browser"),
    "import": ("import_", "read a checkpoint of other software"),
    "report": ("report", "write a run's report, or follow an unfinished run in the browser"),
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code. Defects of the software keep their traceback."""
    began = time.monotonic()
    cores.share()
    for stream in (sys.stdout, sys.stderr):  # names of files may be in no encoding at all
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        _dispatch(sys.argv[1:] if argv is None else argv, began)
        sys.stdout.flush()
    except UserError as error:
        return _end(str(error), 2)
    except RunFailed as error:
        return _end(str(error), 1)
    except Interrupted as error:
        return _end(str(error), 130)
    except KeyboardInterrupt:
        return _end("interrupted", 130)
    except BrokenPipeError:  # the reader of a pipe has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def parser(verb: str) -> Parser:
    """The parser of one verb."""
    module, line = VERBS[verb]
    end = "" if line.endswith("?") else "."
    result = Parser(prog=f"underpaint {verb}", description=line[0].upper() + line[1:] + end)
    importlib.import_module(f"underpaint.cli.{module}").arguments(result, verb)
    return result


def _dispatch(argv: list[str], began: float) -> None:
    first = argv[0] if argv else "--help"
    if first in ("-h", "--help", "help") and (len(argv) < 2 or argv[1] not in VERBS):
        print(_overview())
    elif first in ("-h", "--help", "help"):
        parser(argv[1]).print_help()
    elif first == "--version":
        print(f"underpaint {__version__}")
    elif first not in VERBS and {"-h", "--help"} & {*argv}:
        _dispatch(["--help", *(arg for arg in argv if arg in VERBS)], began)
    elif first not in VERBS:
        raise UserError(f"'{first}' is not a command; {closest(first, [*VERBS])}")
    else:
        verb_parser = parser(first)
        args, others = verb_parser.parse_known_args(argv[1:])
        for name, value in vars(args).items():  # of `--out=~/x`, which no shell expands
            if name not in ("label", "n"):
                setattr(args, name, _home(value))
        verb_parser.refuse(others)
        from underpaint.progress import shown

        args.began = began
        with shown(getattr(args, "quiet", False)):
            importlib.import_module(f"underpaint.cli.{VERBS[first][0]}").run(args, others)


def _home(value: Any) -> Any:
    """A text that begins with ~, or a list of such, with the home folder instead."""
    if isinstance(value, list):
        return [_home(item) for item in value]
    return os.path.expanduser(value) if isinstance(value, str) else value


def _overview() -> str:
    lines = [f"  {verb:<12}{line}" for verb, (_, line) in VERBS.items()]
    return "\n".join(
        [
            "usage: underpaint COMMAND …",
            "",
            "Train image diffusion models from scratch on your own images, cheaply.",
            "",
            *lines,
            "",
            "underpaint COMMAND --help lists a command's flags; underpaint --version "
            "prints the version.",
        ]
    )


def _end(message: str, code: int) -> int:
    if message:  # of names with control characters none reaches the terminal
        shown = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(message.split()))
        print(f"underpaint: {shown}", file=sys.stderr)
    return code
