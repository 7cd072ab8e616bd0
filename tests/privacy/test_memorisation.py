"""Copies are counted, chance is not, and duplicates in the data hide nothing."""

import numpy as np
import pytest

from underpaint.data import Dataset
from underpaint.privacy import memorisation

RNG = np.random.default_rng(0)
TRAIN = RNG.integers(0, 256, (80, 6, 6, 1), dtype=np.uint8)
HELD_OUT = RNG.integers(0, 256, (40, 6, 6, 1), dtype=np.uint8)
IDS = np.arange(80)


def copies(count: int, of: int) -> np.ndarray:
    """`count` training images with a grey level of noise, then images of their own."""
    near = np.clip(TRAIN[:count].astype(int) + RNG.integers(-3, 4, (count, 6, 6, 1)), 0, 255)
    own = RNG.integers(0, 256, (of - count, 6, 6, 1), dtype=np.uint8)
    return np.concatenate([near.astype(np.uint8), own])


def test_copies_are_counted_with_an_interval() -> None:
    found = memorisation.search(copies(12, 60), HELD_OUT, TRAIN, IDS).result
    for name in ("second", "next"):
        own = found["ratios"][name]
        assert own["third"]["count"] == 12
        assert 12 <= own["quantile"]["count"] <= 14  # the smallest of 40: chance goes below it, too
        assert own["third"]["low"] < 0.2 < own["third"]["high"]
        assert own["third"]["p_value"] < 0.01
        assert own["quantile"]["beyond_chance"]


def test_an_honest_model_has_none() -> None:
    found = memorisation.search(copies(0, 60), HELD_OUT, TRAIN, IDS).result
    for own in found["ratios"].values():
        assert own["third"]["count"] == 0
        assert own["third"]["p_value"] == 1
        assert not own["quantile"]["beyond_chance"]
        assert own["quantile"]["by_chance"] == pytest.approx(1 - 0.025 ** (1 / 40))


def test_the_worst_pairs_come_first() -> None:
    samples = copies(3, 20)
    samples[1] = TRAIN[1]
    found = memorisation.search(samples, HELD_OUT, TRAIN, IDS)
    assert found.result["exact"] == 1
    assert found.worst.which[0] == found.worst.ids[0] == 1
    assert set(found.worst.which[:3]) == {0, 1, 2}
    assert found.worst.ratios.tolist() == sorted(found.worst.ratios)
    gap = (samples[found.worst.which[1]].astype(float) - TRAIN[found.worst.ids[1]]) ** 2
    assert found.worst.distances[1] == pytest.approx(np.sqrt(gap.mean()))


def test_without_held_out_images_the_fixed_threshold_is_left() -> None:
    own = memorisation.search(copies(12, 60), None, TRAIN, IDS).result["ratios"]["second"]
    assert own["third"]["count"] == 12
    assert own["quantile"] is None


def test_duplicates_are_removed_and_near_ones_shown() -> None:
    images = np.concatenate([TRAIN, TRAIN[:1], copies(2, 2)[1:]])  # 80 equals 0, 81 is near 1
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
    ids = memorisation.distinct(dataset, dataset.train_ids)
    assert len(ids) == 81
    # with its twin in the search, a near copy of image 0 has ratio 1 and hides
    near = TRAIN[:1] ^ np.uint8(1)
    hidden = memorisation.search(near, None, images, dataset.train_ids).result["ratios"]["second"]
    shown = memorisation.search(near, None, images, ids).result["ratios"]["second"]
    assert [hidden["third"]["count"], shown["third"]["count"]] == [0, 1]
    pairs = memorisation.near_duplicates(images, ids)
    assert len(pairs.ids) == 1
    assert {int(pairs.which[0]), int(pairs.ids[0])} == {1, 81}
