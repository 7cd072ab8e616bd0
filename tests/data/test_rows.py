"""Rows of an array in a file are read and leave no memory behind; digests are ordered by heads."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from underpaint import config, data
from underpaint.data import digests
from underpaint.data.cache import Rows, give_back

SHAPE = (300, 16, 16, 3)


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    path = tmp_path / "pixels.bin"
    np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8).tofile(path)
    return Rows(path, np.uint8, SHAPE)


def resident(path: Path) -> int:
    """KiB of the file that are mapped into this process's memory now."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    found = 0
    for line in lines:
        if line.endswith(str(path)):
            found += int(next(text for text in lines if text.startswith("Rss:")).split()[1])
    return found


def test_rows_are_those_of_the_array(rows: Rows) -> None:
    ids = [7, 299, 7, 0]
    assert np.array_equal(rows.take(ids), rows.array[ids])
    assert rows.take([]).shape == (0, *SHAPE[1:])
    again = pickle.loads(pickle.dumps(rows))
    assert np.array_equal(again.take(ids), rows.take(ids))


def test_they_are_there_when_the_entry_is_built_anew(rows: Rows, tmp_path: Path) -> None:
    expected = rows.array[5].copy()
    (tmp_path / "pixels.bin").unlink()
    assert np.array_equal(rows.take([5])[0], expected)


def test_a_file_that_was_cut_is_an_error(rows: Rows, tmp_path: Path) -> None:
    with (tmp_path / "pixels.bin").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(OSError, match="has been cut"):
        rows.take([299])
    with pytest.raises(ValueError, match="has not 230,400 bytes"):
        Rows(tmp_path / "pixels.bin", np.uint8, SHAPE)


def test_what_is_read_stays_in_no_memory(rows: Rows, tmp_path: Path) -> None:
    path = tmp_path / "pixels.bin"
    rows.take(range(300))
    assert resident(path) == 0
    rows.array.max()
    assert resident(path) > 100
    give_back(rows.array[3:5])
    assert resident(path) == 0
    give_back(np.ones(3))  # of no file
    written = np.memmap(path, np.uint8, "c")  # whose pages are this process's alone
    written[:] = 7
    give_back(np.asarray(written))
    assert written.min() == 7


def test_a_data_set_reads_its_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERPAINT_CACHE", str(tmp_path / "cache"))
    pixels = np.random.default_rng(1).integers(0, 256, SHAPE, dtype=np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    dataset = data.prepare(config.Data(source=str(tmp_path / "images.npy")))
    ids = np.arange(299, -1, -7)
    give_back(dataset.images)
    assert np.array_equal(dataset.batch(ids), pixels[ids])
    assert resident(Path(dataset.report["cache"], "pixels.bin")) == 0


@pytest.mark.parametrize("heads", [256, 2])
def test_digests_are_ordered_and_counted_as_numpy_does(heads: int) -> None:
    """Also where the first bytes of different ones are equal, which no sha256 is known to do."""
    rng = np.random.default_rng(heads)
    sums = rng.integers(0, heads, (400, 32), dtype=np.uint8)
    sums[:, 8:] = rng.integers(0, 256, (400, 24))
    if heads == 2:
        sums[:, 2:8] = 0
    sums[200:260] = sums[100:160]
    keys = digests.keys(sums)
    assert np.array_equal(digests.order(sums), np.argsort(keys, kind="stable"))
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    found = digests.distinct(sums)
    assert np.array_equal(found[0], first)
    assert np.array_equal(found[1], group)
    assert [len(part) for part in digests.distinct(sums[:0])] == [0, 0]
