"""split: duplicates on one side, never more than a tenth, and nothing ever changes sides."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from underpaint.data.split import (
    ASIDE,
    HELD_OUT,
    TRAIN,
    assign,
    extended,
    read_record,
    write_record,
)
from underpaint.errors import UserError

# A data set is a list of (file, picture): several files may show the same picture.
pictures = st.integers(0, 120)
files = st.dictionaries(st.integers(0, 500), pictures, min_size=1, max_size=150)


def sha(numbers: list[int], salt: str) -> np.ndarray:
    digests = [hashlib.sha256(f"{salt}{i}".encode()).digest() for i in numbers]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)


def hashes(data: dict[int, int]) -> tuple[np.ndarray, np.ndarray]:
    return sha(list(data), "file"), sha(list(data.values()), "picture")


def sides_of(data: dict[int, int], side: np.ndarray, wanted: int) -> set[int]:
    return {f for f, s in zip(data, side, strict=True) if s == wanted}


@given(files)
def test_a_first_split(data):
    side = assign(*hashes(data))
    held = sides_of(data, side, HELD_OUT)
    trained = sides_of(data, side, TRAIN)
    assert held | trained == set(data)
    assert len(held) <= 0.1 * len(data)
    assert not {data[f] for f in held} & {data[f] for f in trained}
    if len(data) < 20:
        assert not held


@pytest.mark.parametrize(("n", "expected"), [(2, 0), (19, 0), (20, 1), (100, 5), (1000, 50)])
def test_five_percent_of_distinct_images(n, expected):
    assert (assign(*hashes({i: i for i in range(n)})) == HELD_OUT).sum() == expected


@given(files, st.lists(files, max_size=3), st.data())
def test_nobody_changes_sides(first, later, draw):
    """Files are added and removed, and another size shows other pictures as equal."""
    record, trained_once, held_once = None, set(), set()
    data = dict(first)
    for more in [{}, *later]:
        data |= {f: p for f, p in more.items() if f not in data}
        for gone in draw.draw(st.lists(st.sampled_from(sorted(data)), max_size=5)):
            if len(data) > 1:
                data.pop(gone, None)
        blur = draw.draw(st.sampled_from([1, 3]))
        seen = {f: p // blur for f, p in data.items()}
        file_sha, pixel_sha = hashes(seen)
        side = assign(file_sha, pixel_sha, record)
        record = extended(record, file_sha, side)
        held, trained = sides_of(seen, side, HELD_OUT), sides_of(seen, side, TRAIN)
        assert not held & trained_once
        assert not trained & held_once
        assert trained_once & set(seen) <= trained
        assert len(held) <= 0.1 * len(seen)
        assert not {seen[f] for f in held} & {seen[f] for f in trained}
        trained_once |= trained
        held_once |= held
        again = assign(file_sha, pixel_sha, record)
        np.testing.assert_array_equal(again, side)


def test_a_group_that_grew_too_large_pushes_no_other_out():
    """Two equal images were held out of 20; with a third they are too many, and another is taken.

    The next time the three leave the one that fits where it is, whatever their hashes.
    """
    for shift in range(30):  # hashes in many orders
        data = {shift + f: shift for f in range(18)} | {shift + 20: -1, shift + 27: -1}
        side = assign(*hashes(data))
        record = extended(None, hashes(data)[0], side)
        data |= {shift + 30: -1, shift + 31: -2}
        file_sha, pixel_sha = hashes(data)
        side = assign(file_sha, pixel_sha, record)
        assert (side == HELD_OUT).sum() <= 2
        record = extended(record, file_sha, side)
        np.testing.assert_array_equal(assign(file_sha, pixel_sha, record), side)


def test_added_images_are_split_too():
    old = {i: i for i in range(200)}
    file_sha, pixel_sha = hashes(old)
    record = extended(None, file_sha, assign(file_sha, pixel_sha))
    new = {i: i for i in range(400)}
    side = assign(*hashes(new), record)
    assert (side[:200] == HELD_OUT).sum() == 10
    assert (side[200:] == HELD_OUT).sum() == 10


def test_a_copy_of_a_held_out_image_is_held_out():
    data = {i: i for i in range(100)}
    file_sha, pixel_sha = hashes(data)
    side = assign(file_sha, pixel_sha)
    record = extended(None, file_sha, side)
    held = int(np.flatnonzero(side == HELD_OUT)[0])
    side = assign(*hashes(data | {777: held}), record)
    assert side[-1] == HELD_OUT


@given(files, st.integers(0, 30))
def test_a_number_is_met_where_groups_allow(data, wanted):
    side = assign(*hashes(data), wanted=wanted)
    held = (side == HELD_OUT).sum()
    assert held <= wanted
    if len(set(data.values())) == len(data):
        assert held == min(wanted, len(data))
    assert not (side == ASIDE).any()


def test_record_survives_the_disk(tmp_path):
    file_sha, pixel_sha = hashes({i: i for i in range(50)})
    record = extended(None, file_sha, assign(file_sha, pixel_sha))
    write_record(tmp_path / "split.npz", record)
    again = read_record(tmp_path / "split.npz")
    np.testing.assert_array_equal(again.sha, record.sha)
    np.testing.assert_array_equal(again.side, record.side)


def test_a_record_in_any_order_is_read(tmp_path):
    """As the first versions wrote them."""
    file_sha, pixel_sha = hashes({i: i for i in range(50)})
    side = assign(file_sha, pixel_sha)
    with (tmp_path / "split.npz").open("wb") as file:
        np.savez(file, sha=file_sha, side=side)
    np.testing.assert_array_equal(read_record(tmp_path / "split.npz").sides(file_sha), side)
    other = hashes({99: 0})[0]
    assert read_record(tmp_path / "split.npz").sides(other).tolist() == [-1]


def test_a_damaged_record_is_never_drawn_anew_silently(tmp_path):
    (tmp_path / "split.npz").write_bytes(b"PK\x03\x04 rubbish")
    with pytest.raises(UserError, match="delete it to draw anew"):
        read_record(tmp_path / "split.npz")
