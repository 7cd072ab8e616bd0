"""Images in parquet files that are streamed: a row is read with its row group, which is kept.

Nothing in a parquet file says where a row begins: pages of many rows are compressed together. So
the least that is read is a row group's column of images, and the images that follow should lie in
those that are held: `Streamed.window` says how many are shuffled together.
"""

import io
import threading
from collections import OrderedDict
from typing import Any

from underpaint.bounded import open_regular
from underpaint.data import remote
from underpaint.errors import UserError

HELD = 1 << 28  # bytes of images in one process
FILES = 64  # open at a time


class RowGroups:
    """The row groups that were read last, of HELD bytes together; threads may ask."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, Any] = OrderedDict()
        self._groups: OrderedDict[tuple[str, int], Any] = OrderedDict()
        self._lock = threading.Lock()

    def image(self, place: str, column: str, group: int, row: int) -> bytes:
        """The file of one image. Raises OSError for what is not there or is damaged."""
        with self._lock:
            key = place, group
            if key not in self._groups:
                found = self._read(place, column, group)
                room = HELD - found.nbytes - sum(other.nbytes for other in self._groups.values())
                while self._groups and room < 0:
                    room += self._groups.popitem(last=False)[1].nbytes
                self._groups[key] = found
            self._groups.move_to_end(key)
            found = self._groups[key]
            if row >= len(found):
                raise OSError("it has fewer rows than before")
            value = found[row].as_py()
        data: bytes | None = value.get("bytes") if isinstance(value, dict) else value
        return data or b""

    def _read(self, place: str, column: str, group: int) -> Any:
        """The column of images of a row group: a chunked array of bytes or of structs with them."""
        pyarrow = library(place)
        try:
            file = self._opened(pyarrow, place)
            names = file.schema_arrow.names
            inside = file.schema_arrow.types[names.index(column)].num_fields > 0
            leaf = f"{column}.bytes" if inside else column
            return file.read_row_group(group, columns=[leaf], use_threads=False).column(0)
        except (pyarrow.ArrowException, ValueError, IndexError) as error:
            text = " ".join(str(error).split())[:200]
            raise OSError(f"its table is not what it was: {text}") from None

    def _opened(self, pyarrow: Any, place: str) -> Any:
        if place not in self._files:
            source = _Remote(place) if remote.is_url(place) else open_regular(place)
            self._files[place] = pyarrow.parquet.ParquetFile(source)
            if len(self._files) > FILES:
                self._files.popitem(last=False)[1].close(force=True)
        self._files.move_to_end(place)
        return self._files[place]


def library(origin: object) -> Any:
    """pyarrow, with its parquet. Raises UserError where it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            f"data '{origin}' needs pyarrow to read it: pip install 'underpaint[parquet]'"
        ) from None
    return pyarrow


class _Remote(io.RawIOBase):
    """A file behind a URL, each piece read by a range request."""

    def __init__(self, url: str) -> None:
        self.url, self.place = url, 0
        self.size, _ = remote.describe(url)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        self.place = (
            place + {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.size}[whence]
        )
        return self.place

    def tell(self) -> int:
        return self.place

    def readinto(self, buffer: Any) -> int:
        length = max(0, min(len(buffer), self.size - self.place))
        if length:
            buffer[:length] = remote.read(self.url, self.place, length)
        self.place += length
        return length
