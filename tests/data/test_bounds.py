"""Bounds before memory: small files that claim or unpack to much are refused, in one child process
whose memory is measured; honest large ones are streamed."""

import gzip
import io
import json
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

LARGE = 1 << 27
READ = """
import json, re, sys
from underpaint import config, data
from underpaint.errors import UserError
def memory(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10
said, before = {}, memory("VmRSS")
for source in sys.argv[1:]:
    try:
        found = data.prepare(config.Data(source=source, size=(16,), held_out="none"), workers=1)
        said[source] = len(found.images)
    except UserError as error:
        said[source] = str(error)
# not ru_maxrss, which begins with that of the process that started this one
print(json.dumps([said, memory("VmHWM") - before]))
"""


def png(width: int, height: int) -> bytes:
    """A palette of one colour: a few bytes for any number of pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        total = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", total)

    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    rows = zlib.compress(bytes(1 << 20))
    palette = chunk(b"IHDR", header) + chunk(b"PLTE", bytes(3))
    return b"\x89PNG\r\n\x1a\n" + palette + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def npz(path: Path, shape: tuple[int, ...], content: bytes) -> None:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", file.getvalue() + content)


def idx(*shape: int) -> bytes:
    return b"\0\0\x08" + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape)


def test_what_claims_or_unpacks_to_much_is_refused_in_little_memory(tmp_path: Path) -> None:
    zeros, fast = bytes(LARGE), zipfile.ZIP_DEFLATED
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "a.png").write_bytes(png(20_000, 20_000))
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", fast, compresslevel=1) as archive:
        archive.writestr("a/1.bmp", zeros)
        archive.writestr("b/2.bmp", zeros)
    npz(tmp_path / "bomb.npz", (LARGE >> 16, 256, 256), zeros)
    npz(tmp_path / "claims.npz", (10**9, 256, 256), b"")
    (tmp_path / "claims-idx3-ubyte").write_bytes(idx(10**9, 28, 28))
    (tmp_path / "claims-idx3-ubyte.gz").write_bytes(gzip.compress(idx(10**9, 28, 28)))
    (tmp_path / "claims.npy").write_bytes((tmp_path / "claims-idx3-ubyte").read_bytes())
    about = tarfile.TarInfo("a.png")
    about.size = 1 << 40
    (tmp_path / "claims.tar").write_bytes(about.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    (tmp_path / "bomb.tar.gz").write_bytes(gzip.compress(zeros, 1))
    names = [path for path in sorted(tmp_path.iterdir()) if path.name != "cache"]
    honest = tmp_path / "honest.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (16, 1024, 1024, 3), dtype=np.uint8)
    np.savez(honest, images=pixels)
    command = [sys.executable, "-c", READ, *map(str, [*names, honest])]
    found = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert found.returncode == 0, found.stderr[-2000:]
    said, memory = json.loads(found.stdout)
    assert said.pop(str(honest)) == 16
    assert all(isinstance(line, str) and "\n" not in line for line in said.values()), said
    assert "more than are decoded (100,000,000); --max-pixels raises it" in str(said)
    assert memory < 4 * LARGE, memory
    assert Image.MAX_IMAGE_PIXELS == 89_478_485  # nobody else's limit is changed
