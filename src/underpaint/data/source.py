"""Where images come from: a source string → the reader that knows this kind of container."""

from pathlib import Path

from underpaint.bounded import open_regular
from underpaint.data.readers import arrays, csv, folder, shards, tables, tar, zip
from underpaint.data.readers.base import (
    IMAGE_SUFFIXES,
    Contents,
    Reader,
    Source,
    head_of,
    kind_of,
)
from underpaint.errors import UserError

FOLDERS: tuple[Reader, ...] = (folder.find, arrays.find, tables.find)  # the first that answers
FILES: tuple[Reader, ...] = (tar.find, csv.find, tables.find, arrays.find, zip.find)
KINDS = (
    "a folder, .zip, .tar, .npy, .npz, IDX .gz, .csv, .parquet, avatars:STYLE or shards "
    "('set-{0000..0999}.tar')"
)
SEALED = b"UPSEALED"  # the first bytes of a sealed file, see `underpaint.sealed.format`


def find(text: str) -> Source:
    """The images that a source string names. Raises UserError if there is nothing to read."""
    if not text:
        raise UserError(f"no images given: add --data with {KINDS}")
    if text.startswith("avatars:"):
        return zip.avatars(text)
    path = Path(text).expanduser()
    if not path.exists():
        if found := shards.find(text):
            return _streamed(found)
        raise UserError(f"data '{text}': there is no such file or folder; give {KINDS}")
    path = path.resolve()
    if not (path.is_dir() or path.is_file()):
        raise UserError(f"data '{text}' is not a regular file; give {KINDS}")
    if is_sealed(path):
        raise UserError(
            f"data '{text}' is sealed: it holds visible patches and no whole image, so it serves "
            "the masked stages of pretrain alone"
        )
    for reader in FOLDERS if path.is_dir() else FILES:
        if source := reader(path):
            return source
    if found := shards.find(text):
        return _streamed(found)
    if path.is_dir():
        raise UserError(
            f"data '{text}': the folder holds no images; expected PNG, JPEG, WebP, BMP, GIF or "
            "TIFF files in it or its sub-folders"
        )
    if path.suffix.lower() in IMAGE_SUFFIXES or kind_of(head_of(path)) in ("image", "heif", "avif"):
        raise UserError(f"data '{text}' is a single image; give the folder of all your images")
    raise UserError(f"data '{text}' is of no known kind; give {KINDS}")


def _streamed(found: shards.Shards) -> Source:
    return Source(found.origin, "", [], lambda: Contents(0, iter(())), shards=found.places)


def absolute(text: str) -> str:
    """Data by a name that does not hang on the folder in which one is."""
    return shards.absolute(text)


def is_there(text: str) -> bool:
    """Whether data can be read from `text`, as far as its name says."""
    if text.startswith("avatars:") or Path(text).expanduser().exists():
        return True
    return shards.is_list(text)


def is_sealed(path: str | Path) -> bool:
    """Whether this is a file that begins as a sealed one does."""
    try:
        with open_regular(Path(path).expanduser()) as file:
            return file.read(len(SEALED)) == SEALED
    except (OSError, ValueError):
        return False
