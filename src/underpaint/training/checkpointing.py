"""A run's folder and its checkpoints.

```
RUN/.underpaint   the mark of a folder that we began: see `RunFolder.check`
RUN/config.yaml  env.json  images.{json,bin}  metrics.jsonl  log.txt  samples/  report.html
RUN/checkpoints/000000064000/{model,ema}.safetensors config.json optimizer.pt state.json
RUN/checkpoints/000000064000/{model,ema,optimizer}/   in place of these files, where processes
                  shared the weights: safetensors files, one of each process (`shards`)
RUN/checkpoints/LATEST  BEST                    (BEST: of the stage's best check, with stop auto)
RUN/privacy.log   a line for each step that a private stage began
RUN/web/          the page of `underpaint app`
RUN/snapshots/000000064000/{narrow,wide}.safetensors config.json state.json   (see `posthoc`)
```

A checkpoint appears whole (see `io`) and only then LATEST names it. What is cleared is what we
wrote, by these names and in a folder with our mark; whatever else is there is the user's and stays.
"""

import contextlib
import importlib
import json
import os
import re
import shlex
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from underpaint import config, io
from underpaint.bounded import DAMAGE, Is, checked, open_regular, read_json
from underpaint.errors import UserError
from underpaint.model_folder import (
    MODEL,
    Found,
    Weights,
    damage_of,
    newest,
    whole_shards,
    write_model,
)

WRITTEN = (  # in checkpoints and snapshots
    *MODEL,
    *("ema.safetensors", "narrow.safetensors", "wide.safetensors", "optimizer.pt", "state.json"),
    *("model/", "ema/", "optimizer/"),  # of shards
)
FILES = (  # in a run's folder
    *("config.yaml", "env.json", "images.json", "images.bin", "metrics.jsonl", "privacy.log"),
    *("log.txt", "report.html"),
)
LOCK = ".lock"


@dataclass
class Progress:
    """Where a run stands: all that a resumed run needs besides tensors (`state.json`)."""

    stage: int = 0  # index of the current stage
    stage_images: int = 0  # images seen in it
    images: int = 0  # images seen in the run
    seconds: float = 0.0  # spent in training steps
    flops: float = 0.0
    ema_steps: int = 0
    attempt: int = 0  # returns to a checkpoint so far
    rate_factor: float = 1.0  # halved at each return
    stage_returns: int = 0  # returns in this stage
    skipped: int = 0  # steps left out for a non-finite gradient
    skipped_in_row: int = 0
    metrics_bytes: int = 0
    stage_end: bool = False  # written at the end of a stage: kept for good
    norms: list[float] = field(default_factory=list)  # gradient norms of the stage's last steps
    sums: dict[str, float] = field(default_factory=dict)  # since the last line of metrics
    best: int = 0  # images of the run at the stage's best check, with stop auto
    cooldown: tuple[int, int] = (0, 0)  # images of the stage before an early one, and its length
    # of private stages by name: the guarantee and the steps that are spent (`budget`)
    privacy: dict[str, dict[str, Any]] = field(default_factory=dict)

    def length(self, planned: int) -> int:
        """Images of the current stage, planned with so many."""
        return sum(self.cooldown) or planned


COUNT = Is(int)
STATE = {  # what state.json must say
    **dict.fromkeys(("stage", "stage_images", "images", "ema_steps", "attempt"), COUNT),
    **dict.fromkeys(("stage_returns", "skipped", "skipped_in_row", "metrics_bytes", "best"), COUNT),
    "seconds": Is(float, 0, 1e12),
    "flops": Is(float, 0, 1e40),
    "rate_factor": Is(float, 0, 1),
    "stage_end": Is(bool),
    "norms": Is(list, 0, 1 << 16, Is(float, 0, 1e300)),
    "sums": Is(dict, 0, 1 << 10, Is(float, -1e300, 1e300)),
    "cooldown": Is(list, 2, 2, COUNT),
    "privacy": Is(dict, 0, 1 << 10, Is(dict)),
}


