"""A run's folder and its checkpoints.

```
RUN/config.yaml  env.json  images.json  metrics.jsonl  log.txt  samples/  report.html
RUN/checkpoints/000000064000/{model,ema}.safetensors config.json optimizer.pt state.json
RUN/checkpoints/LATEST  BEST                    (BEST: of the stage's best check, with stop auto)
RUN/privacy.log   a line for each step that a private stage began
RUN/snapshots/000000064000/{narrow,wide}.safetensors config.json state.json   (see `posthoc`)
```

A checkpoint is written to a temporary folder, synced to the disk, renamed, and only then named in
LATEST: a process killed at any moment leaves the previous checkpoint whole.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from underpaint import config
from underpaint._version import __version__
from underpaint.errors import UserError
from underpaint.model import find, sha256

__all__ = [
    "Progress",
    "RunFolder",
    "read_optimizer",
    "read_progress",
    "read_snapshot",
    "snapshots",
    "write_model",
    "writing",
]


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


@contextlib.contextmanager
def writing(path: Path, advice: str = "") -> Iterator[None]:
    """Turn the operating system's refusals to write below `path` into a sentence."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        number = _errno(error)
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"no space left for {path}; free some, then go on{advice}") from None
        if number in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG):
            raise UserError(
                f"{path}: cannot be written ({os.strerror(number)}); choose another --out"
            ) from None
        raise


def _errno(error: BaseException) -> int | None:
    """What the operating system said, also where a library hides it."""
    if isinstance(error, OSError):
        return error.errno
    if isinstance(error, SafetensorError):  # has it in its text alone
        told = re.search(r"\(os error (\d+)\)", str(error))
        return int(told[1]) if told else None
    # torch.save writes what is left after the first refusal, and fails for that
    return error.__context__.errno if isinstance(error.__context__, OSError) else None


class RunFolder:
    """The folder of one run; the only place that a run writes to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.samples = path / "samples"
        self.snapshots = path / "snapshots"
        self.metrics = path / "metrics.jsonl"
        self.ledger = path / "privacy.log"
        self._lock: IO[str] | None = None

    @property
    def advice(self) -> str:
        """How to continue the run, for messages."""
        return f" with: underpaint train --resume --out {self.path}"

    def check(self, overwrite: bool) -> None:
        """Raise UserError if a run cannot be created here (nothing is written yet)."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path}: is a file; choose another --out")
        if self.path.is_dir() and any(self.path.iterdir()):
            if not (self.path / "config.yaml").exists():
                raise UserError(
                    f"{self.path}: holds files that are not a run; choose another --out"
                )
            if not overwrite:
                raise UserError(
                    f"{self.path}: a run is there already; continue it with --resume, "
                    "replace it with --overwrite, or choose another --out"
                )

    def create(self) -> None:
        """Make the folder, and clear what an earlier run left in it."""
        with writing(self.path):
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except (FileNotFoundError, NotADirectoryError, FileExistsError) as error:
                raise UserError(
                    f"{self.path}: cannot be made ({error.strerror}); choose another --out"
                ) from None
            self.lock()
            shutil.rmtree(self.snapshots, ignore_errors=True)
            for name in ("checkpoints", "samples"):
                shutil.rmtree(self.path / name, ignore_errors=True)
                (self.path / name).mkdir()
            files = ("metrics.jsonl", "log.txt", "report.html", "env.json", "images.json")
            for name in (*files, "config.yaml", "privacy.log"):
                (self.path / name).unlink(missing_ok=True)

    def lock(self) -> None:
        """Hold the folder until the process ends. Raises UserError if another process trains."""
        with writing(self.path):
            self._lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{self.path}: another process is training in this folder") from None

    def unlock(self) -> None:
        """Let other processes train here."""
        if self._lock:
            self._lock.close()
            self._lock = None

    def write(self, name: str, text: str) -> None:
        """Replace one text file of the folder in a single step."""
        with writing(self.path, self.advice):
            replace_text(self.path / name, text)

    def spend(self, stage: str) -> None:
        """Count a step of a private stage, safely on the disk, before it looks at any image."""
        with writing(self.ledger, self.advice), self.ledger.open("ab") as file:
            file.write(f"{stage}\n".encode())
            file.flush()
            os.fsync(file.fileno())

    def begun(self, stage: str) -> int:
        """Steps of a private stage that were begun, whatever became of them."""
        if not self.ledger.is_file():
            return 0
        # a last line that was cut short counts for nothing: its step had to wait for it
        lines = self.ledger.read_bytes().split(b"\n")
        if lines[-1]:
            with writing(self.ledger, self.advice):
                os.truncate(self.ledger, self.ledger.stat().st_size - len(lines[-1]))
        return lines[:-1].count(stage.encode())

    def latest(self) -> Path:
        """The checkpoint to resume from. Raises UserError if there is none."""
        if not (self.checkpoints / "LATEST").is_file():
            raise UserError(f"{self.path}: holds no checkpoint to resume from; leave --resume out")
        return find(self.path)

    def save(
        self,
        spec: config.ModelSpec,
        model: dict[str, Tensor],
        ema: dict[str, Tensor],
        optimizer: dict[str, dict[str, Tensor]],
        progress: Progress,
        keep: int,
        averages: Mapping[str, dict[str, Tensor]],
    ) -> Path:
        """Write a checkpoint and delete old ones (the last `keep`, the best, stage ends stay)."""
        final = self.checkpoints / f"{progress.images:012d}"
        with writing(self.checkpoints, self.advice):
            with appearing(final) as temporary:
                write_model(temporary, spec, {"model": model, "ema": ema, **averages})
                with (temporary / "optimizer.pt").open("wb") as file:  # a path hides the errno
                    torch.save(optimizer, file)
                write_text(temporary / "state.json", json.dumps(asdict(progress), indent=1))
            replace_text(self.checkpoints / "LATEST", final.name + "\n")
            best = self.checkpoints / "BEST"
            if progress.best:
                replace_text(best, f"{progress.best:012d}\n")
            else:
                best.unlink(missing_ok=True)
            self.clean(keep, progress.best)
        return final

    def snapshot(
        self,
        spec: config.ModelSpec,
        averages: Mapping[str, dict[str, Tensor]],
        images: int,
        steps: int,
    ) -> None:
        """Write the averages of `posthoc` after so many images and optimiser steps."""
        with writing(self.snapshots, self.advice):
            self.snapshots.mkdir(exist_ok=True)
            with appearing(self.snapshots / f"{images:012d}") as temporary:
                write_model(temporary, spec, averages)
                write_text(temporary / "state.json", json.dumps({"steps": steps}) + "\n")

    def forget(self, after: int) -> None:
        """Delete the snapshots of weights that the run has gone back from, after so many images."""
        for folder in self.snapshots.glob("[0-9]*/"):
            if int(folder.name) > after:
                vanish(folder)

    def clean(self, keep: int | None = None, best: int = 0) -> None:
        """Delete half-written checkpoints, those after LATEST, and (with `keep`) old ones.

        Snapshots after LATEST go too: the run takes them again.
        """
        for left in (*self.checkpoints.glob(".*.tmp"), *self.snapshots.glob(".*.tmp")):
            shutil.rmtree(left, ignore_errors=True)
        if not (self.checkpoints / "LATEST").is_file():
            return
        latest = (self.checkpoints / "LATEST").read_text(encoding="utf-8").strip()
        folders = sorted(p for p in self.checkpoints.iterdir() if p.is_dir())
        for folder in (*folders, *self.snapshots.glob("*/")):
            if folder.name > latest:
                vanish(folder)
        past = [p for p in folders if p.name <= latest]
        for folder in past[: -max(1, keep)] if keep is not None else []:
            if not (best and folder.name == f"{best:012d}") and not read_progress(folder).stage_end:
                vanish(folder)


