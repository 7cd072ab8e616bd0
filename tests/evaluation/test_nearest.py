"""The search is exact: the same neighbours as comparing everything with everything."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from underpaint.evaluation.nearest import nearest


def brute(samples: np.ndarray, images: np.ndarray, ids: np.ndarray, k: int):
    a = samples.reshape(len(samples), 1, -1).astype(np.int64)
    b = images[ids].reshape(1, len(ids), -1).astype(np.int64)
    squares = ((a - b) ** 2).sum(-1)
    order = np.argsort(squares, axis=1, kind="stable")[:, :k]
    return np.sqrt(np.take_along_axis(squares, order, 1)), ids[order]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 7),
    m=st.integers(1, 40),
    levels=st.sampled_from([2, 256]),  # two levels: many ties
    k=st.integers(1, 5),
    memory=st.integers(1, 4000),  # down to blocks of a single image
)
def test_equals_brute_force_whatever_the_blocks(seed, n, m, levels, k, memory):
    rng = np.random.default_rng(seed)
    samples = rng.integers(0, levels, (n, 4, 3, 3), dtype=np.uint8)
    images = rng.integers(0, levels, (m, 4, 3, 3), dtype=np.uint8)
    ids = rng.permutation(m)[: rng.integers(1, m + 1)]
    k = min(k, len(ids))

    distances, found = nearest(samples, images, ids, k, memory=memory)

    expected, expected_ids = brute(samples, images, ids, k)
    np.testing.assert_array_equal(found, expected_ids)
    np.testing.assert_array_equal(distances, expected)


def test_reads_a_memory_map_and_searches_the_given_ids_only(tmp_path):
    rng = np.random.default_rng(0)
    images = np.memmap(tmp_path / "images.bin", np.uint8, "w+", shape=(30, 8, 8, 1))
    images[:] = rng.integers(0, 256, images.shape)
    distances, found = nearest(np.array(images[[3, 20]]), images, np.arange(10), k=2)
    assert (distances[0, 0], found[0, 0]) == (0.0, 3)  # a copy, exactly
    assert found[1].max() < 10  # 20 is not among the ids
    assert distances[1, 0] > 0


def test_a_bright_image_that_differs_by_one_level_is_no_copy():
    # in float32 ‖a‖² + ‖b‖² − 2ab loses this difference: 255² · 64² · 3 needs 30 bits
    images = np.full((2, 64, 64, 3), 255, np.uint8)
    images[0, 0, 0, 0] = 254
    distances, found = nearest(images[1:], images, np.arange(2), k=2)
    assert found.tolist() == [[1, 0]]
    assert distances.tolist() == [[0.0, 1.0]]


def test_features_are_searched_as_pixels_are():
    rng = np.random.default_rng(0)
    features = rng.normal(50, 1, (40, 12)).astype(np.float32)
    distances, found = nearest(features[:5], features, np.arange(40), k=3, memory=1000)
    gaps = np.square(features[:5, None].astype(float) - features[None]).sum(-1)
    np.testing.assert_array_equal(found, np.argsort(gaps, 1)[:, :3])
    np.testing.assert_allclose(distances, np.sqrt(np.sort(gaps, 1)[:, :3]), atol=1e-4)


def test_refuses_other_shapes_and_too_many_neighbours():
    images = np.zeros((3, 4, 4, 1), np.uint8)
    with pytest.raises(ValueError, match="samples are"):
        nearest(np.zeros((1, 4, 4, 3), np.uint8), images, np.arange(3), 1)
    with pytest.raises(ValueError, match="4 nearest of 3"):
        nearest(images, images, np.arange(3), 4)
