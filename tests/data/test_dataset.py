"""prepare: a cache that is right, whole and safe, and a report that tells what was met."""

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from tests.data.pictures import noise, png, write_folder
from tests.heard import Heard
from underpaint import config, data
from underpaint.data import cache as caches
from underpaint.data import digests, index, preparation
from underpaint.errors import UserError
from underpaint.progress import following


def prepare(source: Path | str, **settings) -> data.Dataset:
    options = {k: settings.pop(k) for k in ("force", "workers") if k in settings}
    return data.prepare(config.Data(source=str(source), **settings), **options)


def test_identities(photos):
    prepared = prepare(photos)
    for i, name in enumerate(prepared.names):
        content = (photos / name).read_bytes()
        assert prepared.file_sha256[i] == hashlib.sha256(content).hexdigest()
    assert len(set(prepared.pixel_sha256)) == 40
    assert prepared.size == (8, 8)
    assert prepared.channels == 3
    assert [prepared.label_names[i] for i in prepared.labels] == [
        name.split("/")[0] for name in prepared.names
    ]


def test_report(tmp_path):
    images = noise(200)
    images[1] = images[0]
    images[2] = 77
    place = write_folder(tmp_path / "set", images, ["a"] * 150 + ["b"] * 50)
    (place / "a" / "wide.png").write_bytes(png(noise(1, 8, 12, seed=5)[0]))
    (place / "b" / "bad.jpg").write_bytes(b"rubbish")
    report = prepare(place, size=(8,)).report
    assert report["images"] == 201
    assert report["sizes"] == {"8×8": 200, "8×12": 1}
    assert report["labels"] == {"a": 151, "b": 50}
    assert report["duplicates"] == 1
    assert report["near_constant"] == 1
    assert report["unreadable"] == [
        {"path": "b/bad.jpg", "reason": "is not an image of a known format"}
    ]
    assert report["held_out"] == 10
    assert report["train"] == 191
    assert Path(report["cache"]).is_dir()
    assert "Lanczos" in report["resampling"]
    json.dumps(report)


def test_a_data_loader_takes_it(photos):
    prepared = prepare(photos)
    assert len(prepared) == 40
    image, label = prepared[3]
    assert image.dtype == torch.float32
    np.testing.assert_allclose(image, prepared.images[3].transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)
    assert label == prepared.labels[3]
    with pytest.raises(IndexError):
        prepared[40]
    loader = torch.utils.data.DataLoader(prepared, batch_size=16, num_workers=1)
    batches = list(loader)
    assert [len(images) for images, _ in batches] == [16, 16, 8]
    assert torch.cat([labels for _, labels in batches]).tolist() == prepared.labels.tolist()
    assert repr(prepared).startswith("<Dataset 40 images of 8×8×3, 2 labels, ")


def test_the_same_by_any_number_of_workers(tmp_path, monkeypatch):
    place = write_folder(tmp_path / "set", noise(100, 20, 30))
    one = prepare(place, size=(8,), workers=1)
    monkeypatch.setattr("underpaint.data.build.QUICK", 0.0)  # or small images stay unthreaded
    many = prepare(place, size=(8,), workers=3, force=True)
    np.testing.assert_array_equal(one.images, many.images)
    assert one.names == many.names


def test_progress_reaches_the_end_and_a_cached_set_is_not_decoded(photos):
    heard = Heard()
    with following(heard):
        first = prepare(photos)
    assert heard.said[0] == ("decoding images", 0, 40)
    assert heard.said[-1] == ("decoding images", 40, 40)
    with following(silent := Heard()):
        again = prepare(photos)
    assert silent.said == []
    assert again.report["reused"]
    assert again.key == first.key
    np.testing.assert_array_equal(again.images, first.images)
    np.testing.assert_array_equal(again.train_ids, first.train_ids)