class RunFolder:
    """The folder of one run; the only place that a run writes to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.samples = path / "samples"
        self.snapshots = path / "snapshots"
        self.evaluation = path / "evaluation"
        self.metrics = path / "metrics.jsonl"
        self._lock = FileLock(path / LOCK)

    @property
    def advice(self) -> str:
        """How to continue the run, for messages."""
        return f" with: underpaint train --resume --out {shlex.quote(str(self.path))}"

    def check(self, overwrite: bool) -> None:
        """Raise UserError if a run cannot be created here (nothing is written or deleted yet)."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path}: is a file; choose another --out")
        if not self.path.is_dir() or {p.name for p in self.path.iterdir()} <= {LOCK, io.MARK}:
            return
        if not io.is_marked(self.path, "run"):
            raise UserError(
                f"{self.path}: holds files and is not a run that underpaint began (it has no "
                f"{io.MARK}); choose another --out"
            )
        if not overwrite:
            raise UserError(
                f"{self.path}: a run is there already; continue it with --resume, "
                "replace it with --overwrite, or choose another --out"
            )
        self._written()

    def create(self, overwrite: bool = False) -> None:
        """Make the folder, and clear what an earlier run wrote into it. Raises as `check`.

        Looks once more: another process may have begun, and even ended, a run here meanwhile.
        """
        self.check(overwrite)
        with io.writing(self.path):
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except (FileNotFoundError, NotADirectoryError, FileExistsError) as error:
                raise UserError(
                    f"{self.path}: cannot be made ({error.strerror}); choose another --out"
                ) from None
            self.lock()
            self.check(overwrite)
            for path in self._written():
                io.remove(path)
            io.mark(self.path, "run")
            for folder in (self.checkpoints, self.samples):
                folder.mkdir(exist_ok=True)

    def _written(self) -> list[Path]:
        """What a run wrote here. Raises UserError if anything of it cannot be cleared."""
        folders = (self.path, self.checkpoints, self.snapshots, self.samples, self.evaluation)
        found = []
        for folder in folders:
            if os.path.lexists(folder) and not folder.is_dir():
                raise UserError(f"{folder}: is no folder, as a run needs; move it away")
            io.check_place(folder)
        for path in (self.path / name for name in FILES):
            if path.is_dir():
                raise UserError(f"{path}: is a folder, and a run writes a file there; move it away")
            found += [path] if os.path.lexists(path) else []
        for folder in (self.checkpoints, self.snapshots):
            for path in io.numbered(folder):
                if not path.is_symlink() and not io.holds_only(path, WRITTEN):
                    raise UserError(f"{path}: holds more than underpaint wrote there; move it away")
                found.append(path)
            found += io.left(folder, io.is_number)
        found += _called(self.checkpoints, "LATEST|BEST")
        found += _called(self.samples, r"images_[0-9]{12}\.png")
        found += _called(self.evaluation, r"scores-[0-9a-f]{16}\.json")  # of other weights
        web = self.path / "web"
        if io.is_marked(web, "export") and not io.added(web):  # of other weights
            found.append(web)
        return found

    def lock(self) -> None:
        """Hold the folder until the process ends. Raises UserError if another process trains."""
        with io.writing(self.path):
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                raise UserError(
                    f"{self.path}: another process is training in this folder"
                ) from None

    def unlock(self) -> None:
        """Let other processes train here."""
        self._lock.release()

    def write(self, name: str, content: str | bytes) -> None:
        """Replace one file of the folder in a single step."""
        with io.writing(self.path, self.advice):
            if isinstance(content, str):
                io.replace_text(self.path / name, content)
            else:
                with io.replacing(self.path / name) as temporary:
                    temporary.write_bytes(content)

    def latest(self) -> Found:
        """The checkpoint to go on from, as in `newest`. Raises UserError if there is none."""
        if not io.numbered(self.checkpoints):
            raise UserError(
                f"{self.path}: holds no checkpoint to resume from; begin anew with --overwrite "
                "instead of --resume"
            )
        return newest(self.path, _damage)

    def go_on(self, say: Callable[[str], None]) -> None:
        """Prepare to go on from `latest`; delete what is half-written.

        Where LATEST was right, checkpoints and snapshots after it go, too: the run takes them
        again. Where not, it is set right and nothing is deleted: a damaged checkpoint stays until
        it is replaced.
        """
        found = self.latest()
        with io.writing(self.checkpoints, self.advice):
            for folder in (self.checkpoints, self.snapshots):
                for path in io.left(folder, io.is_number):
                    io.remove(path)
            if found.note:
                say(found.note)
                io.replace_text(self.checkpoints / "LATEST", found.folder.name + "\n")
                return
            self.forget(int(found.folder.name), self.checkpoints, self.snapshots)

    def save(
        self,
        spec: config.ModelSpec,
        weights: Mapping[Weights, dict[str, Tensor]],
        optimizer: dict[str, dict[str, Tensor]],
        progress: Progress,
        keep: int,
    ) -> Path:
        """Write a checkpoint, as `saving`."""
        with self.saving(progress, keep) as temporary:
            write_model(temporary, spec, weights)
            with (temporary / "optimizer.pt").open("wb") as file:  # a path hides the errno
                torch.save(optimizer, file)
        return self.checkpoints / f"{progress.images:012d}"

    @contextlib.contextmanager
    def saving(self, progress: Progress, keep: int) -> Iterator[Path]:
        """A temporary folder for the tensors of a checkpoint after `progress`, as it is now.

        When it is filled the checkpoint appears, LATEST names it, and old ones are deleted (the
        last `keep`, the best and stage ends stay).
        """
        final, chosen = self.checkpoints / f"{progress.images:012d}", progress.best
        state = json.dumps(asdict(progress), indent=1)
        with io.writing(self.checkpoints, self.advice):
            with io.appearing(final, WRITTEN) as temporary:
                yield temporary
                (temporary / "state.json").write_text(state, encoding="utf-8")
            io.replace_text(self.checkpoints / "LATEST", final.name + "\n")
            best = self.checkpoints / "BEST"
            if chosen:
                io.replace_text(best, f"{chosen:012d}\n")
            else:
                best.unlink(missing_ok=True)
            self._prune(final.name, keep, chosen)

    def snapshot(
        self,
        spec: config.ModelSpec,
        averages: Mapping[Weights, dict[str, Tensor]],
        images: int,
        steps: int,
    ) -> None:
        """Write the averages of `posthoc` after so many images and optimiser steps."""
        with io.writing(self.snapshots, self.advice):
            self.snapshots.mkdir(exist_ok=True)
            with io.appearing(self.snapshots / f"{images:012d}", WRITTEN) as temporary:
                write_model(temporary, spec, averages)
                state = json.dumps({"steps": steps}) + "\n"
                (temporary / "state.json").write_text(state, encoding="utf-8")

    def forget(self, after: int, *folders: Path) -> None:
        """Delete what was written into them after so many images: the run has gone back."""
        for path in (path for folder in folders for path in io.numbered(folder)):
            if int(path.name) > after:
                _delete(path)

    def _prune(self, latest: str, keep: int, best: int) -> None:
        """Delete checkpoints up to `latest`, but for `keep`, the best and the ends of stages."""
        past = [folder for folder in io.numbered(self.checkpoints) if folder.name <= latest]
        for folder in past[: -max(1, keep)]:
            if not (best and folder.name == f"{best:012d}") and not _stays(folder):
                _delete(folder)


