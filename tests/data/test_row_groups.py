"""Images that are streamed from parquet files are those that are decoded into the cache."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.data.pictures import noise, png
from tests.data.shards import check_workers, write_shards, write_tables
from tests.data.test_shards import LABELS, prepare, somewhere
from underpaint import data
from underpaint.data import Order, remote, row_groups, streamed
from underpaint.data.readers import tables
from underpaint.errors import RunFailed, UserError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "WAIT", 0.001)


@pytest.fixture
def sixty(tmp_path: Path) -> Path:
    """60 images in 3 files of 7 row groups, labelled by a class whose names have an order."""
    names = ["dogs", "cats", "mice"]
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    files = [{"bytes": png(pixels), "path": None} for pixels in noise(60)]
    columns = {"image": files, "label": [names.index(label) for label in LABELS]}
    rows = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
    for k in range(3):
        part = rows.select(range(20 * k, 20 * k + 20))
        part.to_parquet(tmp_path / "set" / f"train-{k}.parquet", batch_size=3)
    assert pq.ParquetFile(tmp_path / "set" / "train-0.parquet").num_row_groups == 7
    return tmp_path / "set"


@pytest.mark.parametrize("kind", ["local", "file", "memory", "http"])
def test_the_same_as_decoded(kind: str, sixty: Path) -> None:
    """Pixels, labels in the order of the classes, identities and what is held out."""
    plain = prepare(sixty, size=(6, 4), channels=1)
    with somewhere(kind, sixty) as place:
        found = prepare(f"{place}/train-{{0..2}}.parquet", size=(6, 4), channels=1)
        pixels = found.batch(np.arange(60))
        np.testing.assert_array_equal(found.images[[59, 3, 20]], pixels[[59, 3, 20]])
    assert isinstance(found.images, data.Streamed)
    np.testing.assert_array_equal(pixels, plain.images)
    np.testing.assert_array_equal(found.labels, plain.labels)
    assert found.label_names == plain.label_names == ("dogs", "cats", "mice")
    assert found.file_sha256 == plain.file_sha256
    np.testing.assert_array_equal(found.held_out_ids, plain.held_out_ids)
    assert (found.names[0], found.names[59]) == ("train-0.parquet/0", "train-2.parquet/19")


def test_a_column_of_bytes_and_no_label(tmp_path: Path) -> None:
    table = pa.table({"picture": [png(pixels) for pixels in noise(9)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=4)
    found = prepare(tmp_path / "*.parquet")
    np.testing.assert_array_equal(found.batch(np.arange(9))[::-1], noise(9)[::-1])
    assert found.label_names == ()


def test_row_groups_are_what_windows_are_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a window few are held, and those are read once; a list may have tars, too."""
    write_tables(tmp_path / "set", noise(60), 20, group=5)
    write_shards(tmp_path / "set", noise(14, seed=1), 7)
    (tmp_path / "list.txt").write_text("set/*.parquet\nset/*.tar\n")
    images = prepare(f"@{tmp_path / 'list.txt'}", held_out="none").images
    assert isinstance(images, data.Streamed)
    assert np.bincount(images.together).tolist() == [5] * 12 + [7] * 2
    ids = np.arange(60)
    order = Order(ids, 0, images.together[ids], window=10)
    read: list[int] = []
    groups = row_groups.RowGroups._read
    monkeypatch.setattr(
        row_groups.RowGroups,
        "_read",
        lambda self, place, column, group: read.append(group) or groups(self, place, column, group),
    )
    monkeypatch.setattr(row_groups, "HELD", 4 * 5 * int(images.row_bytes))
    for place in range(0, 60, 4):
        images[order.at(place, 4)]
    assert len(read) == 12  # of 60 images
    monkeypatch.setattr(streamed, "HELD", 100 * images.row_bytes)
    assert [images.window(asked) for asked in (0, 20, 16_384)] == [0, 20, 50]


def test_what_cannot_be_is_one_line(sixty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every = str(sixty / "train-*.parquet")
    whole = (sixty / "train-1.parquet").read_bytes()
    (sixty / "train-1.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"train-1.parquet' cannot be read as a table \(") as error:
        prepare(every)
    assert "\n" not in str(error.value)
    (sixty / "train-1.parquet").write_bytes(whole)
    with monkeypatch.context() as patch:
        patch.setattr(tables, "HELD", 100)
        with pytest.raises(UserError, match=r"train-1.parquet' has row groups of up to .* \(row_g"):
            prepare(every)
    beside = pa.table({"image": [{"bytes": None, "path": "a.png"}] * 2})
    pq.write_table(beside, sixty / "beside.parquet")
    with pytest.raises(UserError, match=r"'0/a.png' cannot be read \(a file beside the table"):
        prepare(sixty / "besid*.parquet")
    text = pa.table({"text": ["a", "b"]})
    pq.write_table(text, sixty / "text.parquet")
    with pytest.raises(UserError, match="has the columns text; expected one with images"):
        prepare(sixty / "tex*.parquet")


def test_what_is_not_as_it_was_is_named(sixty: Path, tmp_path: Path) -> None:
    places = [sixty / f"train-{k}.parquet" for k in range(3)]
    images = prepare(sixty / "train-*.parquet").images
    assert isinstance(images, data.Streamed)
    write_tables(tmp_path / "other", noise(20, seed=3), 20)
    shutil.copy(tmp_path / "other" / "set-0000.parquet", places[1])
    images[[0, 59]]
    with pytest.raises(RunFailed, match=r"train-1.parquet': '4' is not what it was"):
        images[24]
    places[0].write_bytes(places[0].read_bytes()[:-300])
    places[2].unlink()
    images[0]  # which is held
    images = dataclasses.replace(images)  # which holds nothing
    with pytest.raises(RunFailed, match=r"train-2.parquet': '1' cannot be read \(No such file"):
        images[41]
    with pytest.raises(
        RunFailed, match=r"train-0.parquet': '0' cannot be read \(its table"
    ) as error:
        images[0]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["local", "http"])
def test_workers_read_what_this_process_would(kind: str, sixty: Path) -> None:
    with somewhere(kind, sixty) as place:
        found = prepare(f"{place}/train-{{0..2}}.parquet")
        assert isinstance(found.images, data.Streamed)
        check_workers(found, found.images.together, (0, 8, 16, 120, 8))
