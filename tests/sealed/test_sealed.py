"""A sealed file holds the visible patches of each image and nothing else, and shows any change."""

import hashlib
import json
import math
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.pictures import noise, png, write_folder
from underpaint import config
from underpaint.core import masks
from underpaint.core.masks import MaskSpec
from underpaint.core.spaces import Pixels
from underpaint.data import digests, fixed_masks, source
from underpaint.errors import UserError
from underpaint.sealed import format as sealed
from underpaint.sealed.writer import seal

KEY = b"a key of 16 byte"
GRID = (4, 4)  # 16×16 pixels, patches of 4


@pytest.fixture
def images(tmp_path: Path) -> np.ndarray:
    return noise(40, 16, 16)


@pytest.fixture
def make(images: np.ndarray, tmp_path: Path) -> Callable[..., Path]:
    """Seal arrays (or a place) into a file of a quarter of the patches."""

    def run(what: object = None, name: str = "sealed.up", **options: object) -> Path:
        source = tmp_path / "images.npz" if what is None or isinstance(what, np.ndarray) else what
        if source == tmp_path / "images.npz":
            pixels = images if what is None else what
            np.savez(source, images=pixels, labels=np.arange(len(pixels)) % 3)
        held_out = str(options.pop("held_out", "auto"))
        data = config.Data(source=str(source), held_out=held_out)
        options = {"rate": 0.75, "key": KEY, "workers": 1} | options
        seal(data, tmp_path / name, **options)
        return tmp_path / name

    return run


def patches(images: np.ndarray) -> np.ndarray:
    """All patches uint8 [n, N, P]."""
    planes = torch.from_numpy(images).permute(0, 3, 1, 2)
    return Pixels(images.shape[1:3], images.shape[3], 4).encode(planes).numpy()


def originals(file: sealed.Sealed, images: np.ndarray) -> np.ndarray:
    """Which image each record is of, found by comparing its patches."""
    every, (found, at) = patches(images), file.batch(np.arange(len(file.patches)))
    return np.array(
        [
            np.flatnonzero((every[:, at[i]] == found[i]).all((1, 2)))[0]
            for i in range(len(file.patches))
        ]
    )


# --- what is in it -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sealed.KINDS)
@pytest.mark.parametrize("labels", [False, True])
def test_each_image_gives_its_patches_under_the_keys_mask(
    kind: str, labels: bool, make: Callable[..., Path], images: np.ndarray
) -> None:
    file = sealed.read(make(kind=kind, labels=labels))
    image = originals(file, images)
    assert sorted(image) == list(range(40))
    assert image.tolist() != list(range(40))  # 1 in 40! by chance
    seeds = [fixed_masks.seed_of(KEY, digests.of_array(images[i])) for i in image]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    expected = masks.draw(MaskSpec(kind, 0.75), GRID, 40, generators)
    got, at = file.batch(np.arange(40))
    assert np.array_equal(at, expected.visible.numpy())
    assert np.array_equal(got, np.take_along_axis(patches(images)[image], at[:, :, None], 1))
    assert file.label_names == (("0", "1", "2") if labels else ())
    assert np.array_equal(file.labels, image % 3 if labels else np.full(40, -1))
    assert len(file.held_out_ids) == 2
    assert sorted([*file.train_ids, *file.held_out_ids]) == list(range(40))


def test_other_keys_give_other_masks_and_no_key_a_new_one(
    make: Callable[..., Path], images: np.ndarray
) -> None:
    def visible(name: str, **options: object) -> np.ndarray:
        file = sealed.read(make(name=name, kind="patch", **options))
        return file.batch(np.argsort(originals(file, images)))[1]

    same = [visible("a"), visible("b"), visible("c", key=b"another key of many bytes")]
    drawn = [visible("d", key=None), visible("e", key=None)]
    assert np.array_equal(same[0], same[1])
    assert not np.array_equal(same[0], same[2])
    assert not np.array_equal(drawn[0], drawn[1])


def test_the_bytes_are_counted(make: Callable[..., Path], tmp_path: Path) -> None:
    path = make(labels=True)
    found = sealed.verify(path)
    bytes_of = found["bytes"]
    assert (found["visible"], found["patches"], found["patch_dim"]) == (4, 16, 48)
    assert bytes_of["patches"] == 40 * 4 * 48
    assert bytes_of["all"] == path.stat().st_size
    assert bytes_of["all"] == sum(v for name, v in bytes_of.items() if name != "all")