@pytest.mark.parametrize("remembered", [False, True])
def test_changed_bytes_make_another_entry(photos, monkeypatch, remembered):
    monkeypatch.setattr(digests, "SETTLED", -(10**18) if remembered else 10**18)
    first = prepare(photos)
    time.sleep(0.02)  # longer than a tick of the file system's clock
    file = next(photos.rglob("*.png"))
    old = file.stat()
    content = bytearray(file.read_bytes())
    file.write_bytes(png(noise(1, seed=9)[0]).ljust(len(content), b"\0")[: len(content)])
    assert file.stat().st_size == old.st_size
    os.utime(file, ns=(old.st_atime_ns, old.st_mtime_ns))  # as rsync and cp -p do
    second = prepare(photos)
    assert second.key != first.key
    assert len(set(first.file_sha256) - set(second.file_sha256)) == 1


def test_names_and_options_make_another_entry(photos):
    keys = {prepare(photos).key, prepare(photos, size=(4,)).key, prepare(photos, channels=1).key}
    (photos / "cats").rename(photos / "lions")
    keys.add(prepare(photos).key)
    assert len(keys) == 4


def test_moved_data_find_their_entry(photos):
    first = prepare(photos)
    second = prepare(photos.rename(photos.with_name("elsewhere")))
    assert second.key == first.key
    assert second.report["reused"]


def test_force_decodes_again(photos):
    first = prepare(photos)
    assert prepare(photos).report["reused"]
    again = prepare(photos, force=True)
    assert not again.report["reused"]
    np.testing.assert_array_equal(again.images, first.images)


@pytest.mark.parametrize("file", ["pixels.bin", "index.safetensors"])
def test_a_damaged_entry_is_built_anew(photos, file):
    first = prepare(photos)
    expected = np.array(first.images)
    damaged = Path(first.report["cache"]) / file
    damaged.write_bytes(damaged.read_bytes()[:-20])
    again = prepare(photos)
    assert not again.report["reused"]
    np.testing.assert_array_equal(again.images, expected)
    assert ["were damaged: decoded again" in line for line in again.remarks] == [True]
    assert prepare(photos).remarks == []


SCRIPT = """
import json, os, signal, sys
from underpaint import config, data
from underpaint.progress import following
class Killer:
    def begin(self, what, total):
        return self.at
    def at(self, done, total=0, **more):
        if done >= int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
    def end(self, at):
        pass
with following(Killer()):
    d = data.prepare(config.Data(source=sys.argv[1]))
print(json.dumps([d.report["reused"], d.key, d.held_out_ids.tolist(), int(d.images.sum())]))
"""


