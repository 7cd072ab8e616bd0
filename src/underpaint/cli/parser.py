"""argparse with errors of one line, and what several verbs share on the terminal."""

import argparse
import difflib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from underpaint.errors import UserError, plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def closest(name: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?`, or all that is known."""
    known = list(known)
    close = difflib.get_close_matches(name, known, 1, 0.5)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"


def width() -> int:
    """Columns for text."""
    return max(60, min(100, shutil.get_terminal_size((100, 24)).columns))


MEANT = {  # what other trainers call it
    "--epochs": "lengths are in images or minutes: --minutes 30, or --stages.NAME.images N",
    "--steps": "lengths are in images or minutes: --minutes 30, or --stages.NAME.images N",
    "--iterations": "lengths are in images or minutes: --minutes 30, or --stages.NAME.images N",
    "--batch-size": "did you mean '--stages.NAME.batch'?",
    "--batch": "did you mean '--stages.NAME.batch'?",
    "--lr": "did you mean '--stages.NAME.learning_rate'?",
    "--learning-rate": "did you mean '--stages.NAME.learning_rate'?",
    "--gpus": "start it as: torchrun --nproc-per-node N -m underpaint train …",
    "--resolution": "did you mean '--size'?",
    "--image-size": "did you mean '--size'?",
    "--output": "did you mean '--out'?",
    "--name": "did you mean '--out'?",
    "--seed": "did you mean '--train.seed'?",
}


class Parser(argparse.ArgumentParser):
    """Raises UserError with one sentence instead of printing a usage page."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            allow_abbrev=False,
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
                prog, max_help_position=34, width=width()
            ),
            **options,
        )
        self.settings: list[str] = []  # dotted flags that are left for `config.apply_flags`

    def error(self, message: str) -> NoReturn:
        """What argparse found, in our words."""
        message = re.sub(r"^argument ", "", message)
        message = re.sub(r"^(-n|--\w[\w-]*)(, ?-\S+|/\S+)?: ", r"\1: ", message)
        message = re.sub(r"invalid int value: (.*)$", r"expected a whole number, got \1", message)
        message = re.sub(r"invalid float value: (.*)$", r"expected a number, got \1", message)
        choice = re.match(r"(.*?): invalid choice: (\S+) \(choose from (.*)\)$", message)
        if choice:
            options = choice[3].replace("'", "")
            message = f"{choice[1]}: {choice[2]} is not one of {options}"
        needed = re.match(r"the following arguments are required: (.*)$", message)
        if needed:
            message = f"{self.prog.split()[-1]} needs {needed[1]}; see {self.prog} --help"
        raise UserError(message)

    def refuse(self, others: list[str]) -> None:
        """Raise UserError for arguments that nothing will take."""
        flags = [o.partition("=")[0] for o in others if re.match("--?[A-Za-z]", o)]  # not -1
        if self.settings:
            flags = [flag for flag in flags if "." not in flag]
        known = [name for action in self._actions for name in action.option_strings]
        for flag in flags:
            if self.settings and flag in MEANT:
                raise UserError(f"'{flag}' is not a flag of {self.prog}; {MEANT[flag]}")
            last = flag.removeprefix("--")  # `--batch` of `--stages.NAME.batch`
            close = [name for name in self.settings if name.rpartition(".")[2] == last]
            close = close or difflib.get_close_matches(flag, [*known, *self.settings], 1, 0.6)
            hint = f"did you mean '{close[0]}'?" if close else f"see {self.prog} --help"
            raise UserError(f"'{flag}' is not a flag of {self.prog}; {hint}")
        if others and not self.settings:
            raise UserError(f"'{others[0]}' was not expected; see {self.prog} --help")


def add_output(parser: Parser) -> None:
    """`--json` and `--quiet`."""
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object on stdout, all else on stderr"
    )
    parser.add_argument("--quiet", action="store_true", help="print only the result")


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What is given of all but where the results go: the arguments of the verb's function."""
    here = ("out", "overwrite", "json", "quiet", "began")
    return {k: v for k, v in vars(args).items() if v is not None and k not in here}


def check_least(args: argparse.Namespace, **least: int) -> None:
    """Raise UserError for a number that is given and below its `least`, or no seed."""
    if getattr(args, "seed", None) is not None and args.seed >= 2**62:
        raise UserError(f"--seed {args.seed}: give a number below 2^62")
    for name, low in least.items():
        value = getattr(args, name)
        if value is not None and value < low:
            raise UserError(f"{flag_of(name)} {value}: give a number from {low} up")


def flag_of(name: str) -> str:
    """`-n` and `--max-bad` of `n` and `max_bad`."""
    return f"-{name}" if len(name) == 1 else f"--{name.replace('_', '-')}"


def print_json(values: dict[str, Any]) -> None:
    """The one object on stdout; of several processes (torchrun) the first prints."""
    if os.environ.get("RANK", "0") == "0":
        utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
        print(json.dumps(values, indent=2, ensure_ascii=not utf8))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> None:
    """A table on stdout, its first `words` columns to the left and the numbers to the right."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(plain(column), justify="left" if i < words else "right", no_wrap=i == 0)
    for row in rows:
        table.add_row(*map(plain, row))
    _print(table)


def print_facts(facts: Mapping[str, str] | Mapping[str, list[str]]) -> None:
    """What is known of a thing, a line for each fact, or for each part of a list, on stdout."""
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, fact in facts.items():
        lines = [fact] if isinstance(fact, str) else fact
        table.add_row(name, "\n".join(map(plain, lines)))
    _print(table)


def _print(table: "Table") -> None:
    """Its lines without the spaces at their ends."""
    out = console()
    with out.capture() as printed:
        out.print(table)
    for line in printed.get().splitlines():
        print(line.rstrip())


def console(*, stderr: bool = False, quiet: bool = False) -> "Console":
    """A rich console; silent in all but the first of several processes."""
    from rich.console import Console

    others = os.environ.get("RANK", "0") != "0"
    wide = None if (sys.stderr if stderr else sys.stdout).isatty() else 200  # no folding in pipes
    # what we print holds names that people gave: a text is never markup
    return Console(
        stderr=stderr, quiet=quiet or others, highlight=False, markup=False, emoji=False, width=wide
    )
