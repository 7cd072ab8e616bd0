"""Image files in a .zip, labelled as in a folder; and the avatars that come with the package."""

import csv
import difflib
import io
import zipfile
from functools import partial
from pathlib import Path, PurePosixPath

from underpaint.data.decode import Unreadable
from underpaint.data.readers.base import Contents, Item, Source, is_hidden, is_image, labelled
from underpaint.errors import UserError

AVATARS = Path(__file__).parents[1] / "avatars"
HAIR = ("black", "brown", "chestnut", "blonde", "orange", "pink", "blue", "purple")
LARGEST_FILE = 1 << 30  # bytes of one image inside a zip, against zip bombs


def find(path: Path) -> Source | None:
    """A file named .zip."""
    if not path.name.lower().endswith(".zip"):
        return None
    return Source(str(path), [path], partial(_open, path))


def avatars(text: str) -> Source:
    """`avatars:STYLE`. Raises UserError for a style that is not in the package."""
    style = text.removeprefix("avatars:")
    styles = sorted(file.name.removesuffix("-32.zip") for file in AVATARS.glob("*-32.zip"))
    if style not in styles:
        close = difflib.get_close_matches(style, styles, 1)
        hint = f"did you mean 'avatars:{close[0]}'?" if close else f"known: {', '.join(styles)}"
        raise UserError(f"data '{text}': there are no such avatars; {hint}")
    path = AVATARS / f"{style}-32.zip"
    return Source(text, [path], partial(_open_avatars, path))


def _open(path: Path) -> Contents:
    archive = _archive(path)
    names = sorted(
        name
        for name in archive.namelist()
        if is_image(PurePosixPath(name).name)
        and not any(is_hidden(part) for part in PurePosixPath(name).parts)
    )
    if not names:
        raise UserError(f"data '{path}': the archive holds no images (PNG, JPEG, WebP, ...)")
    return labelled(names, partial(_read, archive))


def _open_avatars(path: Path) -> Contents:
    archive = _archive(path)
    rows = list(csv.DictReader(io.StringIO(archive.read("labels.csv").decode())))
    items = (
        Item(row["filename"], partial(archive.read, row["filename"]), row["hair_colour"])
        for row in rows
    )
    return Contents(len(rows), items, HAIR)


def _read(archive: zipfile.ZipFile, name: str) -> bytes:
    if archive.getinfo(name).file_size > LARGEST_FILE:
        raise Unreadable(f"is larger than {LARGEST_FILE >> 20} MiB")
    return archive.read(name)  # from several threads: ZipFile locks its file


def _archive(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"data '{path}' cannot be read as a zip ({error}); copy it again") from None