def vanish(folder: Path) -> None:
    """Delete a folder so that a process killed on the way leaves no half of it under its name."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    folder.rename(temporary)
    shutil.rmtree(temporary)


@contextlib.contextmanager
def appearing(final: Path) -> Iterator[Path]:
    """A temporary folder to fill, which becomes `final` in a single step."""
    temporary = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.iterdir():
            sync(file)
        sync(temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if final.exists():  # the same place after a return: the weights differ, LATEST does not
        shutil.rmtree(final)
    temporary.rename(final)
    sync(final.parent)


def snapshots(folder: Path) -> list[Path]:
    """The snapshots of a run in their order. Raises UserError if there are none."""
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: is not a run; give the folder that was --out in training")
    found = sorted((folder / "snapshots").glob("[0-9]*/"))
    if not found:
        raise UserError(
            f"{folder}: holds no snapshots to rebuild averages from; train with "
            "--train.snapshots IMAGES, a 32nd of the run or so"
        )
    return found


def read_snapshot(folder: Path) -> int:
    """Optimiser steps before a snapshot. Raises UserError if it is damaged."""
    try:
        return int(json.loads((folder / "state.json").read_text(encoding="utf-8"))["steps"])
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(f"{folder}: its state.json is missing or damaged") from None


def write_model(
    folder: Path, spec: config.ModelSpec, weights: Mapping[str, dict[str, Tensor]]
) -> None:
    """Write `NAME.safetensors` for each set of weights, and `config.json`."""
    digests = {}
    for name, tensors in weights.items():
        path = folder / f"{name}.safetensors"
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, path)
        path.chmod(0o666 & ~umask())  # safetensors writes files that only their owner can read
        digests[path.name] = sha256(path)
    card = {
        "format": 1,
        "underpaint": __version__,
        "model": config.to_dict(spec),
        "sha256": digests,
    }
    write_text(folder / "config.json", json.dumps(card, indent=1) + "\n")


def read_progress(checkpoint: Path) -> Progress:
    """`state.json` of a checkpoint. Raises UserError if it is damaged."""
    try:
        told = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        told.pop("history", None)  # of runs before the checks were judged by their records
        return Progress(**{**told, "cooldown": tuple(told.get("cooldown", (0, 0)))})
    except (OSError, ValueError, TypeError):
        raise UserError(f"{checkpoint}: its state.json is missing or damaged") from None


def read_optimizer(checkpoint: Path) -> dict[str, dict[str, Tensor]]:
    """The optimiser's tensors of a checkpoint, by the parameters' names."""
    path = checkpoint / "optimizer.pt"
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: is missing or damaged ({reason})") from None
    return dict(state)


def write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def replace_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    write_text(temporary, text)
    sync(temporary)
    temporary.rename(path)
    sync(path.parent)


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
