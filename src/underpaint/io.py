"""Writing files: whole or not at all, and what the system refuses is a sentence.

A file or a folder is written beside its place, as `.NAME.PID.tmp`, synced to the disk and renamed:
a process killed at any moment leaves the old one or the new one, never half of one. A link is
followed: what it points to is replaced, the link stays.
"""

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from underpaint._version import __version__
from underpaint.bounded import read_json
from underpaint.errors import UserError

MARK = ".underpaint"  # in folders that we began: what we wrote there may be cleared
SHARD = r"shard-[0-9]{5}-model-00001-of-00001\.safetensors"  # a process's rows (`shards`)
LEFT = r"\.(.+?)(\.\d+)?(\.old)?\.tmp"  # see `_temporary`


@contextlib.contextmanager
def writing(path: Path, advice: str = "") -> Iterator[None]:
    """Turn the system's refusals to write below `path` into a sentence (UserError).

    `advice`: how to go on after a full disk, as ` with: underpaint train --resume`.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        number = _errno(error)
        if number is None and not isinstance(error, OSError):
            raise
        if number in (errno.ENOSPC, errno.EDQUOT):
            then = f"then go on{advice}" if advice else "or choose another --out"
            raise UserError(f"no space left for {path}; free some, {then}") from None
        reason = str(error) if number is None else os.strerror(number)
        raise UserError(f"{path}: cannot be written ({reason}); choose another --out") from None


def _errno(error: BaseException) -> int | None:
    """What the operating system said, also where a library hides it."""
    if isinstance(error, OSError):
        return error.errno
    if isinstance(error, SafetensorError):  # has it in its text alone
        found = re.search(r"\(os error (\d+)\)", str(error))
        return int(found[1]) if found else None
    # torch.save writes what is left after the first refusal, and fails for that
    return error.__context__.errno if isinstance(error.__context__, OSError) else None


# --- before anything is computed ---------------------------------------------------------------


def check_new(paths: Sequence[Path], overwrite: bool, flag: str = "--out") -> None:
    """Raise UserError if one of the files to write is there and may not be replaced.

    `flag`: the one that named them.
    """
    there = [path for path in paths if os.path.lexists(path)]
    folder = next((path for path in there if path.is_dir()), None)
    if folder:
        raise UserError(f"{folder}: is a folder, and a file would go there; choose another {flag}")
    if there and not overwrite:
        more = f" (and {len(there) - 1} more)" if len(there) > 1 else ""
        raise UserError(
            f"{there[0]}: exists already{more}; add --overwrite or choose another {flag}"
        )


def check_place(folder: Path) -> None:
    """Raise UserError if no file can be written into `folder`, which may still have to be made."""
    place = folder
    while not os.path.lexists(place):
        place = place.parent
    with writing(folder):
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


# --- files -------------------------------------------------------------------------------------


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file, which takes the place of `path` in one step; none is left if it fails."""
    path = _followed(path)
    temporary = _temporary(path)
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def replace_text(path: Path, text: str) -> None:
    """Write a text file in a single step."""
    with replacing(path) as temporary:
        # a file's name may be in no encoding: then its bytes are shown, as \udce9
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def sync(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- folders -----------------------------------------------------------------------------------


@contextlib.contextmanager
def appearing(final: Path, names: Collection[str] = (), kind: str = "") -> Iterator[Path]:
    """A temporary folder to fill, which becomes `final` in a single step.

    A `final` that is there is replaced if it holds `names` alone or bears the mark of `kind`, else
    renamed, `.replaced`.
    """
    final = _followed(final)
    temporary = _temporary(final)
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            sync(file)
        sync(temporary)
        old = None
        if (kind and is_marked(final, kind)) or (final.exists() and holds_only(final, names)):
            old = final.rename(_temporary(final, "old"))
        elif final.exists():
            final.rename(_free(final.with_name(f"{final.name}.replaced")))
        temporary.rename(final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync(final.parent)
    if old:
        shutil.rmtree(old)


@contextlib.contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """A temporary folder, whose files then go into `folder`: all, or none if the block raises."""
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".underpaint.{os.getpid()}.tmp"
    try:
        temporary.mkdir()
        yield temporary
        for file in sorted(temporary.iterdir()):
            file.replace(folder / file.name)
        temporary.rmdir()
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if made and not any(folder.iterdir()):
            folder.rmdir()
        raise


def discard(folder: Path) -> None:
    """Delete a folder (of a link the link alone) so that no half of it is left under its name."""
    if folder.is_symlink():
        folder.unlink()
        return
    temporary = _temporary(folder, "old")
    folder.rename(temporary)
    shutil.rmtree(temporary)


def remove(path: Path) -> None:
    """Delete a file, a link (not what it points to) or a folder."""
    if path.is_dir():
        discard(path)
    else:
        path.unlink()


def left(folder: Path, is_ours: Callable[[str], object]) -> list[Path]:
    """What interrupted writes of the names that `is_ours` accepts left in `folder`."""
    found = [(path, re.fullmatch(LEFT, path.name)) for path in folder.glob(".*.tmp*")]
    return [path for path, match in found if match and is_ours(match[1])]


def holds_only(folder: Path, names: Collection[str]) -> bool:
    """Whether `folder` is a folder, no link, of files with these names and of nothing else.

    A name that ends in `/` is of a folder with files of `SHARD` alone.
    """

    def ours(path: Path) -> bool:
        if f"{path.name}/" in names:
            return _is_shards(path)
        return path.name in names and not path.is_dir()

    real = folder.is_dir() and not folder.is_symlink()
    return real and all(ours(path) for path in folder.iterdir())


def _is_shards(folder: Path) -> bool:
    return (
        folder.is_dir()
        and not folder.is_symlink()
        and all(re.fullmatch(SHARD, p.name) and not p.is_dir() for p in folder.iterdir())
    )


def numbered(folder: Path) -> list[Path]:
    """The folders below `folder` that are named by a number of images, 12 digits, in order."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if is_number(p.name) and p.is_dir())


def is_number(name: str) -> bool:
    """Whether a name is 12 digits."""
    return re.fullmatch(r"[0-9]{12}", name) is not None


def mark(folder: Path, kind: str, form: str = "") -> None:
    """Write that `folder` is ours: `kind` is run, study or export.

    Of an export its `form` and its files are in the mark, too.
    """
    about: dict[str, Any] = {"kind": kind, "format": 1, "underpaint": __version__}
    if kind == "export":
        about |= {"form": form, "files": _files(folder)}
    replace_text(folder / MARK, json.dumps(about) + "\n")


def is_marked(folder: Path, kind: str) -> bool:
    """Whether `folder` is ours, as a run, a study or an export."""
    return _marked(folder).get("kind") == kind


def form_of(folder: Path) -> str | None:
    """The form of a marked export; None where that is not known."""
    form = _marked(folder).get("form")
    return form if isinstance(form, str) else None


def _marked(folder: Path) -> dict[str, Any]:
    try:
        found = read_json(folder / MARK)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def added(folder: Path) -> list[str]:
    """The files in a marked export that were put there since, by their paths in it."""
    ours = _marked(folder).get("files")
    known = ours if isinstance(ours, list) else []
    return [name for name in _files(folder) if name not in known]


def _files(folder: Path) -> list[str]:
    """All in `folder` that is no folder, but for our mark."""
    paths = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(name for p in paths if (name := p.relative_to(folder).as_posix()) != MARK)


def _followed(path: Path) -> Path:
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _temporary(path: Path, kind: str = "") -> Path:
    """Beside `path`, so that it can be renamed; ours alone, since it names the process."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{kind and '.' + kind}.tmp")
    if os.path.lexists(temporary):  # of an earlier process with this number
        real = temporary.is_dir() and not temporary.is_symlink()
        shutil.rmtree(temporary) if real else temporary.unlink()
    return temporary


def _free(path: Path) -> Path:
    """`path`, or the first of `path-2`, `path-3`, … that is not there."""
    free, n = path, 1
    while os.path.lexists(free):
        n += 1
        free = path.with_name(f"{path.name}-{n}")
    return free
