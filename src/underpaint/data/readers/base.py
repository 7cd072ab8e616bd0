"""What a reader answers, and what several of them share.

A reader is a module with `find(path)`: the `Source` at `path`, or None if it is another kind of
container. A source knows its files before anything is decoded; `open` yields the images. What is
beside images and is not read is counted (`Unread`), so that nothing is left out in silence.
"""

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from underpaint.bounded import open_regular
from underpaint.data.decode import HEIF, unreadable_kind
from underpaint.errors import UserError
from underpaint.io import MARK

IMAGE_SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", *HEIF)
)
PLAIN = IMAGE_SUFFIXES - {*HEIF}  # files that are read whatever they begin with
NO_DATA = ("__MACOSX", "@eaDir")  # folders of the system: macOS archives, thumbnails of a NAS
RUN, SYSTEM, HIDDEN = "folder of a run", "folder that a system adds", "hidden"
HEAD = 512  # bytes that say what a file is
BITMAPS = (12, 40, 52, 56, 64, 108, 124)  # lengths of a BMP's header


class Item(NamedTuple):
    """One image of a source, not yet read: `read` gives an image file's bytes, or an array."""

    name: str
    read: Callable[[], bytes | NDArray[np.uint8]]
    label: str | None  # None: unlabelled
    place: tuple[int, int] = (0, 0)  # of a file in a tar: where its bytes begin, how many they are


Unread = dict[str, list[str]]  # why or of which kind → names


class Contents(NamedTuple):
    """What a source holds. `label_names` fixes the order of the labels; None: natural order."""

    total: int
    items: Iterator[Item]
    label_names: tuple[str, ...] | None = None
    unread: Unread = {}  # noqa: RUF012  (never changed here)
    outside: list[str] = []  # noqa: RUF012  (files that a table names outside its folder)


class Source(NamedTuple):
    """`origin` names the place, the same tomorrow; `files` are all files whose bytes count, by
    their paths from `base`."""

    origin: str
    base: str
    files: list[str]
    open: Callable[[], Contents]
    unread: Unread = {}  # noqa: RUF012  (never changed here)
    outside: list[str] = []  # noqa: RUF012  (files that a table names outside its folder)
    shards: list[str] = []  # noqa: RUF012  (paths or URLs of tars that are streamed: no files then)


Reader = Callable[[Path], Source | None]