def _delete(folder: Path) -> None:
    """Delete a checkpoint or a snapshot, unless there is something of the user's in it."""
    if io.holds_only(folder, WRITTEN):
        io.discard(folder)


def _stays(checkpoint: Path) -> bool:
    """Whether it ends a stage, or cannot be read: what is damaged is not ours to judge."""
    try:
        return read_progress(checkpoint).stage_end
    except UserError:
        return True


def _called(folder: Path, pattern: str) -> list[Path]:
    """The files in `folder`, which may not be there, with such a name."""
    there = folder.iterdir() if folder.is_dir() else ()
    return [path for path in there if re.fullmatch(pattern, path.name) and not path.is_dir()]


def _damage(checkpoint: Path) -> str:
    """What keeps a run from going on from a checkpoint; empty if nothing does."""
    if reason := damage_of(checkpoint):
        return reason
    try:
        read_progress(checkpoint)
        if (checkpoint / "optimizer").is_dir():  # whose checksums `damage_of` has compared
            return ""
        with open_regular(checkpoint / "optimizer.pt") as opened, zipfile.ZipFile(opened) as file:
            return "optimizer.pt is damaged" if file.testzip() else ""
    except UserError:
        return "state.json is missing or damaged"
    except DAMAGE:
        return "optimizer.pt is missing or damaged"


