"""Nothing is left out in silence: an archive is whole or refused, what is not read is counted."""

import bz2
import gzip
import io
import lzma
import sys
import tarfile
import types
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from tests.data.pictures import noise, png, write_folder
from underpaint import config, data
from underpaint.data import decode
from underpaint.data.source import find
from underpaint.errors import UserError
from underpaint.io import mark

Files = dict[str, bytes]
PICTURES = [png(image) for image in noise(12)]
CLASSES = {f"set/{'cats' if i % 2 else 'dogs'}/{i:02}.png": PICTURES[i] for i in range(12)}


def tarred(files: Files) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def zipped(path: Path, files: Files, slash: str = "/") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            member = zipfile.ZipInfo("x")
            member.filename = name.replace("/", slash)
            archive.writestr(member, content)
    return path


def prepared(path: Path, **settings) -> data.Dataset:
    return data.prepare(config.Data(source=str(path), held_out="none", **settings))


def counts(path: Path) -> dict[str, int]:
    return prepared(path).report["labels"]


def unread(path: Path) -> dict[str, int]:
    return {found["reason"]: found["files"] for found in prepared(path).report["unread"]}


# --- archives ----------------------------------------------------------------------------------


def whole(tar: bytes) -> bytes:
    return tar


def cut_between_members(tar: bytes) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        return tar[: archive.getmembers()[6].offset]


def hurt_header(tar: bytes) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        place = archive.getmembers()[6].offset + 150
    return tar[:place] + bytes([tar[place] ^ 1]) + tar[place + 1 :]


def joined(tar: bytes) -> bytes:
    return tar + tarred({"more.png": PICTURES[0]})


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "tar": bytes,
    "tar.gz": gzip.compress,
    "tar.bz2": bz2.compress,
    "tar.xz": lzma.compress,
    "shard-0000": gzip.compress,  # known by its content
}


