"""Pictures cut from photographs: two files by photograph, the same each time, nothing plain."""

import csv
import hashlib
import io
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from studies.lib import photographs, qt_resources
from underpaint import config
from underpaint.data.preparation import prepare
from underpaint.errors import UserError

PROGRAMS = {
    "apt-get": 'touch "$2_1_all.deb"',
    "dpkg-deb": 'name=$(basename "$2"); cp -r "$PACKAGES/${name%%_*}" "$3"',
}
INSIDE = "game/animals/calf.png"


def photograph(seed: int, width: int = 300, height: int = 200) -> bytes:
    """Spots of several sizes, as PNG."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (width, height))
    for spots in (5, 40):
        layer = Image.fromarray(rng.integers(0, 256, (spots, spots, 3), np.uint8))
        image = Image.blend(image, layer.resize((width, height)), 0.6)
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def resources(path: str, data: bytes) -> bytes:
    """A Qt resource archive (version 1) of one file in folders."""
    tree, names = struct.pack(">iH2i", 0, 2, 1, 1), b""
    parts = path.split("/")
    for i, part in enumerate(parts):
        at = len(names)
        names += struct.pack(">HI", len(part), 0) + part.encode("utf-16-be")
        last = i + 1 == len(parts)
        tree += struct.pack(">iH2Hi", at, 0, 0, 0, 0) if last else b""
        tree += b"" if last else struct.pack(">iH2i", at, 2, 1, i + 2)
    behind = 20 + len(tree)
    blob = struct.pack(">I", len(data)) + data
    return struct.pack(">4s4i", b"qres", 1, 20, behind, behind + len(blob)) + tree + blob + names


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two packages with five photographs, their list, and programs that fetch and unpack them."""
    folder = tmp_path / "packages"
    (folder / "walls" / "usr").mkdir(parents=True)
    (folder / "game").mkdir()
    rows = []
    for i, name in enumerate(("boat", "hill", "lake", "wood", "calf")):
        data = photograph(i)
        if name == "calf":
            (folder / "game" / "all.rcc").write_bytes(resources(INSIDE, data))
            package, file = "game", f"all.rcc/{INSIDE}"
        else:
            (folder / "walls" / "usr" / f"{name}.png").write_bytes(data)
            package, file = "walls", f"usr/{name}.png"
        side = "held-out" if name in ("lake", "calf") else "train"
        digest = hashlib.sha256(data).hexdigest()[:16]
        rows.append((name, side, package, file, "someone", "CC0-1.0", digest))
    with (tmp_path / "list.csv").open("w", newline="") as opened:
        csv.writer(opened).writerows([photographs.Photo._fields, *rows])
    programs = tmp_path / "programs"
    programs.mkdir()
    for program, script in PROGRAMS.items():
        (programs / program).write_text(f"#!/bin/sh\n{script}\n")
        (programs / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("PACKAGES", str(folder))
    monkeypatch.setattr(photographs, "LIST", tmp_path / "list.csv")
    monkeypatch.setattr(photographs, "COUNTS", {"train": 31, "held-out": 10})
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["photographs", *map(str, arguments)])
    return photographs.main()


def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> str:
    """The line that is said where nothing can be made."""
    with pytest.raises(SystemExit) as left:
        run(monkeypatch, *arguments)
    assert left.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def names(file: Path) -> list[str]:
    with zipfile.ZipFile(file) as archive:
        return archive.namelist()


