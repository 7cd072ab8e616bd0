"""Shards, tar and parquet, and a server that answers range requests."""

import contextlib
import http.server
import io
import multiprocessing
import re
import tarfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from tests.data.pictures import png
from underpaint.data import Dataset, Order, Streamed
from underpaint.data.ahead import Ahead

RANGE = r"bytes=(\d+)-(\d+)"


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))
    return path


def write_shards(
    folder: Path, images: np.ndarray, each: int, labels: list[str] | None = None
) -> Path:
    """folder/set-0000.tar …: `each` images a shard, 000.png and, with labels, 000.cls."""
    for start in range(0, len(images), each):
        members: dict[str, bytes] = {}
        for i in range(start, min(start + each, len(images))):
            members[f"{i:03}.png"] = png(images[i])
            if labels:
                members[f"{i:03}.cls"] = labels[i].encode()
        write_tar(folder / f"set-{start // each:04}.tar", members)
    return folder


def write_tables(
    folder: Path, images: np.ndarray, each: int, labels: list[str] | None = None, group: int = 3
) -> Path:
    """folder/set-0000.parquet …: `each` images a file, in row groups of `group`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(images), each):
        files = [{"bytes": png(pixels), "path": None} for pixels in images[start : start + each]]
        columns = {"image": files} | ({"label": labels[start : start + each]} if labels else {})
        path = folder / f"set-{start // each:04}.parquet"
        pq.write_table(pa.table(columns), path, row_group_size=group)
    return folder


def check_workers(found: Dataset, key: np.ndarray, positions: Sequence[int]) -> None:
    """Two workers give what this process reads at these positions, and end as they should.

    `key`: of each image, with which others it is read. They are asked by a thread, as where a GPU
    computes.
    """
    images = found.images
    assert isinstance(images, Streamed)
    order = Order(found.train_ids, 0, key[found.train_ids], 16)
    images[0]  # what is held, open and begun here is not the workers'
    ahead = Ahead(images, order, workers=2)
    with ThreadPoolExecutor(1) as thread:
        for position in positions:
            expected = found.batch(order.at(position, 4))
            taken = thread.submit(ahead.take, position, 4, 8).result()
            np.testing.assert_array_equal(taken, expected)
    workers = multiprocessing.active_children()
    ahead.close()
    assert [worker.exitcode for worker in workers] == [0, 0]


class _Ranges(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; `Range: bytes=a-b` as S3 does."""

    def do_GET(self) -> None:
        file = Path(self.translate_path(self.path))
        if not file.is_file():
            self.send_error(404)
            return
        data = file.read_bytes()
        asked = re.fullmatch(RANGE, self.headers.get("Range", ""))
        if asked:
            first, last = int(asked[1]), int(asked[2])
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
            data = data[first : last + 1]
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The URL at which the files of `folder` are, for the while."""

    def handler(*args: object) -> _Ranges:
        return _Ranges(*args, directory=str(folder))  # type: ignore[arg-type]

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