@pytest.mark.parametrize("suffix", PACKED)
@pytest.mark.parametrize("damage", [whole, cut_between_members, hurt_header, joined])
def test_a_tar_is_read_to_its_end_or_refused(damage, suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(PACKED[suffix](damage(tarred(CLASSES))))
    if damage is whole:
        assert counts(path) == {"cats": 6, "dogs": 6}
    else:
        with pytest.raises(UserError, match=r"cannot be read as a tar \(.*copy it again"):
            prepared(path)


@pytest.mark.parametrize("suffix", ["tar.gz", "tar.bz2", "tar.xz"])
def test_hurt_compression_is_one_line(suffix, tmp_path):
    content = PACKED[suffix](tarred(CLASSES))
    rng = np.random.default_rng(0)
    path = tmp_path / f"a.{suffix}"
    for place in rng.integers(len(content) // 8, len(content) - 8, 12):
        path.write_bytes(content[:place] + rng.bytes(6) + content[place + 6 :])
        with pytest.raises(UserError, match=r"a\.tar"):
            prepared(path)


def test_folders_are_labels_in_every_archive(tmp_path):
    expected = {"cats": 6, "dogs": 6}
    (tmp_path / "a.tar").write_bytes(tarred(CLASSES))
    assert counts(tmp_path / "a.tar") == expected
    assert counts(zipped(tmp_path / "a.zip", CLASSES)) == expected
    assert counts(zipped(tmp_path / "windows.zip", CLASSES, "\\")) == expected
    assert counts(zipped(tmp_path / "nameless", CLASSES)) == expected


def test_dots_in_the_names_of_webdataset(tmp_path):
    files = {f"IMG.2024.{i}.png": PICTURES[i] for i in range(12)}
    files |= {f"IMG.2024.{i}.cls": str(i % 3).encode() for i in range(12)}
    (tmp_path / "a.tar").write_bytes(tarred(files))
    assert counts(tmp_path / "a.tar") == {"0": 4, "1": 4, "2": 4}
    views = {
        f"{i}.{side}.png": PICTURES[2 * i + j] for i in range(6) for j, side in enumerate("ab")
    }
    views |= {f"{i}.json": b'{"label": "%d"}' % (i % 2) for i in range(6)}
    (tmp_path / "b.tar").write_bytes(tarred(views))
    assert counts(tmp_path / "b.tar") == {"0": 6, "1": 6}
    (tmp_path / "c.tar").write_bytes(tarred(files | {"IMG.2025.png": PICTURES[0]}))
    with pytest.raises(UserError, match=r"'IMG.2025.png' has several labels .* name each label"):
        prepared(tmp_path / "c.tar")


def test_a_name_that_stands_twice_is_refused(tmp_path):
    one, two = tarred({"a.png": PICTURES[0]}), tarred({"a.png": PICTURES[1]})
    (tmp_path / "a.tar").write_bytes(one[:1024] + two)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", PICTURES[0])
        archive.writestr("b.png", PICTURES[1])
    content = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(content.replace(b"b.png", b"a.png"))
    for name in ("a.tar", "a.zip"):
        with pytest.raises(UserError, match=r"holds 'a.png' twice"):
            prepared(tmp_path / name)


def test_links_in_a_tar_are_said(tmp_path):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in CLASSES.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("set/cats/again.png")
        link.type, link.linkname = tarfile.LNKTYPE, "set/cats/01.png"
        archive.addfile(link)
    (tmp_path / "a.tar").write_bytes(file.getvalue())
    assert unread(tmp_path / "a.tar") == {"link": 1}


# --- files and folders -------------------------------------------------------------------------


def test_files_are_known_by_their_content_and_the_rest_is_counted(tmp_path):
    place = write_folder(tmp_path / "set", noise(6))
    for i in range(4):
        (place / f"noext{i}").write_bytes(PICTURES[6 + i])
        (place / f"{i}.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    (place / "list.parquet").write_bytes(b"PAR1" + bytes(20))
    (place / "notes.txt").write_text("a note")
    (place / ".hidden.png").write_bytes(PICTURES[0])
    (place / ".ipynb_checkpoints").mkdir()
    (place / ".ipynb_checkpoints" / "000-checkpoint.png").write_bytes(PICTURES[0])
    (place / "@eaDir").mkdir()
    (place / "@eaDir" / "000.png").write_bytes(PICTURES[0])
    expected = {
        "HEIC: pip install pillow-heif, and it is read": 4,
        ".parquet, no image": 1,
        ".txt, no image": 1,
        "hidden": 2,
        "folder that a system adds": 1,
    }
    if "HEIF" in decode.formats():
        expected.pop("HEIC: pip install pillow-heif, and it is read")
    found = prepared(place, max_bad=0.5)
    assert found.report["images"] == 10
    assert unread(place) == expected
    assert sum("not read" in sentence for sentence in found.remarks) == len(expected)
    files = {
        p.relative_to(place).as_posix(): p.read_bytes() for p in place.rglob("*") if p.is_file()
    }
    assert unread(zipped(tmp_path / "same.zip", files)) == expected
    (tmp_path / "same.tar").write_bytes(tarred(files))
    assert unread(tmp_path / "same.tar") == expected


@pytest.mark.skipif("AVIF" not in decode.formats(), reason="this Pillow reads no AVIF")
def test_avif_is_read(tmp_path):
    for i, image in enumerate(noise(2)):
        Image.fromarray(image).save(tmp_path / f"{i}.avif")
    assert prepared(tmp_path).report["images"] == 2


def test_two_zips_in_one_file_are_refused(tmp_path):
    one, two = (zipped(tmp_path / f"{i}.zip", {f"{i}.png": PICTURES[i]}) for i in range(2))
    (tmp_path / "both.zip").write_bytes(one.read_bytes() + two.read_bytes())
    with pytest.raises(UserError, match="several in one file"):
        prepared(tmp_path / "both.zip")


ROWS = "set/000.png,0,{}\nset/001.png,1,{}\n"


@pytest.mark.parametrize(
    ("table", "found"),
    [
        ("path,class,width\n" + ROWS.format(8, 8), {"column that is no 'label'": 2}),
        ("path,Label\nset/000.png,0\nset/001.png,1\n", {"column that is no 'label'": 1}),
        ("path,label,width\n" + ROWS.format(8, 8), {}),
        ('\ufeffpath,label\r\n"set/000.png","x, y"\r\nset/001.png,z\r\n', {}),
        ("path,label\nset/000.png,x, y\nset/001.png,z\n", "line 2 has more than the 2 columns"),
        ("path,label,label\n" + ROWS.format(8, 8), "its first line must be"),
        ("path;label\nset/000.png;0\nset/001.png;1\n", "not 'path;label'"),
    ],
)
def test_a_table_loses_no_label_in_silence(tmp_path, table, found):
    write_folder(tmp_path / "set", noise(2))
    (tmp_path / "t.csv").write_text(table, newline="")
    if isinstance(found, str):
        with pytest.raises(UserError, match=found):
            prepared(tmp_path / "t.csv")
        return
    assert unread(tmp_path / "t.csv") == found
    assert bool(counts(tmp_path / "t.csv")) == (not found)


def test_columns_and_arrays_that_are_not_read_are_said(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=noise(4), y_train=np.arange(4), x_test=noise(2))
    assert unread(tmp_path / "a.npz") == {"array": 1}
    pa = pytest.importorskip("pyarrow")
    rows = pa.table({"image": PICTURES[:2], "target": [0, 1]})
    pytest.importorskip("pyarrow.parquet").write_table(rows, tmp_path / "t.parquet")
    assert unread(tmp_path / "t.parquet") == {"column that is no 'label'": 1}


def test_a_link_that_was_followed_before_is_said(tmp_path):
    place = write_folder(tmp_path / "set", noise(6), ["cats", "dogs"] * 3)
    (place / "dogs" / "up").symlink_to(place)
    (place / "tigers").symlink_to(place / "cats")
    assert prepared(place).report["images"] == 6
    assert unread(place) == {"link to a folder that is read already": 2}


class Heif(ImageFile.ImageFile):
    """What pillow-heif registers, for files that hold a PNG behind their first 16 bytes."""

    format = "HEIF"

    def _open(self) -> None:
        self.fp.seek(16)  # type: ignore[union-attr]
        inner = Image.open(io.BytesIO(self.fp.read()))  # type: ignore[union-attr]
        self._size, self._mode, self.im = inner.size, inner.mode, inner.convert("RGB").im

    def load(self) -> None:
        return None


def test_heic_is_read_where_pillow_heif_is(tmp_path, monkeypatch):
    """By its content, with any suffix."""
    place = write_folder(tmp_path / "set", noise(4))
    for i in range(4):
        name = ("a.HEIC", "b.heif", "c.hif", "d.jpg")[i]
        (place / name).write_bytes(b"\0\0\0\x18ftypheic" + bytes(4) + PICTURES[4 + i])

    def register_heif_opener():
        Image.register_open("HEIF", Heif, lambda head: head[4:12] == b"ftypheic")

    fake = types.SimpleNamespace(register_heif_opener=register_heif_opener)
    monkeypatch.setitem(sys.modules, "pillow_heif", fake)
    monkeypatch.setattr(Image, "ID", [*Image.ID])
    monkeypatch.setattr(Image, "OPEN", {**Image.OPEN})
    decode.formats.cache_clear()
    try:
        found = prepared(place)
    finally:
        decode.formats.cache_clear()
    assert found.report["images"] == 8
    assert found.report["unread"] == []
    expected = {np.asarray(image).tobytes() for image in noise(12)[4:8]}
    assert expected <= {image.tobytes() for image in found.images}


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_that_names_files_elsewhere_says_so(tmp_path, kind):
    write_folder(tmp_path / "elsewhere", noise(4))
    names = [str(tmp_path / "elsewhere" / "000.png"), "../elsewhere/001.png", "in/002.png"]
    place = tmp_path / "set"
    (place / "in").mkdir(parents=True)
    (place / "in" / "002.png").write_bytes(PICTURES[2])
    if kind == "csv":
        (place / "t.csv").write_text("\n".join(["path", *names]))
    else:
        pa = pytest.importorskip("pyarrow")
        rows = pa.array([{"bytes": None, "path": name} for name in names])
        pytest.importorskip("pyarrow.parquet").write_table(
            pa.table({"image": rows}), place / "t.parquet"
        )
    found = prepared(place / f"t.{kind}")
    assert found.report["images"] == 3
    assert found.report["outside"] == names[:2]
    assert any(names[0] in sentence and "outside" in sentence for sentence in found.remarks)
    assert prepared(place / f"t.{kind}").report["outside"] == names[:2]  # of the cache, too


def test_a_run_among_the_images_is_no_data(tmp_path):
    place = write_folder(tmp_path / "photos", noise(8), ["cats", "dogs"] * 4)
    before = prepared(place)
    for run, files in {"runs/new": (), "cats/old": ("config.yaml", "metrics.jsonl")}.items():
        (place / run / "samples").mkdir(parents=True)
        (place / run / "samples" / "images_000000000064.png").write_bytes(PICTURES[0])
        for name in files:
            (place / run / name).write_text("")
    mark(place / "runs" / "new", "run")
    after = prepared(place)
    assert after.key == before.key
    assert unread(place) == {"folder of a run": 2}
    with pytest.raises(UserError, match="is the folder of a run"):
        find(str(place / "runs" / "new"))


def test_a_pipe_and_a_device_are_not_waited_for(tmp_path):
    import os

    place = write_folder(tmp_path / "set", noise(3))
    os.mkfifo(place / "pipe.dat")
    os.mkfifo(place / "pipe.png")
    (place / "zero.png").symlink_to("/dev/zero")
    (place / "list.csv").write_text("path\n000.png\n001.png\npipe.png\nzero.png\n/dev/zero\n")
    for source in (place, place / "list.csv"):
        report = prepared(source, max_bad=0.9).report
        bad = {entry["path"]: entry["reason"] for entry in report["unreadable"]}
        assert bad.keys() >= {"pipe.png", "zero.png"}
        assert all("is not a regular file" in reason for reason in bad.values())
    assert report["outside"] == ["/dev/zero"]
    for path in (place / "pipe.png", Path("/dev/zero")):
        with pytest.raises(UserError, match="is not a regular file"):
            find(str(path))


# --- values and labels -------------------------------------------------------------------------


def deep(place: Path, most: int) -> Path:
    place.mkdir()
    for i in range(3):
        values = (noise(1, channels=1, seed=i)[0, :, :, 0].astype(np.uint32) * most) // 255
        Image.fromarray(values.astype(np.uint16)).save(place / f"{i}.png")
    return place


def test_twelve_bits_in_sixteen_get_a_hint_and_their_levels(tmp_path):
    place = deep(tmp_path / "set", 4095)
    (hint,) = prepared(place, channels=1).report["hints"]
    assert "add --levels 12" in hint
    found = prepared(place, channels=1, levels=12)
    assert found.report["hints"] == []
    np.testing.assert_allclose(found.images[0], noise(1, channels=1, seed=0)[0], atol=1)
    with pytest.raises(UserError, match=r"values up to \d+: more than 12 bits"):
        prepared(deep(tmp_path / "full", 65535), channels=1, levels=12)
    assert prepared(tmp_path / "full", channels=1).report["hints"] == []


def test_colours_of_sixteen_bits_are_not_read_as_fewer():
    def chunk(name: bytes, content: bytes) -> bytes:
        sum_ = zlib.crc32(name + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + name + content + sum_

    header = bytes([0, 0, 0, 2, 0, 0, 0, 1, 16, 2, 0, 0, 0])  # 2×1 pixels of 3×16 bits
    content = (
        chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(13))) + chunk(b"IEND", b"")
    )
    options = decode.Options(None, 3, "crop", (0, 0, 0), levels=12)
    with pytest.raises(decode.Unreadable, match="colours of 16 bits"):
        decode.decode(b"\x89PNG\r\n\x1a\n" + content, options)


def test_a_label_is_one_however_it_is_spelled(tmp_path):
    files = {f"caf\u00e9/{i}.png": PICTURES[i] for i in range(3)}
    files |= {f"cafe\u0301/{i}.png": PICTURES[i] for i in range(3, 6)}
    files |= {f"tea/{i}.png": PICTURES[i] for i in range(6, 8)}
    assert counts(zipped(tmp_path / "a.zip", files)) == {"caf\u00e9": 6, "tea": 2}