def start(source: Path, kill_at: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(source), str(kill_at)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_killed_build_is_built_anew(photos, cache):
    process = start(photos, 32)
    assert process.wait() == -signal.SIGKILL
    assert list(cache.glob("images/.*.tmp"))
    prepared = prepare(photos)
    assert not prepared.report["reused"]
    assert len(prepared.images) == 40
    assert not list(cache.glob("images/.*.tmp"))


def test_two_processes_at_once(tmp_path, cache):
    place = write_folder(tmp_path / "set", noise(600, 32, 32))
    processes = [start(place, 10**9) for _ in range(3)]
    results = [json.loads(process.communicate()[0]) for process in processes]
    assert sum(not reused for reused, *_ in results) == 1  # one built, the others waited
    assert results[0][1:] == results[1][1:] == results[2][1:]
    assert results[0][3] == int(prepare(place).images.sum())


def test_data_that_change_while_read_are_refused(photos, cache):
    def meddle(what: str, done: float, total: float) -> None:
        if done == 16:
            write_folder(photos / "cats", noise(1, seed=3))

    with following(Heard(meddle)), pytest.raises(UserError, match="changed while it was read"):
        prepare(photos)
    assert not [f for f in cache.glob("images/*") if f.is_dir()]


def test_hashes_are_remembered_only_of_settled_files(photos, cache, monkeypatch):
    def remembered() -> int:
        arrays = index.read(next(cache.glob("files/*.safetensors"))).arrays
        return int((arrays["stamps"] >= 0).all(1).sum())

    prepare(photos)
    assert remembered() == 0  # written a moment ago
    monkeypatch.setattr(digests, "SETTLED", 0)
    prepare(photos)
    assert remembered() == 40
    monkeypatch.setattr(digests, "_hash", None)  # nothing is hashed again
    assert prepare(photos).report["reused"]


def test_only_files_that_changed_are_hashed_again(photos, monkeypatch):
    monkeypatch.setattr(digests, "SETTLED", -(10**18))
    before = prepare(photos)
    hashed, real = [], digests._hash
    monkeypatch.setattr(digests, "_hash", lambda file: hashed.append(file) or real(file))
    (gone, changed, *_) = sorted((photos / "cats").iterdir())
    gone.unlink()
    changed.write_bytes(png(noise(1, seed=9)[0]))
    (photos / "cats" / "added.png").write_bytes(png(noise(1, seed=8)[0]))
    after = prepare(photos)
    assert sorted(hashed) == [str(changed), str(photos / "cats" / "added.png")]
    assert len(after) == 40
    assert after.key != before.key


@pytest.mark.parametrize("damage", [lambda data: data[:-5], lambda data: data[:-1] + b"?", bytes])
def test_a_damaged_memory_of_hashes_is_made_anew(photos, cache, monkeypatch, damage):
    monkeypatch.setattr(digests, "SETTLED", -(10**18))
    before = prepare(photos)
    memory = next(cache.glob("files/*.safetensors"))
    whole = memory.read_bytes()
    memory.write_bytes(damage(whole) if damage is not bytes else b"")
    after = prepare(photos)
    assert ["was damaged: hashed again" in line for line in after.remarks] == [True]
    assert after.key == before.key
    assert memory.read_bytes() == whole
    assert prepare(photos).remarks == []


def test_an_index_is_a_safetensors_file(photos):
    prepared = prepare(photos)
    arrays = load_file(Path(prepared.report["cache"]) / "index.safetensors")
    np.testing.assert_array_equal(arrays["file_sha"], prepared.file_digests)
    np.testing.assert_array_equal(arrays["label"], prepared.labels)


def test_the_key_is_that_of_earlier_versions(tmp_path):
    """Runs are resumed by it: the sha256 of the options, paths and sums as a list in JSON."""
    place = write_folder(tmp_path / "set", noise(3))
    table = tmp_path / "table" / "t.csv"
    table.parent.mkdir()
    files = sorted(place.iterdir())
    table.write_text("path\n" + "".join(f"../set/{file.name}\n" for file in files))
    options = repr(tuple(preparation.decoding(config.Data(size=(8,)))))
    sums = [hashlib.sha256(file.read_bytes()).hexdigest() for file in (table, *files)]
    names = ["t.csv", *(f"../set/{file.name}" for file in files)]
    parts = [x for pair in zip(names, sums, strict=True) for x in pair]
    expected = hashlib.sha256(json.dumps(["2", options, "source", *parts]).encode()).hexdigest()
    assert prepare(table, size=(8,)).key == expected


def test_too_many_unreadable(photos):
    for name in ("cats/x.png", "cats/y.png"):
        (photos / name).write_bytes(b"rubbish")
    with pytest.raises(UserError, match=r"2 of 42 files .*'cats/x.png' is not .*--max-bad 0.048"):
        prepare(photos)
    assert len(prepare(photos, max_bad=0.048).images) == 40
    with pytest.raises(UserError, match="2 of 42"):  # although an entry is there by now
        prepare(photos)


def test_all_unreadable(tmp_path):
    write_folder(tmp_path / "set", noise(3))
    for file in (tmp_path / "set").iterdir():
        file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(UserError, match=r"none of the 3 images .*'000.png' is truncated"):
        prepare(tmp_path / "set", max_bad=1.0)


def test_cache_that_cannot_be_written(photos, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("UNDERPAINT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match=r"cannot be written .*UNDERPAINT_CACHE"):
        prepare(photos)


def test_no_space(tmp_path, cache):
    place = write_folder(tmp_path / "set", noise(60, 64, 64))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(UserError, match=r"no space left .*UNDERPAINT_CACHE"):
            prepare(place)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not [f for f in cache.glob("images/*") if f.is_dir()]
    assert len(prepare(place).images) == 60


def test_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERPAINT_CACHE", str(tmp_path / "mine"))
    assert caches.root() == tmp_path / "mine"
    monkeypatch.delenv("UNDERPAINT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert caches.root() == tmp_path / "underpaint"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert caches.root() == Path.home() / ".cache" / "underpaint"


def held_files(prepared: data.Dataset) -> set[str]:
    return {prepared.names[i] for i in prepared.held_out_ids}


def test_split_stays_when_images_are_added_and_at_other_sizes(photos):
    first = prepare(photos)
    assert len(first.held_out_ids) == 2
    trained = {first.names[i] for i in first.train_ids}
    write_folder(photos / "birds", noise(60, seed=8))
    write_folder(photos / "copies", first.batch(first.held_out_ids))
    second = prepare(photos, size=(4,))
    assert held_files(first) <= held_files(second)
    assert {"copies/000.png", "copies/001.png"} <= held_files(second)
    assert not trained & held_files(second)
    assert 5 <= len(second.held_out_ids) <= 10
    assert not set(second.held_out_ids) & set(second.train_ids)


def test_held_out_by_wish(photos):
    assert len(prepare(photos, held_out="none").train_ids) == 40
    seven = prepare(photos, held_out="7")
    assert (len(seven.held_out_ids), len(seven.train_ids)) == (7, 33)
    with pytest.raises(UserError, match="40 images; hold out fewer"):
        prepare(photos, held_out="40")
    with pytest.raises(UserError, match="held-out 'non': give auto, none, a number"):
        prepare(photos, held_out="non")


def test_held_out_of_their_own(photos, tmp_path):
    others = write_folder(tmp_path / "others", noise(6, seed=4), ["cats", "dogs"] * 3)
    twin = next((photos / "cats").iterdir())
    (others / "cats" / "twin.png").write_bytes(twin.read_bytes())
    prepared = prepare(photos, held_out=str(others))
    assert len(prepared.images) == 47
    assert len(prepared.held_out_ids) == 7
    assert len(prepared.train_ids) == 39  # the twin is not trained on
    assert prepared.report["set_aside"] == 1
    assert [prepared.label_names[i] for i in prepared.labels[prepared.held_out_ids]] == [
        prepared.names[i].split("/")[0] for i in prepared.held_out_ids
    ]
    (others / "cats").rename(others / "birds")
    with pytest.raises(UserError, match=r"label 'birds', which .* cats, dogs"):
        prepare(photos, held_out=str(others))
    with pytest.raises(UserError, match="all its images are held out too"):
        prepare(photos, held_out=str(photos))


def test_only_those_that_are_listed(photos, tmp_path):
    """Whatever side they were on; the split itself is not touched."""
    usual = prepare(photos)
    wanted = [*usual.held_out_ids[:1], *usual.train_ids[:7]]
    listed = tmp_path / "listed.txt"
    listed.write_text("\n".join(usual.file_sha256[i] for i in wanted) + "\n")
    some = prepare(photos, only=str(listed))
    assert some.train_ids.tolist() == sorted(wanted)
    assert len(some.held_out_ids) == 0
    assert some.key == usual.key  # decoded once
    assert prepare(photos).held_out_ids.tolist() == usual.held_out_ids.tolist()
    listed.write_text(f"{usual.file_sha256[0]}\n{'00' * 32}\n")
    with pytest.raises(UserError, match="1 of its 2 images are not in the data"):
        prepare(photos, only=str(listed))
    for wrong in ("no sums", tmp_path / "nowhere.txt"):
        if isinstance(wrong, str):
            listed.write_text(wrong)
        with pytest.raises(UserError, match="expected a file of sha256 sums"):
            prepare(photos, only=str(listed if isinstance(wrong, str) else wrong))


def test_small_sets(tmp_path):
    five = prepare(write_folder(tmp_path / "five", noise(5)))
    assert (len(five.train_ids), len(five.held_out_ids)) == (5, 0)
    twenty = prepare(write_folder(tmp_path / "twenty", noise(20)))
    assert (len(twenty.train_ids), len(twenty.held_out_ids)) == (19, 1)


def test_limit_takes_the_same_few_at_every_size(photos):
    whole, few = prepare(photos), prepare(photos, limit=10)
    assert len(few.train_ids) == 10
    assert set(few.train_ids) <= set(whole.train_ids)
    np.testing.assert_array_equal(few.held_out_ids, whole.held_out_ids)
    np.testing.assert_array_equal(few.train_ids, prepare(photos, limit=10, size=(4,)).train_ids)
    more = prepare(photos, limit=11)
    assert set(few.train_ids) < set(more.train_ids)
    assert len(prepare(photos, limit=10**6).train_ids) == len(whole.train_ids)


def test_batch(photos):
    prepared = prepare(photos)
    ids = np.array([5, 0, 39, 5])
    batch = prepared.batch(ids)
    np.testing.assert_array_equal(batch, np.stack([prepared.images[i] for i in ids]))
    batch[:] = 0  # its own memory
    assert prepared.images[5].any()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"channels": 2}, "data.channels: '2' is not one of 1, 3, rgba"),
        ({"size": (0,)}, "size '0': give one positive"),
        ({"background": "whit"}, "background 'whit' is not a colour"),
        ({"max_bad": 2.0}, "data.max_bad 2: give a share"),
        ({"limit": -1}, "data.limit -1: give a number"),
    ],
)
def test_wrong_settings(photos, settings, says):
    with pytest.raises(UserError, match=says):
        prepare(photos, **settings)