def kind_of(head: bytes) -> str:
    """What a file is by its first HEAD bytes: a suffix, `image`, `heif`, or empty if unknown."""
    starts = {b"PK\x03\x04": "zip", b"PK\x05\x06": "zip", b"\x93NUMPY": "npy", b"PAR1": "parquet"}
    starts |= {b"ARROW1": "arrow", b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ\0": "xz"}
    images = (
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"GIF8",
        b"II*\0",
        b"MM\0*",
        b"II+\0",
        b"MM\0+",
    )
    if head.startswith(images) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return "image"
    if head[:2] == b"BM" and len(head) > 18 and int.from_bytes(head[14:18], "little") in BITMAPS:
        return "image"
    if head[4:8] == b"ftyp":  # ISO media: HEIC and AVIF, but films too
        heif = head[8:12] in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
        return "heif" if heif else "avif" if head[8:12] in (b"avif", b"avis") else ""
    if head[257:262] == b"ustar":
        return "tar"
    if head[:3] == b"\0\0\x08" and 1 <= head[3] <= 4:
        return "idx"
    return next((kind for start, kind in starts.items() if head.startswith(start)), "")


def head_of(path: str | Path) -> bytes:
    """A regular file's first HEAD bytes; empty if it is none or cannot be read."""
    try:
        with open_regular(path) as file:
            return file.read(HEAD)
    except OSError:
        return b""


def is_hidden(name: str) -> bool:
    """Whether a file or folder is left out: dot files, and what systems add."""
    return name.startswith(".") or name in NO_DATA


def choose(names: Iterable[str], head: Callable[[str], bytes]) -> tuple[list[str], Unread]:
    """Of the files of these paths the images, and what is not read: in the order of `names`.

    An image has the suffix of one, or begins as one (`head` gives a file's first bytes, empty if it
    is no regular file). What is hidden, in a folder that is no data, or in a run's is left out.
    """
    names = list(names)
    runs = runs_among(names)
    images: list[str] = []
    unread: Unread = {}
    of_folder: dict[str, tuple[str, str]] = {}  # why nothing in a folder is read, and where
    for name in names:
        folder, _, base = name.rpartition("/")
        why, where = of_folder.get(folder) or of_folder.setdefault(folder, _left_out(folder, runs))
        if why == RUN:
            kept = unread.setdefault(RUN, [])
            kept += [] if where in kept else [where]
        elif why == SYSTEM:
            unread.setdefault(SYSTEM, []).append(name)
        elif why or is_hidden(base):
            if suffix_of(base) in IMAGE_SUFFIXES:
                unread.setdefault(HIDDEN, []).append(name)
        elif suffix_of(base) in PLAIN:
            images.append(name)
        elif reason := why_unread(PurePosixPath(name), head):
            unread.setdefault(reason, []).append(name)
        else:
            images.append(name)
    return images, unread


def _left_out(folder: str, runs: frozenset[str]) -> tuple[str, str]:
    """Why the files of a folder, by its path, are not read (empty if they are), and which of its
    parents is the cause."""
    path = PurePosixPath(folder)
    for parent in (path, *path.parents):
        if parent.as_posix() in runs:
            return RUN, parent.as_posix()
    if any(part in NO_DATA for part in path.parts):
        return SYSTEM, folder
    return (HIDDEN if any(map(is_hidden, path.parts)) else ""), folder


def suffix_of(name: str) -> str:
    """The suffix of a file's name in small letters, as `pathlib` has it."""
    place = name.rfind(".")
    return name[place:].lower() if 0 < place < len(name) - 1 else ""


def runs_among(names: Iterable[str]) -> frozenset[str]:
    """The folders that one of our runs, studies or models fills, by the paths of their files."""
    there: dict[str, set[str]] = {}
    signs = (MARK, "config.yaml", "metrics.jsonl")
    for path in (PurePosixPath(name) for name in names if name.endswith(signs)):
        if path.name in signs:
            there.setdefault(path.parent.as_posix(), set()).add(path.name)
    found = (folder for folder, files in there.items() if MARK in files or len(files) == 2)
    return frozenset(folder for folder in found if folder != ".")


def why_unread(path: PurePosixPath, head: Callable[[str], bytes]) -> str:
    """Why a file is not read as an image; empty if it is."""
    suffix = path.suffix.lower()
    if suffix in PLAIN:
        return ""
    start = head(path.as_posix())
    kind = kind_of(start)
    if kind in ("heif", "avif"):
        return unreadable_kind(kind)
    if kind == "image":
        return ""
    return f"{suffix or 'no suffix'}, no image" if start else f"{suffix or 'no suffix'}, empty"


def text_label(text: str | None) -> str | None:
    """A label in one spelling (Unicode NFC): macOS writes file names in another.

    Bytes of a name that are no UTF-8 are taken for Latin-1.
    """
    if text is None:
        return None
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-8", "surrogateescape").decode("latin-1")
    return unicodedata.normalize("NFC", text)


def folder_labels(names: Sequence[str]) -> list[str | None]:
    """The first folder in which the paths differ: set/cats/1.png, set/dogs/2.png: cats, dogs.

    None where all folders are alike.
    """
    folders = [name.rpartition("/")[0] for name in names]
    parents = {folder: PurePosixPath(folder).parts for folder in set(folders)}
    first, last = min(parents.values()), max(parents.values())  # what these share is shared by all
    common = 0
    while common < len(first) and first[common] == last[common]:
        common += 1
    label = {k: parts[common] if len(parts) > common else None for k, parts in parents.items()}
    if len(set(label.values()) - {None}) < 2:
        return [None] * len(names)
    return [label[folder] for folder in folders]


def check_distinct(origin: object, names: Iterable[str]) -> None:
    """Raise UserError for two members of an archive with one name: one would hide the other."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UserError(
                f"data '{origin}' holds '{name}' twice, and one of the two would be lost; unpack "
                "it, or pack it again with names of their own"
            )
        seen.add(name)


def without_label(columns: Iterable[str], known: Iterable[str]) -> Unread:
    """What to say of a table without a label: its columns, of which one may be meant for it."""
    others = [name for name in columns if name not in known]
    return {"column that is no 'label'": others} if others and "label" not in columns else {}


def is_outside(name: str) -> bool:
    """Whether a path that a table names leads out of its folder: it is read, and that is said."""
    return name.startswith(("/", "~")) or ".." in PurePosixPath(name).parts
