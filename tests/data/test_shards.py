"""Images that are streamed from tar shards are those that are decoded into the cache."""

import gzip
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import numpy as np
import pytest

from tests.data.pictures import noise, png, write_folder
from tests.data.shards import check_workers, serving, write_shards, write_tar
from underpaint import config, data
from underpaint.cli import main
from underpaint.data import Dataset, Order, remote, shard_index
from underpaint.data.ahead import Ahead
from underpaint.data.readers import shards
from underpaint.errors import RunFailed, UserError

LABELS = ["cats", "dogs"] * 30


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "WAIT", 0.001)


@pytest.fixture
def sixty(tmp_path: Path) -> Path:
    """60 images in 9 shards."""
    return write_shards(tmp_path / "set", noise(60), 7, LABELS)


def prepare(source: object, **more: object) -> Dataset:
    return data.prepare(config.Data(source=str(source), **more), workers=1)  # type: ignore[arg-type]


@contextmanager
def somewhere(kind: str, folder: Path) -> Iterator[str]:
    """Where the files of `folder` are, by the scheme `kind`."""
    if kind == "http":
        with serving(folder) as url:
            yield url
    elif kind == "memory":
        fs = fsspec.filesystem("memory")
        fs.put(f"{folder}/", "/shards/", recursive=True)
        yield "memory://shards"
        fs.rm("/shards", recursive=True)
    else:
        yield f"file://{folder}" if kind == "file" else str(folder)


@pytest.mark.parametrize("kind", ["local", "file", "memory", "http"])
def test_the_same_as_in_a_folder(kind: str, sixty: Path, tmp_path: Path) -> None:
    """Pixels, labels, identities and what is held out; resized and with what is no image."""
    with (sixty / "set-0003.tar").open("r+b"):
        write_tar(sixty / "set-0003.tar", {"x.png": b"no image", "y.txt": b"a", **members(21, 28)})
    write_folder(tmp_path / "photos", noise(60), LABELS)
    (tmp_path / "photos" / "cats" / "x.png").write_bytes(b"no image")
    plain = prepare(tmp_path / "photos", size=(6, 4), channels=1, max_bad=0.1)
    with somewhere(kind, sixty) as place:
        found = prepare(f"{place}/set-{{0000..0008}}.tar", size=(6, 4), channels=1, max_bad=0.1)
        again = prepare(f"{place}/set-{{0000..0008}}.tar", size=(6, 4), channels=1, max_bad=0.1)
        pixels = found.batch(np.arange(60))
        np.testing.assert_array_equal(found.images[10:20], pixels[10:20])
        np.testing.assert_array_equal(found.images[59], pixels[59])
        np.testing.assert_array_equal(found.images[np.arange(60) > 57], pixels[58:])
    assert isinstance(found.images, data.Streamed)
    assert found.images.shape == plain.images.shape == (60, 6, 4, 1)
    assert again.report["reused"]
    assert (again.key, again.names[0]) == (found.key, "set-0000.tar/000.png")
    by_hash = {sha: i for i, sha in enumerate(plain.file_sha256)}
    there = np.array([by_hash[sha] for sha in found.file_sha256])
    np.testing.assert_array_equal(pixels, plain.batch(there))
    np.testing.assert_array_equal(found.labels, plain.labels[there])
    assert found.label_names == plain.label_names
    assert found.pixel_sha256 == [plain.pixel_sha256[i] for i in there]
    held_out = {found.file_sha256[i] for i in found.held_out_ids}
    assert held_out == {plain.file_sha256[i] for i in plain.held_out_ids}
    assert len(held_out) == 3
    (bad,) = found.report["unreadable"]
    assert bad["path"] == "set-0003.tar/x.png"
    assert found.report["unread"] == [
        {"files": 1, "first": "set-0003.tar/y.txt", "reason": ".txt, no image"}
    ]


def members(start: int, end: int) -> dict[str, bytes]:
    images = noise(60)
    found: dict[str, bytes] = {}
    for i in range(start, end):
        found |= {f"{i:03}.png": png(images[i]), f"{i:03}.cls": LABELS[i].encode()}
    return found


