"""Order: a pure function of (seed, position); augment: each image by itself."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.pictures import noise
from underpaint.data import Order, augment

sizes = st.integers(1, 60)
seeds = st.integers(-(2**70), 2**70)


@given(sizes, seeds, st.integers(0, 5))
def test_every_image_once_an_epoch(n, seed, epoch):
    ids = np.arange(n) * 7 + 3
    assert sorted(Order(ids, seed).at(epoch * n, n)) == ids.tolist()


@given(sizes, seeds, st.integers(0, 200), st.integers(0, 150), st.integers(0, 150))
def test_any_division_gives_the_same_sequence(n, seed, p, a, b):
    order, fresh = Order(np.arange(n), seed), Order(np.arange(n), seed)
    second = order.at(p + a, b)  # asked out of order, as ranks do
    np.testing.assert_array_equal(np.concatenate([order.at(p, a), second]), fresh.at(p, a + b))


def test_epochs_and_seeds_differ():
    order = Order(np.arange(1000), 0)
    first, second = order.at(0, 1000), order.at(1000, 1000)
    other = Order(np.arange(1000), 1).at(0, 1000)
    assert (first == second).mean() < 0.02
    assert (first == other).mean() < 0.02
    assert (first == np.arange(1000)).mean() < 0.02


def test_the_sequence_never_changes():
    """A resumed run must see what it would have seen; numpy promises this stream."""
    seeds = np.random.SeedSequence([5, 2])
    expected = np.argsort(np.random.PCG64(seeds).random_raw(10), kind="stable")
    np.testing.assert_array_equal(Order(np.arange(10), 5).at(20, 10), expected)


def test_no_ids():
    with pytest.raises(ValueError, match="at least one"):
        Order(np.empty(0, np.int64), 0)


def test_augment_off_changes_nothing():
    images = noise(4)
    np.testing.assert_array_equal(augment(images, np.random.default_rng(0), False, 0), images)


def test_flip_mirrors_about_half():
    images = noise(400)
    out = augment(images, np.random.default_rng(0), True, 0)
    same = (out == images).all(axis=(1, 2, 3))
    mirrored = (out == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (same | mirrored).all()
    assert 150 < mirrored.sum() < 250


def test_shift_moves_by_at_most_so_much_and_repeats_edges():
    images = noise(200, 6, 9)
    out = augment(images, np.random.default_rng(0), False, 2)
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    moves = set()
    for before, after in zip(padded, out, strict=True):
        fits = [
            (y, x)
            for y in range(5)
            for x in range(5)
            if (before[y : y + 6, x : x + 9] == after).all()
        ]
        assert len(fits) == 1
        moves.update(fits)
    assert len(moves) == 25  # all of them occur


@given(st.integers(1, 8), st.integers(0, 2**32), st.booleans(), st.integers(0, 3))
def test_an_image_does_not_depend_on_those_after_it(n, seed, flip, shift):
    images = noise(8)
    whole = augment(images, np.random.default_rng(seed), flip, shift)
    part = augment(images[:n], np.random.default_rng(seed), flip, shift)
    np.testing.assert_array_equal(part, whole[:n])
