"""Where images come from: a source string → the reader that knows this kind of container."""

from pathlib import Path

from underpaint.bounded import open_regular
from underpaint.data.readers import arrays, csv, folder, tables, tar, zip
from underpaint.data.readers.base import IMAGE_SUFFIXES, Reader, Source, head_of, kind_of
from underpaint.errors import UserError

FOLDERS: tuple[Reader, ...] = (folder.find, arrays.find, tables.find)  # the first that answers
FILES: tuple[Reader, ...] = (tar.find, csv.find, tables.find, arrays.find, zip.find)
KINDS = "a folder, .zip, .tar, .npy, .npz, IDX .gz, .csv, .parquet or avatars:STYLE"
SEALED = b"UPSEALED"  # the first bytes of a sealed file, see `underpaint.sealed.format`


def find(text: str) -> Source:
    """The images that a source string names. Raises UserError if there is nothing to read."""
    if not text:
        raise UserError(f"no images given: add --data with {KINDS}")
    if text.startswith("avatars:"):
        return zip.avatars(text)
    path = Path(text).expanduser()
    if not path.exists():
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
    if path.is_dir():
        raise UserError(
            f"data '{text}': the folder holds no images; expected PNG, JPEG, WebP, BMP, GIF or "
            "TIFF files in it or its sub-folders"
        )
    if path.suffix.lower() in IMAGE_SUFFIXES or kind_of(head_of(path)) in ("image", "heif", "avif"):
        raise UserError(f"data '{text}' is a single image; give the folder of all your images")
    raise UserError(f"data '{text}' is of no known kind; give {KINDS}")


def is_sealed(path: str | Path) -> bool:
    """Whether this is a file that begins as a sealed one does."""
    try:
        with open_regular(Path(path).expanduser()) as file:
            return file.read(len(SEALED)) == SEALED
    except (OSError, ValueError):
        return False