def test_nothing_hidden_is_left_anywhere(
    make: Callable[..., Path], images: np.ndarray, tmp_path: Path, cache: Path
) -> None:
    folder = write_folder(tmp_path / "private", images, ["alice"] * 40)
    before = {p for p in tmp_path.rglob("*") if p.is_file()}
    path = make(folder)
    assert {p for p in tmp_path.rglob("*") if p.is_file()} - before == {path}
    assert not cache.exists()
    data = path.read_bytes()
    assert b"alice" not in data
    assert b"private" not in data
    assert KEY not in data
    file = sealed.read(path)
    shown = {
        patch.tobytes() for got in [file.batch(np.arange(40))[0]] for one in got for patch in one
    }
    for patch in patches(images).reshape(-1, 48):
        assert (patch.tobytes() in data) == (patch.tobytes() in shown)


def test_files_of_other_sizes_and_unreadable_ones(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", noise(30, 40, 50))
    for i in (3, 7, 29):
        (folder / f"{i:03}.png").write_bytes(b"nothing")
    data = config.Data(source=str(folder), size=(16,), max_bad=0.2, channels=1)
    found = seal(data, tmp_path / "small.up", rate=0.5)
    assert (found["images"], found["unreadable"], found["bleed"]) == (27, 3, 3)
    assert (found["channels"], found["patch_dim"], found["visible"]) == (1, 16, 8)
    got, _ = sealed.read(tmp_path / "small.up").batch(np.arange(27))
    assert (got.reshape(27, -1).std(1) > 1).all()  # no record was left empty


def test_labels_that_are_asked_for_where_there_are_none(tmp_path: Path) -> None:
    """The place that was kept for them goes, as does that of unreadable images."""
    pixels = noise(30, 16, 16)
    folder = write_folder(tmp_path / "photos", pixels)
    for i in (3, 7, 29):
        (folder / f"{i:03}.png").write_bytes(b"nothing")
    data = config.Data(source=str(folder), max_bad=0.2)
    seal(data, tmp_path / "small.up", rate=0.5, labels=True)
    file = sealed.read(tmp_path / "small.up")
    assert "labels" not in file.about["arrays"]
    assert (file.labels == -1).all()
    assert sorted(originals(file, pixels)) == [i for i in range(30) if i not in (3, 7, 29)]


def test_a_failed_sealing_leaves_no_file(make: Callable[..., Path], tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", noise(30, 16, 16))
    (folder / "029.png").write_bytes(png(noise(1, 16, 20)[0]))
    with pytest.raises(UserError, match="several sizes"):
        make(folder)
    assert not list(tmp_path.glob("sealed*"))


def test_the_five_lines_of_the_documentation_read_it(make: Callable[..., Path]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "sealed.md").read_text(encoding="utf-8")
    load, mapped = (part.split("```")[0] for part in page.split("```python\n")[1:])
    assert len(load.splitlines()) <= 5
    for labels in (False, True):
        path = make(name=f"{labels}.up", labels=labels)
        space: dict[str, Any] = {}
        exec(load.replace("sealed.up", str(path)), space)
        file, arrays = sealed.read(path), space["arrays"]
        got, at = file.batch(np.arange(40))
        names = ["labels", "positions", "patches", "held_out", "checksums"]
        assert list(arrays) == names[not labels :]
        assert np.array_equal(arrays["patches"], got)
        assert np.array_equal(arrays["positions"], at)
        assert np.array_equal(np.flatnonzero(arrays["held_out"]), file.held_out_ids)
        assert not labels or np.array_equal(arrays["labels"], file.labels)
        exec(mapped.replace("sealed.up", str(path)), space)
        assert isinstance(space["patches"], np.memmap)
        assert np.array_equal(space["patches"], got)
        for name, offset in space["about"]["arrays"].items():
            assert offset % arrays[name].itemsize == 0


def test_a_million_images_need_less_than_a_gibibyte(tmp_path: Path) -> None:
    """What is allocated at most while sealing grows by so much with each image.

    Files cost most in a zip, whose directory Python holds.
    """

    def most(n: int) -> int:
        pixels = noise(n, 2, 2).repeat(4, 1).repeat(4, 2)
        np.save(tmp_path / f"{n}.npy", pixels)
        (tmp_path / f"{n}.up").unlink(missing_ok=True)
        tracemalloc.start()
        data = config.Data(source=str(tmp_path / f"{n}.npy"))
        seal(data, tmp_path / f"{n}.up", rate=0.5, kind="patch", workers=1)
        return _peak()

    def listed(n: int) -> int:
        with zipfile.ZipFile(tmp_path / f"{n}.zip", "w") as file:
            for i in range(n):
                file.writestr(f"image-{i:07}.png", b"")
        tracemalloc.start()
        next(source.find(str(tmp_path / f"{n}.zip")).open().items)
        return _peak()

    each = []
    for measured, times in ((most, 1), (listed, 3)):
        measured(2400)  # imports, caches, and what Python keeps of freed tuples
        # more than 2000 of a length, which Python keeps; the least of several: what other threads
        # of this process allocate comes on top
        few, many = (min(measured(n) for _ in range(times)) for n in (2400, 3600))
        each.append((many - few) / 1200)
    assert sum(each) * 1_000_000 < 1 << 30, each
    assert each[0] < 400


def _peak() -> int:
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


# --- near-duplicates -----------------------------------------------------------------------------


def smooth(n: int, seed: int = 0) -> np.ndarray:
    """Images [n, 16, 16, 3] of 4×4 coloured squares: far from one another."""
    return noise(n, 4, 4, seed=seed).repeat(4, 1).repeat(4, 2)


def test_near_duplicates_are_counted_with_what_they_show_together(
    make: Callable[..., Path],
) -> None:
    base = smooth(20)
    copies = np.clip(base[:5].astype(int) + 1, 0, 255).astype(np.uint8)  # a little brighter
    found = sealed.verify(make(np.concatenate([base, copies, base[:1]]), kind="patch"))
    near = found["duplicates"]
    assert (near["groups"], near["images"], near["largest"]) == (5, 11, 3)
    assert (near["exact"], near["dropped"]) == (1, 0)
    assert 4 / 16 < near["joint_coverage_mean"] <= near["joint_coverage_largest"] <= 8 / 16


def test_near_duplicates_are_dropped_if_asked(make: Callable[..., Path]) -> None:
    base = smooth(20)
    file = sealed.read(make(np.concatenate([base, base[:5], base]), drop_duplicates=True))
    assert file.about["images"] == 20
    assert file.about["duplicates"]["dropped"] == 25
    assert file.about["duplicates"]["groups"] == 0
    assert sorted(originals(file, base)) == list(range(20))


def test_near_duplicates_stay_on_one_side(make: Callable[..., Path]) -> None:
    base = smooth(30)
    near = np.clip(base.astype(int) - 1, 0, 255).astype(np.uint8)
    file = sealed.read(make(np.concatenate([base, near]), held_out="6"))
    image = originals(file, np.concatenate([base, near])) % 30
    assert len(file.held_out_ids) == 6
    assert not set(image[file.held_out_ids]) & set(image[file.train_ids])


# --- what changed is found -----------------------------------------------------------------------


def test_every_flipped_byte_is_found_and_named(make: Callable[..., Path]) -> None:
    path = make()
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for at in [*range(70), *rng.integers(70, len(data), 150).tolist(), len(data) - 1]:
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
        with pytest.raises(UserError) as error:
            sealed.verify(path)
        text = str(error.value)
        if at < 8:
            assert "not a sealed file" in text
            continue
        place = text.split("(bytes ")[1].split(")")[0]
        first, last = (int(number.replace(",", "")) for number in place.split(" to "))
        assert first <= at <= last
    path.write_bytes(data)
    sealed.verify(path)


def test_chunks_tell_which_images_changed(
    make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealed, "CHUNK", 2000)  # ten images of 192 bytes
    path = make(labels=True)
    data = path.read_bytes()
    offsets = header_of(data)["arrays"]
    rows = {"labels": 4, "positions": 8, "patches": 192, "held_out": 1}
    assert list(offsets) == [*rows, "checksums"]
    for name, row in rows.items():
        at = offsets[name] + 25 * row
        path.write_bytes(data[:at] + bytes([data[at] ^ 128]) + data[at + 1 :])
        with pytest.raises(UserError, match=f"{name} of images 20 to 29"):
            sealed.read(path)


def test_truncated_longer_and_other_versions(make: Callable[..., Path]) -> None:
    path = make()
    data = path.read_bytes()
    for wrong, words in {
        data[:-1]: "truncated",
        data[:-3000]: "truncated",
        data[:1000]: "truncated",
        data[:9]: "truncated",
        data + b"x": "longer",
        b"PNG": "not a sealed file",
        b"": "not a sealed file",
        _version(data, 1): "version 1, .*; install the one that wrote it, or seal the images again",
        _version(data, 3): "version 3",
    }.items():
        path.write_bytes(wrong)
        with pytest.raises(UserError, match=words):
            sealed.read(path)


def _version(data: bytes, version: int) -> bytes:
    front, body = data[:8] + struct.pack("<I", version), data[44 : sealed.HEADER]
    digest = hashlib.sha256(front + body).digest()
    return front + digest + body + data[sealed.HEADER :]


def header_of(data: bytes) -> dict[str, Any]:
    return json.loads(data[44 : sealed.HEADER])


def with_text(data: bytes, text: bytes) -> bytes:
    """The file with another JSON, whose checksum holds."""
    front, body = data[:12], text.ljust(sealed.HEADER - 44)
    return front + hashlib.sha256(front + body).digest() + body + data[sealed.HEADER :]


def test_a_header_that_holds_anything_beside_is_refused(make: Callable[..., Path]) -> None:
    """Also with valid checksums."""
    path = make(labels=True)
    data = path.read_bytes()
    about = header_of(data)
    duplicates = about["duplicates"]
    changes: list[dict[str, Any]] = [
        {"names": ["x"]},
        {"rate": "0.75"},
        {"images": True},
    ]
    for change in changes:
        path.write_bytes(with_text(data, json.dumps(about | change).encode()))
        with pytest.raises(UserError, match="other fields"):
            sealed.verify(path)
    contradictions: list[dict[str, Any]] = [
        {"images": 0},
        {"images": 39},
        {"images": 10**4000},
        {"patch": 0},
        {"size": [16, 16, 3]},
        {"size": [16, "alice"]},
        {"size": [17, 16]},
        {"visible": 16},
        {"channels": 2},
        {"kind": "salient"},
        {"rate": math.nan},
        {"label_names": ["0", "1", 2]},
        {"label_names": ["0", "1", "1"]},
        {"held_out": -1},
        {"bleed": -1},
        {"duplicates": duplicates | {"of": "alice"}},
        {"duplicates": duplicates | {"groups": "alice"}},
        {"arrays": about["arrays"] | {"names": 0}},
        {"arrays": about["arrays"] | {"patches": sealed.HEADER}},
    ]
    for change in contradictions:
        path.write_bytes(with_text(data, json.dumps(about | change).encode()))
        with pytest.raises(UserError, match="contradicts itself"):
            sealed.verify(path)
    text = json.dumps(about).encode()
    for other in (b" " + text, text[:-1] + b', "images": 40}', text.replace(b"0.75", b"7.5e-1")):
        path.write_bytes(with_text(data, other))
        with pytest.raises(UserError, match="contradicts itself"):
            sealed.verify(path)
    for other in (b"", b"[" * 60_000, b"[]", b"\xff"):
        path.write_bytes(with_text(data, other))
        with pytest.raises(UserError, match="other fields"):
            sealed.verify(path)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("labels", b"\x03\0\0\0", "no patches at positions"),
        ("labels", b"\xfe\xff\xff\xff", "no patches at positions"),
        ("positions", b"\x0f\0" * 2, "no patches at positions"),
        ("positions", b"\x10\0", "no patches at positions"),
        ("held_out", b"\x02", "no patches at positions"),
        ("npy", b"\x20", "contradicts itself"),
        ("count", b"", "holds out other images"),
    ],
)
def test_values_that_mean_nothing_are_refused(
    name: str, value: bytes, says: str, make: Callable[..., Path]
) -> None:
    """Also with valid checksums."""
    path = make(labels=True)
    data = bytearray(path.read_bytes())
    about = header_of(data)
    at = about["arrays"]["patches"] - 9 if name == "npy" else about["arrays"].get(name, 0)
    if name == "npy":
        value = bytes([data[at] ^ 1])
    if name == "count":
        about["held_out"] += 1
    elif value:
        data[at : at + len(value)] = value
    arrays = sealed.blocks(40, 4, 48, True)
    table = arrays[-1].npy_header() + b"".join(
        hashlib.sha256(data[begin:end]).digest() for *_, begin, end in sealed.chunks(arrays)
    )
    about["checksums"] = hashlib.sha256(table).hexdigest()
    path.write_bytes(sealed.header(about) + data[sealed.HEADER : arrays[-1].start] + table)
    with pytest.raises(UserError, match=says):
        sealed.verify(path)