def swapped_labels(folder):
    path = folder / "index.safetensors"
    arrays = index.read(path).arrays
    content = bytearray(path.read_bytes())
    label = content.rindex(arrays["label"].tobytes())
    content[label : label + arrays["label"].nbytes] = arrays["label"][::-1].tobytes()
    path.write_bytes(content)


def renamed(folder):
    path = folder / "index.safetensors"
    path.write_bytes(path.read_bytes().replace(b'\\"0\\"', b'\\"9\\"', 1))


def turned_shape(folder):
    path = folder / "index.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"shape": [60, 32]', b'"shape": [32, 60]', 1))


def cut_pixels(folder):
    with (folder / "pixels.bin").open("r+b") as file:
        file.truncate(100)


def all_pixels(folder):
    path = folder / "pixels.bin"
    path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))


def last_pixel(folder):
    path = folder / "pixels.bin"
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))


@pytest.mark.parametrize(
    "damage", [swapped_labels, renamed, turned_shape, cut_pixels, all_pixels, last_pixel]
)
def test_a_cache_that_was_changed_is_made_anew(tmp_path, monkeypatch, damage):
    place = write_folder(tmp_path / "set", noise(60), [str(i % 3) for i in range(60)])
    before = data.prepare(config.Data(source=str(place)))
    expected, labels = np.array(before.images), before.labels.tolist()
    damage(Path(before.report["cache"]))
    after = data.prepare(config.Data(source=str(place)), verify=damage is last_pixel)
    assert not after.report["reused"]
    np.testing.assert_array_equal(after.images, expected)
    assert after.labels.tolist() == labels
    assert (after.label_names, after.names) == (before.label_names, before.names)
    assert data.prepare(config.Data(source=str(place)), verify=True).report["reused"]
