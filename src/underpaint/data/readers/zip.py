"""Image files in a .zip, labelled as in a folder; and the avatars that come with the package."""

import csv
import difflib
import io
import zipfile
from functools import partial
from pathlib import Path

from underpaint.bounded import DAMAGE, FILE, bomb, open_regular
from underpaint.data.decode import Unreadable
from underpaint.data.readers.base import (
    HEAD,
    Contents,
    Item,
    Source,
    check_distinct,
    choose,
    folder_labels,
    head_of,
    kind_of,
)
from underpaint.errors import UserError

AVATARS = Path(__file__).parents[1] / "avatars"
HAIR = ("black", "brown", "chestnut", "blonde", "orange", "pink", "blue", "purple")


def find(path: Path) -> Source | None:
    """A zip by its content, or a file named .zip; one of arrays alone is an .npz."""
    if path.is_dir():
        return None
    named = path.name.lower().endswith(".zip")
    if not named and (kind_of(head_of(path)) != "zip" or path.name.lower().endswith(".npz")):
        return None
    return Source(str(path), str(path.parent), [path.name], partial(_open, path))


def avatars(text: str) -> Source:
    """`avatars:STYLE`. Raises UserError for a style that is not in the package."""
    style = text.removeprefix("avatars:")
    styles = sorted(file.name.removesuffix("-32.zip") for file in AVATARS.glob("*-32.zip"))
    if style not in styles:
        close = difflib.get_close_matches(style, styles, 1)
        hint = f"did you mean 'avatars:{close[0]}'?" if close else f"known: {', '.join(styles)}"
        raise UserError(f"data '{text}': there are no such avatars; {hint}")
    path = AVATARS / f"{style}-32.zip"
    return Source(text, str(path.parent), [path.name], partial(_open_avatars, path))


def _open(path: Path) -> Contents:
    archive = _archive(path)
    files = [
        (member.filename.replace("\\", "/"), member)  # Windows' own zips have backslashes
        for member in archive.infolist()
        if member.filename and not member.filename.endswith(("/", "\\"))
    ]
    check_distinct(path, (name for name, _ in files))
    members = dict(files)
    del files
    names, unread = choose(sorted(members), lambda name: _head(archive, members[name]))
    if not names:
        raise UserError(f"data '{path}': the archive holds no images (PNG, JPEG, WebP, ...)")
    items = (
        Item(name, partial(_read, archive, members[name]), label)
        for name, label in zip(names, folder_labels(names), strict=True)
    )
    return Contents(len(names), items, unread=unread)


def _head(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    try:
        with archive.open(member) as file:
            return file.read(HEAD)
    except DAMAGE:
        return b""


def _open_avatars(path: Path) -> Contents:
    archive = _archive(path)
    rows = list(csv.DictReader(io.StringIO(archive.read("labels.csv").decode())))
    items = (
        Item(row["filename"], partial(archive.read, row["filename"]), row["hair_colour"])
        for row in rows
    )
    return Contents(len(rows), items, HAIR)


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    if member.file_size > FILE or bomb(member.file_size, member.compress_size):
        raise Unreadable(f"is said to unpack to {member.file_size:,} bytes")
    return archive.read(member)  # from several threads: ZipFile locks its file


def _archive(path: Path) -> zipfile.ZipFile:
    try:
        archive = zipfile.ZipFile(open_regular(path))
        first = min((member.header_offset for member in archive.infolist()), default=0)
        if first and kind_of(head_of(path)) == "zip":  # not a program that unpacks itself
            raise zipfile.BadZipFile("more comes before it: are these several in one file?")
        return archive
    except DAMAGE as error:
        raise UserError(f"data '{path}' cannot be read as a zip ({error}); copy it again") from None