def snapshots(folder: Path) -> list[Path]:
    """The snapshots of a run in their order. Raises UserError if there are none."""
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: is not a run; give the folder that was --out in training")
    found = io.numbered(folder / "snapshots")
    if not found:
        raise UserError(
            f"{folder}: holds no snapshots to rebuild averages from; train with "
            "--train.snapshots -1"
        )
    return found


def read_snapshot(folder: Path) -> int:
    """Optimiser steps before a snapshot. Raises UserError if it is damaged."""
    return int(_state(folder, {"steps": Is(int)})["steps"])


def read_progress(checkpoint: Path) -> Progress:
    """`state.json` of a checkpoint. Raises UserError if it is damaged, or of another checkpoint."""
    state = _state(checkpoint, STATE)
    if io.is_number(checkpoint.name) and state["images"] != int(checkpoint.name):
        raise UserError(f"{checkpoint}: its state.json is that of another checkpoint")
    return Progress(**state | {"cooldown": tuple(state["cooldown"])})


def _state(folder: Path, table: dict[str, Is]) -> dict[str, Any]:
    try:
        return checked(read_json(folder / "state.json"), table)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: its state.json is missing or damaged ({error})") from None


def read_optimizer(checkpoint: Path) -> dict[str, dict[str, Tensor]]:
    """The optimiser's tensors of a checkpoint, by the parameters' names."""
    if parts := whole_shards(checkpoint, "optimizer"):
        return _by_name(importlib.import_module("underpaint.shards").read(parts), parts)
    path = checkpoint / "optimizer.pt"
    try:
        with open_regular(path) as opened, zipfile.ZipFile(opened) as members:
            if sum(member.file_size for member in members.infolist()) > path.stat().st_size:
                raise ValueError("it is said to unpack to more than it holds")
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
        for name, moments in checked(state, {}, more=True).items():
            if type(name) is not str:
                raise ValueError("a name is no text")
            for key, value in checked(moments, {}, more=True).items():
                if not isinstance(value, Tensor) or type(key) is not str:
                    raise ValueError(f"'{name}' holds what is no tensor")
                if not (value.layout == torch.strided and value.isfinite().all()):
                    raise ValueError(f"'{name}' holds values that are not finite")
    except Exception as error:  # torch raises many types for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: is missing or damaged ({reason})") from None
    return dict(state)


def _by_name(tensors: dict[str, Tensor], folder: Path) -> dict[str, dict[str, Tensor]]:
    """What shards hold of an optimiser, by the parameters' names."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise UserError(f"{folder}: '{key}' holds values that are not finite")
        name, _, moment = key.rpartition("/")
        found.setdefault(name, {})[moment] = tensor
    return found