def test_two_files_split_by_photograph_that_training_reads(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(monkeypatch, "--out", tmp_path / "data", "--size", 16) == 0
    train, held_out = (tmp_path / "data" / f"photographs-16{s}.zip" for s in ("", "-held-out"))
    of = [name.split("-")[0] for name in names(train)]
    assert {name: of.count(name) for name in of} == {"boat": 11, "hill": 10, "wood": 10}
    assert {name.split("-")[0] for name in names(held_out)} == {"lake", "calf"}

    data = prepare(config.Data(source=str(train), held_out=str(held_out)))
    assert data.size == (16, 16)
    assert [data.names[i] for i in data.train_ids] == sorted(names(train))
    assert [data.names[i] for i in data.held_out_ids] == sorted(names(held_out))
    assert set(data.labels) == {-1}


def test_the_same_pictures_each_time_and_none_again(
    packages: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for folder in ("one", "two"):
        run(monkeypatch, "--out", tmp_path / folder, "--size", 16)
    one, two = (sorted((tmp_path / folder).iterdir()) for folder in ("one", "two"))
    assert [file.read_bytes() for file in one] == [file.read_bytes() for file in two]

    capsys.readouterr()
    monkeypatch.setenv("PATH", "/nowhere")
    assert run(monkeypatch, "--out", tmp_path / "one", "--size", 16) == 0
    assert capsys.readouterr().out.splitlines() == [f"{one[1]} and {one[0]} are there"]


def test_crops_cover_an_eighth_to_all_of_the_shorter_side_upright() -> None:
    y, x = np.mgrid[0:160, 0:240]
    rng = np.random.default_rng(0)
    spots = sum(rng.integers(0, 128, (160, 240))[y // side, x // side] for side in (10, 2))
    image = Image.fromarray(np.stack([x, y, spots], 2).astype(np.uint8))
    sides = []
    for crop in photographs.crops(image, "here", 16, 200):
        pixels = np.asarray(crop, float)
        right = pixels[8, 12, 0] - pixels[8, 4, 0]  # half a side
        down = pixels[12, 8, 1] - pixels[4, 8, 1]
        assert right == pytest.approx(down, abs=3)
        sides.append(2 * right * (128 / 160))  # first reduced to a shorter side of 128
    assert 14 <= min(sides) < 20
    assert 110 < max(sides) <= 130
    assert np.median(sides) == pytest.approx(128 / 8**0.5, rel=0.15)  # its logarithm is uniform


def test_plain_crops_are_drawn_again() -> None:
    y, x = np.mgrid[0:256, 0:256]
    pixels = np.stack([x, y, x], 2).astype(np.uint8)  # a gradient
    pixels[:, 192:] = np.random.default_rng(0).integers(0, 256, (256, 64, 3))
    for crop in photographs.crops(Image.fromarray(pixels), "here", 32, 50):
        assert np.abs(np.diff(np.asarray(crop, float), axis=1)).max() > 20


def test_a_photograph_that_gives_no_crops_is_named() -> None:
    grey = Image.new("RGB", (300, 300), "grey")
    with pytest.raises(UserError, match="fog: next to nothing is in it, leave it out of"):
        list(photographs.crops(grey, "fog", 16, 2))
    with pytest.raises(UserError, match="pin is smaller than 64 pixels"):
        list(photographs.crops(Image.new("RGB", (300, 63)), "pin", 64, 2))


def test_what_is_missing_is_one_line(
    packages: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "data"
    line = refused(monkeypatch, capsys, "--out", out, "--size", 1000)
    assert "--size 1000: give 8 to 256" in line

    (packages / "game" / "all.rcc").write_bytes(resources(INSIDE, photograph(9)))
    line = refused(monkeypatch, capsys, "--out", out, "--size", 16)
    assert f"all.rcc/{INSIDE} of game is not the listed one" in line
    (packages / "game" / "all.rcc").unlink()
    line = refused(monkeypatch, capsys, "--out", out, "--size", 16)
    assert f"game has no all.rcc/{INSIDE} (" in line
    assert [file.name for file in out.iterdir()] == ["photographs-16.zip"]

    (tmp_path / "programs" / "apt-get").write_text(
        "#!/bin/sh\necho W: slow >&2\necho 'E: Unable to locate package game' >&2\nexit 100\n"
    )
    line = refused(monkeypatch, capsys, "--out", out, "--size", 16)
    assert "cannot fetch game of Debian 12 (Unable to locate package game); see to" in line
    monkeypatch.setenv("PATH", "/nowhere")
    line = refused(monkeypatch, capsys, "--out", out, "--size", 16)
    assert "apt-get is not there" in line


def test_the_list_names_each_photograph_once_with_author_and_licence() -> None:
    photos = photographs.listed()
    assert all(all(photo) for photo in photos)
    for field in ("name", "file", "sha256"):
        assert len({getattr(photo, field) for photo in photos}) == len(photos)
    sides = [photo.side for photo in photos]
    assert (sides.count("train"), sides.count("held-out")) == (114, 25)
    assert f"The {len(photos)}" in " ".join((photographs.__doc__ or "").split())


def test_a_resource_archive_gives_its_file_and_says_what_it_lacks() -> None:
    archive = resources("animals/small/calf.webp", b"moo")
    assert qt_resources.read(archive, "animals/small/calf.webp") == b"moo"
    for path in ("animals/small", "animals/cow.webp", "animals/small/calf.webp/more"):
        with pytest.raises(KeyError):
            qt_resources.read(archive, path)
    for broken in (b"", b"qres", b"RIFF" + archive[4:]):
        with pytest.raises(ValueError, match="Qt resource archive"):
            qt_resources.read(broken, "animals/small/calf.webp")
