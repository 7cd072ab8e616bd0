"""Images that are streamed: each is read from its shard and decoded whenever it is asked for.

In a tar an image is so many bytes from an offset on, in a parquet file a row of a row group
(`row_groups`), as the index of the shards has it (`shard_index`). It is decoded as `prepare`
decodes: the pixels are those that the cache would hold. What is read must have the hash that it
had.
"""

import hashlib
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from underpaint.bounded import open_regular
from underpaint.data import remote
from underpaint.data.decode import Options, decode
from underpaint.data.row_groups import HELD, RowGroups
from underpaint.errors import RunFailed

AT_ONCE = 16  # requests of one process, where shards lie behind URLs
TOGETHER = 256  # images whose files are in memory at a time


@dataclass(frozen=True, eq=False)
class Streamed:
    """Images uint8 [n, H, W, C] that are read and decoded whenever they are asked for.

    Indexed as an array is: by a number, a slice, numbers or bools [n]. Raises RunFailed that names
    shard and image, for what cannot be read, or is not what it was.
    """

    shape: tuple[int, ...]  # n, H, W, C
    options: Options
    places: Sequence[str]  # paths or URLs of the shards
    names: Sequence[str]  # of the images
    shard: NDArray[np.int32]  # [n] the number of its shard
    offset: NDArray[np.int64]  # [n] where its bytes begin; in parquet: the number of its row group
    length: NDArray[np.int64]  # [n] how many they are; in parquet: its row there
    file_sha: NDArray[np.uint8]  # [n, 32]
    columns: Sequence[str]  # of each shard the column of its images; empty: a tar
    row_bytes: float = 0.0  # of an image in parquet, in the mean
    dtype = np.dtype(np.uint8)
    ndim = 4

    @cached_property
    def together(self) -> NDArray[np.int32]:
        """[n] the number of the shard or row group that the image is best read with."""
        if not any(self.columns):
            return self.shard
        tables = np.array([bool(column) for column in self.columns])[self.shard]
        key = (self.shard.astype(np.int64) << 32) + np.where(tables, self.offset, 0)
        return np.unique(key, return_inverse=True)[1].astype(np.int32)

    def window(self, asked: int) -> int:
        """Images to shuffle together where `asked` are: at most what half of HELD has room for."""
        if not self.row_bytes or not asked:
            return asked
        return max(1, min(asked, int(HELD / 2 / self.row_bytes)))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, ids: Any) -> NDArray[np.uint8]:
        if isinstance(ids, slice):
            return self._read(np.arange(*ids.indices(len(self))))
        wanted = np.asarray(ids)
        if wanted.dtype == np.bool_:
            return self._read(np.flatnonzero(wanted))
        wanted = wanted.astype(np.int64)
        return self._read(wanted) if wanted.ndim else self._read(wanted[None])[0]

    def _read(self, ids: NDArray[np.int64]) -> NDArray[np.uint8]:
        out = np.empty((len(ids), *self.shape[1:]), np.uint8)
        for start in range(0, len(ids), TOGETHER):
            self._read_into(out[start : start + TOGETHER], ids[start : start + TOGETHER])
        return out

    def _read_into(self, out: NDArray[np.uint8], ids: NDArray[np.int64]) -> None:
        found: Iterable[bytes]
        if any(remote.is_url(self.places[k]) for k in np.unique(self.shard[ids])):
            found = self._requests.map(self._bytes, ids.tolist())  # they wait, and not for a core
        else:
            found = map(self._bytes, ids.tolist())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of decoders; the index says what cannot be decoded
            for k, (i, data) in enumerate(zip(ids.tolist(), found, strict=True)):
                try:
                    out[k] = decode(data, self.options)[0]
                except Exception as error:  # what Pillow raises
                    raise self._failed(i, f"cannot be decoded ({error})") from None

    def _bytes(self, i: int) -> bytes:
        place, start, length = self.places[self.shard[i]], int(self.offset[i]), int(self.length[i])
        try:
            if column := self.columns[self.shard[i]]:
                data = self._rows.image(place, column, start, length)
            elif remote.is_url(place):
                data = remote.read(place, start, length)
            else:
                with open_regular(place) as file:
                    file.seek(start)
                    data = file.read(length)
                if len(data) < length:
                    raise OSError("it was cut off")
        except OSError as error:
            raise self._failed(i, f"cannot be read ({error.strerror or error})") from None
        if hashlib.sha256(data).digest() != self.file_sha[i].tobytes():
            raise self._failed(i, "is not what it was when the shard was indexed")
        return data

    def _failed(self, i: int, what: str) -> RunFailed:
        name = self.names[i].partition("/")[2]
        return RunFailed(
            f"shard '{self.places[self.shard[i]]}': '{name}' {what}; bring the shard back to what "
            "it was and go on with --resume, or run prepare again for a new run"
        )

    @cached_property
    def _rows(self) -> RowGroups:
        return RowGroups()

    @cached_property
    def _requests(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(AT_ONCE, "underpaint-requests")


Images = NDArray[np.uint8] | Streamed  # [n, H, W, C]
