"""Copies are counted, chance is not, and duplicates in the data hide nothing."""

import numpy as np
import pytest

from underpaint import config
from underpaint.core import spaces
from underpaint.core.masks import MaskSpec
from underpaint.data import Dataset
from underpaint.privacy import copies
from underpaint.privacy.membership import Subset
from underpaint.training.training_set import ImageSet

RNG = np.random.default_rng(0)
TRAIN = RNG.integers(0, 256, (80, 6, 6, 1), dtype=np.uint8)
HELD_OUT = RNG.integers(0, 256, (40, 6, 6, 1), dtype=np.uint8)
IDS = np.arange(80)


def noisy_copies(count: int, of: int) -> np.ndarray:
    """`count` training images with a grey level of noise, then images of their own."""
    near = np.clip(TRAIN[:count].astype(int) + RNG.integers(-3, 4, (count, 6, 6, 1)), 0, 255)
    own = RNG.integers(0, 256, (of - count, 6, 6, 1), dtype=np.uint8)
    return np.concatenate([near.astype(np.uint8), own])


def test_copies_are_counted_with_an_interval() -> None:
    found = copies.search(noisy_copies(12, 60), HELD_OUT, TRAIN, IDS).result
    for name in ("second", "next"):
        own = found["ratios"][name]
        assert own["third"]["count"] == 12
        assert 12 <= own["quantile"]["count"] <= 14  # the smallest of 40: chance goes below it, too
        assert own["third"]["low"] < 0.2 < own["third"]["high"]
        assert own["third"]["p_value"] < 0.01
        assert own["quantile"]["p_value"] < 0.01


def test_an_honest_model_has_none() -> None:
    found = copies.search(noisy_copies(0, 60), HELD_OUT, TRAIN, IDS).result
    for own in found["ratios"].values():
        assert own["third"]["count"] == 0
        assert own["third"]["p_value"] == 1
        assert own["quantile"]["p_value"] > 0.05


def test_chance_below_a_threshold_of_the_held_out_images_is_exact() -> None:
    """By drawing: how many of 60 lie below the least (or second least) of 40 like them."""
    rng = np.random.default_rng(7)
    both = rng.permuted(np.tile(np.arange(100), (20_000, 1)), axis=1)
    for rank in (0, 1):
        below = (both[:, :60] < np.sort(both[:, 60:], 1)[:, rank, None]).sum(1)
        for count in (0, 1, 3, 8):
            drawn = (below >= count).mean()
            assert copies._below(count, 60, rank, 40) == pytest.approx(drawn, abs=0.015)


def test_a_repainted_copy_is_found_in_the_space_that_does_not_see_it() -> None:
    """Features that know shapes and no colours: float32 [n, D] take the place of the pixels."""
    inverted = 255 - noisy_copies(12, 60)

    def features(images: np.ndarray) -> np.ndarray:
        return np.abs(images.reshape(len(images), -1).astype(np.float32) - 127.5)

    pixels = copies.search(inverted, HELD_OUT, TRAIN, IDS).result["ratios"]["second"]
    found = copies.search(features(inverted), features(HELD_OUT), features(TRAIN), IDS).result[
        "ratios"
    ]["second"]
    assert [pixels["third"]["count"], found["third"]["count"]] == [0, 12]


def test_the_worst_pairs_come_first() -> None:
    samples = noisy_copies(3, 20)
    samples[1] = TRAIN[1]
    found = copies.search(samples, HELD_OUT, TRAIN, IDS)
    assert found.result["exact"] == 1
    assert found.worst.which[0] == found.worst.ids[0] == 1
    assert set(found.worst.which[:3]) == {0, 1, 2}
    assert found.worst.ratios.tolist() == sorted(found.worst.ratios)
    gap = (samples[found.worst.which[1]].astype(float) - TRAIN[found.worst.ids[1]]) ** 2
    assert found.worst.distances[1] == pytest.approx(np.sqrt(gap.mean()))


def test_without_held_out_images_the_fixed_threshold_is_left() -> None:
    own = copies.search(noisy_copies(12, 60), None, TRAIN, IDS).result["ratios"]["second"]
    assert own["third"]["count"] == 12
    assert own["quantile"] is None


def test_duplicates_are_removed_and_near_ones_shown() -> None:
    images = np.concatenate([TRAIN, TRAIN[:1], noisy_copies(2, 2)[1:]])  # 80 equals 0, 81 is near 1
    sha = np.stack([np.frombuffer(i.tobytes()[:32], np.uint8) for i in images])
    dataset = Dataset(
        images=images,
        labels=np.full(82, -1),
        label_names=(),
        names=[str(i) for i in range(82)],
        train_ids=np.arange(82),
        held_out_ids=np.empty(0, np.int64),
        key="",
        report={},
        file_digests=sha,
        pixel_digests=sha,
    )
    space = spaces.build("pixels", (6, 6), 1, patch=1)
    whole = ImageSet(dataset, config.Stage(), space, MaskSpec())
    ids = Subset(whole, dataset.train_ids, config.Data()).different().ids
    assert len(ids) == 81
    # with its twin in the search, a near copy of image 0 has ratio 1 and hides
    near = TRAIN[:1] ^ np.uint8(1)
    hidden = copies.search(near, None, images, dataset.train_ids).result["ratios"]["second"]
    shown = copies.search(near, None, images, ids).result["ratios"]["second"]
    assert [hidden["third"]["count"], shown["third"]["count"]] == [0, 1]
    pairs = copies.near_duplicates(images, ids)
    assert len(pairs.ids) == 1
    assert {int(pairs.which[0]), int(pairs.ids[0])} == {1, 81}