def test_forms_of_a_list(sixty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text("set/set-{0000..0007}.tar\n# the last\n\nset/set-0008.tar\n")
    forms = ["set", "set/set-{0000..0008}.tar", "set/set-*.tar", "@list.txt", f"{sixty}/*.tar"]
    keys = {prepare(form).key for form in forms}
    assert len(keys) == 1
    found = shards.find("set/{01..02}-{9..10}.tar")
    assert found is not None
    names = [os.path.relpath(place, tmp_path / "set") for place in found.places]
    assert names == ["01-9.tar", "01-10.tar", "02-9.tar", "02-10.tar"]
    assert shards.find("photos") is None
    monkeypatch.chdir("/")
    assert shards.absolute("https://x/a.tar") == "https://x/a.tar"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("set-{0000..0009}.tar", "shard '{}/set-0009.tar' cannot be read (not found)"),
        ("http://127.0.0.1:9/a.tar", "shard 'http://127.0.0.1:9/a.tar' cannot be read"),
        ("nothing-*.tar", "no shard matches"),
        ("@nothing.txt", "the list of shards cannot be read (No such file or directory)"),
        ("set-{5..1}.tar", "{5..1} is no range"),
        ("@twice.txt", "set-0000.tar' is named twice"),
        ("set-{0..9}.tar.gz", "is compressed, and shards are read at many places"),
        ("https://x/y.zip", "is neither .tar nor .parquet, and only these are streamed"),
        ("nosuch://x/y.tar", "cannot be opened (Protocol not known: nosuch"),
        ("cut-*.tar", "data '{}/cut-1.tar' cannot be read as a tar ("),
        (
            "bad-*.tar",
            "data '{}/bad-1.tar': none of the 1 images could be read (the first: 'a.png'",
        ),
        ("sizes-*.tar", "shard '{}/sizes-2.tar' has images of 9×9, and the first one has 8×8"),
    ],
)
def test_what_cannot_be_is_one_line(
    source: str, says: str, sixty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sixty)
    Path("twice.txt").write_text("set-0000.tar\nset-0000.tar\n")
    whole = Path("set-0000.tar").read_bytes()
    Path("cut-1.tar").write_bytes(whole[: len(whole) // 2])
    write_tar(Path("bad-1.tar"), {"a.png": b"no image"})
    write_tar(Path("sizes-1.tar"), {"a.png": png(noise(1)[0])})
    write_tar(Path("sizes-2.tar"), {"a.png": png(noise(1, 9, 9)[0])})
    with pytest.raises(UserError) as error:
        prepare(source)
    assert says.replace("{}", str(sixty)) in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_refused(sixty: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must both be shards or neither"):
        prepare(sixty, held_out=str(photos))
    with pytest.raises(UserError, match="remove_duplicates compares all images"):
        prepare(sixty, remove_duplicates=True)
    bad = write_tar(tmp_path / "bad" / "a.tar", {**members(0, 9), "x.png": b"no image"}).parent
    with pytest.raises(
        UserError, match=r"1 of 10 files could not be read \(the first: 'a.tar/x.png'"
    ):
        prepare(bad)
    assert len(prepare(bad, max_bad=0.1)) == 9
    with pytest.raises(UserError, match="only these are prepared in parts"):
        data.prepare_part(config.Data(source=str(photos)), 1, 2)
    one = write_tar(tmp_path / "one" / "a.tar", {"a.png": png(noise(1)[0])}).parent
    with pytest.raises(UserError, match="is one image"):
        prepare(one)
    packed = tmp_path / "packed" / "a.tar"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress((sixty / "set-0000.tar").read_bytes()))
    with pytest.raises(UserError, match="is compressed"):
        prepare(packed.parent)


def test_what_is_not_as_it_was_is_named(sixty: Path) -> None:
    images = prepare(sixty).images
    with (sixty / "set-0002.tar").open("r+b") as file:
        file.seek(600)
        file.write(b"another")
    images[[0, 13, 21]]
    with pytest.raises(RunFailed, match=r"set-0002.tar': '014.png' is not what it was"):
        images[[0, 14]]
    (sixty / "set-0001.tar").unlink()
    with pytest.raises(RunFailed, match=r"set-0001.tar': '008.png' cannot be read \(No such file"):
        images[8]
    (sixty / "set-0004.tar").write_bytes(b"")
    with pytest.raises(RunFailed, match=r"set-0004.tar': '029.png' cannot be read \(.* cut off"):
        images[29]


def test_a_server_without_range_requests(sixty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(sixty) as url:
        images = prepare(f"{url}/set-0001.tar").images
        np.testing.assert_array_equal(images[2], noise(60)[9])
        monkeypatch.setattr("tests.data.shards.RANGE", r"never")
        with pytest.raises(RunFailed, match="the server knows no range requests"):
            images[2]
        (sixty / "set-0001.tar").unlink()
        with pytest.raises(RunFailed, match=r"'009.png' cannot be read \(not found\)"):
            images[2]


def test_folders_are_labels_across_shards(tmp_path: Path) -> None:
    pixels = noise(6)
    for k, label in enumerate(["cats", "dogs", "cats"]):
        two = {f"{label}/{i}.png": png(pixels[i]) for i in (2 * k, 2 * k + 1)}
        write_tar(tmp_path / "set" / f"{k}.tar", two)
    found = prepare(tmp_path / "set")
    assert found.label_names == ("cats", "dogs")
    assert found.labels.tolist() == [0, 0, 1, 1, 0, 0]


def test_held_out_shards_are_labelled_as_the_data(sixty: Path, tmp_path: Path) -> None:
    pixels = noise(4, seed=1)
    some = {f"{i}.{kind}": value for i in range(4) for kind, value in of(pixels[i], "dogs")}
    again = {"5.png": png(noise(60)[0]), "5.cls": b"cats"}  # which is in the data, too
    write_tar(tmp_path / "others" / "a.tar", some | again)
    found = prepare(sixty, held_out=str(tmp_path / "others"))
    assert (len(found.train_ids), len(found.held_out_ids)) == (59, 5)
    assert [found.label_names[i] for i in found.labels[found.held_out_ids[:4]]] == ["dogs"] * 4
    write_tar(tmp_path / "others" / "a.tar", {"1.png": png(pixels[0]), "1.cls": b"mice"})
    with pytest.raises(UserError, match="'mice', which the training data lack"):
        prepare(sixty, held_out=str(tmp_path / "others"))


def of(pixels: np.ndarray, label: str) -> list[tuple[str, bytes]]:
    return [("png", png(pixels)), ("cls", label.encode())]


def test_parts_leave_nothing_to_do(
    sixty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for k, held in ((1, "3 shards"), (2, "3 shards"), (3, "3 shards")):
        assert main(["prepare", str(sixty), "--part", f"{k}/3"]) == 0
        assert held.split()[0] in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr(shard_index, "_index", None)  # nothing is indexed any more
        joined = prepare(sixty)
    with monkeypatch.context() as patch:
        patch.setenv("UNDERPAINT_CACHE", str(sixty.parent / "another"))
        alone = prepare(sixty)
    assert joined.key == alone.key
    assert main(["prepare", str(sixty), "--part", "4/3"]) == 2
    assert "give K/N" in capsys.readouterr().err


def test_damage_is_noticed(sixty: Path, cache: Path) -> None:
    before = prepare(sixty)
    for file in (*(cache / "shards").rglob("*.safetensors"), Path(before.report["cache"])):
        path = file / "index.safetensors" if file.is_dir() else file
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)
    after = prepare(sixty)
    assert after.key == before.key
    assert "was damaged: built again" in after.remarks[0]
    assert prepare(sixty).report["reused"]


def test_a_shard_that_is_added_is_read_alone(sixty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, read = prepare(sixty), []
    index = shard_index._index
    monkeypatch.setattr(
        shard_index, "_index", lambda path, place, *a: read.append(place) or index(path, place, *a)
    )
    new = write_tar(sixty / "set-0009.tar", {"a.png": png(noise(1, seed=2)[0]), "a.cls": b"cats"})
    after = prepare(sixty)
    assert read == [str(new)]
    assert len(after) == 61
    assert set(before.held_out_ids) <= set(after.held_out_ids)


# --- order and workers ---------------------------------------------------------------------------


def test_windows() -> None:
    """Every image once an epoch; of a window few shards; a pure function of seed and position."""
    shard = np.repeat(np.arange(50, dtype=np.int32), 20)
    ids = np.flatnonzero(np.arange(1000) % 20)  # one of each shard is held out
    order = Order(ids, 5, shard[ids], window=95)
    for epoch in range(2):
        seen = order.at(950 * epoch, 950)
        assert sorted(seen) == ids.tolist()
        for start in range(0, 950, 95):
            part = seen[start : start + 95]
            assert len(np.unique(shard[part])) == 5
            assert len(np.unique(shard[part[:20]])) > 2  # mixed
    assert not np.array_equal(order.at(0, 950), order.at(950, 950))
    fresh = Order(ids, 5, shard[ids], window=95)
    np.testing.assert_array_equal(fresh.at(900, 300), order.at(900, 300))
    plain = Order(ids, 5)
    np.testing.assert_array_equal(Order(ids, 5, shard[ids]).at(0, 99), plain.at(0, 99))


@pytest.mark.parametrize("kind", ["local", "memory", "http"])
def test_workers_read_what_this_process_would(kind: str, sixty: Path) -> None:
    with somewhere(kind, sixty) as place:
        found = prepare(f"{place}/set-{{0000..0008}}.tar")
        assert isinstance(found.images, data.Streamed)
        check_workers(found, found.images.shard, (0, 8, 16, 24, 120, 128, 8, 200))  # and restarts


def test_an_error_in_a_worker_is_one_line(sixty: Path) -> None:
    found = prepare(sixty)
    assert isinstance(found.images, data.Streamed)
    order = Order(found.train_ids, 0, found.images.shard[found.train_ids], 16)
    ahead = Ahead(found.images, order, workers=1)
    for shard in sixty.glob("*.tar"):
        shard.unlink()
    with pytest.raises(RunFailed, match="cannot be read") as error:
        ahead.take(0, 8, 8)
    assert "\n" not in str(error.value)
    assert ".tar': '" in str(error.value)


def test_a_worker_that_is_killed_is_one_line(sixty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = prepare(sixty)
    assert isinstance(found.images, data.Streamed)
    here = os.getpid()

    def killed(*_: object) -> None:
        if os.getpid() != here:
            os.kill(os.getpid(), 9)

    monkeypatch.setattr("underpaint.data.streamed.decode", killed)
    ahead = Ahead(found.images, Order(found.train_ids, 0), workers=1)
    with pytest.raises(RunFailed, match="a process that decodes images is gone") as error:
        ahead.take(0, 8, 8)
    assert "\n" not in str(error.value)
