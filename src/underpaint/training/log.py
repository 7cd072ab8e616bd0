"""What a run says while it trains: a bar on a terminal, lines elsewhere, metrics in a file.

`metrics.jsonl` has one JSON object a line, with a field `kind`. Apart from the fields `seconds`,
`images_per_s` and `time` it is a function of the recipe, so that a resumed run writes the same.
"""

import importlib
import json
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from underpaint import config
from underpaint.errors import UserError, plain
from underpaint.io import writing
from underpaint.progress import At, console, doing
from underpaint.screen import print_line
from underpaint.training.checkpointing import RunFolder


class Log:
    """The voice of one process; all but the first are silent and write nothing."""

    def __init__(
        self,
        folder: RunFolder,
        total: int,
        first: bool,
        quiet: bool = False,
        left: Callable[[int], float] | None = None,
    ) -> None:
        """`total` images; `left`: those that are left after so many, at the cost of these."""
        self.folder, self.total, self.first = folder, total, first
        self.left = left or (lambda images: self.total - images)
        self.quiet = quiet or not first
        self.console = console(self.quiet)
        self._track: Callable[[dict[str, float], int], None] | None = None
        self._closing = ExitStack()
        self._stage = ""
        self._at: At | None = None
        self._showing = self._closing.enter_context(ExitStack())
        self._since = (0.0, 0)  # when the stage's first line was said, and after how many images
        if first:
            with writing(folder.path):
                self._metrics = self._closing.enter_context(folder.metrics.open("ab"))
                text = (folder.path / "log.txt").open(
                    "a", encoding="utf-8", errors="backslashreplace"
                )
                self._text = self._closing.enter_context(text)

    def resize(self, total: int, left: Callable[[int], float]) -> None:
        """Go on with another length."""
        self.total, self.left, self._at = total, left, None

    def say(self, text: str, style: str | None = None) -> None:
        """One line for the reader, also kept in `log.txt`."""
        if not self.first:
            return
        text = plain(text)  # of a name with a line break, too, it is one line
        print_line(self.console, text, style)
        with writing(self.folder.path, self.folder.advice):
            self._text.write(time.strftime("%Y-%m-%d %H:%M:%S ") + text + "\n")
            self._text.flush()

    def warn(self, text: str) -> None:
        """A line about something that did not go as planned."""
        self.say(text, style="yellow")

    def metric(self, kind: str, **fields: Any) -> None:
        """One line of `metrics.jsonl`."""
        if not self.first:
            return
        line = json.dumps({"kind": kind, **fields}) + "\n"
        with writing(self.folder.metrics, self.folder.advice):
            self._metrics.write(line.encode())
            self._metrics.flush()
        if self._track and kind in ("step", "check"):
            numbers = {k: v for k, v in fields.items() if isinstance(v, (int, float))}
            prefix = kind if kind == "step" else f"check/{fields['mask']}"
            self._track({f"{prefix}/{k}": float(v) for k, v in numbers.items()}, fields["images"])

    def track(self, run: config.Run) -> None:
        """Also send numbers to the tracker that `train.track` names, from now on."""
        library = tracker_library(run.train.track)
        if library is None or not self.first:
            return
        if run.train.track == "tensorboard":
            writer = library.SummaryWriter(str(self.folder.path / "tensorboard"))
            self._closing.callback(writer.close)

            def send(values: dict[str, float], images: int) -> None:
                for name, value in values.items():
                    writer.add_scalar(name, value, images)

            self._track = send
        else:  # wandb and trackio share one interface
            name = self.folder.path.name
            library.init(project="underpaint", name=name, config=config.to_dict(run))
            self._closing.callback(library.finish)
            self._track = lambda values, images: library.log({**values, "images": images})

    def records(self, *kinds: str) -> list[dict[str, Any]]:
        """The metrics of these kinds so far; of the process that writes them."""
        beginnings = tuple(f'{{"kind": "{kind}"'.encode() for kind in kinds)
        with self.folder.metrics.open("rb") as file:
            try:
                return [json.loads(line) for line in file if line.startswith(beginnings)]
            except (ValueError, RecursionError) as error:
                raise UserError(f"{self.folder.metrics}: a line is damaged ({error})") from None

    def size(self) -> int:
        """Bytes of metrics so far, safely on the disk."""
        if not self.first:
            return 0
        with writing(self.folder.metrics, self.folder.advice):
            os.fsync(self._metrics.fileno())
        return self.folder.metrics.stat().st_size

    def cut(self, size: int) -> None:
        """Forget the metrics after a checkpoint that the run returns to."""
        if self.first:
            there = self.folder.metrics.stat().st_size
            if there < size:
                self.warn(f"{self.folder.metrics} is shorter than it was: its last lines are lost")
            self._metrics.truncate(min(size, there))
            self._metrics.seek(0, os.SEEK_END)

    def step(self, stage: str, images: int, speed: float, state: str) -> None:
        """How far it is; `speed` in images a second, `state` as `loss 0.1234`."""
        now = time.monotonic()
        if stage != self._stage or self._at is None:
            self._showing.close()
            self._at = self._showing.enter_context(doing(f"stage {stage}", self.total))
            self._stage, self._since = stage, (now, images)
        began, before = self._since
        # by the whole stage so far, checks and grids too: one slow step does not make it hours
        each = (now - began) / (images - before) if images > before else 1 / max(speed, 1e-9)
        left = self.left(images) * each
        self._at(images, note=f"{speed:,.0f} images/s, {state}", left=left)

    def close(self) -> None:
        """End the bar, the tracker and the files."""
        self._closing.close()


def tracker_library(name: str) -> Any:
    """The library of a tracker. Raises UserError if it is not installed."""
    module = "torch.utils.tensorboard" if name == "tensorboard" else name
    try:
        return None if name == "none" else importlib.import_module(module)
    except ImportError:
        raise UserError(
            f"train.track: {name} is not installed; run: pip install 'underpaint[track]'"
        ) from None
