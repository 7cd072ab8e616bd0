import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from underpaint import config
from underpaint.core import spaces
from underpaint.errors import UserError


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.integers(1, 6), st.integers(1, 4)
)
def test_images_come_back_exactly(B, h, w, p, C):
    space = spaces.Pixels((h * p, w * p), C, p)
    images = torch.randn(B, C, h * p, w * p)
    patches = space.encode(images)
    assert space.grid == (h, w)
    assert patches.shape == (B, h * w, space.patch_dim) == (B, h * w, C * p * p)
    assert torch.equal(space.decode(patches), images)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.data())
def test_a_patch_is_a_square_of_the_image(h, w, p, C, data):
    i, j = data.draw(st.integers(0, h - 1)), data.draw(st.integers(0, w - 1))
    images = torch.randn(2, C, h * p, w * p)
    patch = spaces.Pixels((h * p, w * p), C, p).encode(images)[:, i * w + j]
    square = images[:, :, i * p : (i + 1) * p, j * p : (j + 1) * p]
    assert torch.equal(patch, square.flatten(1))


def test_every_level_of_uint8_comes_back():
    levels = np.arange(256, dtype=np.uint8).reshape(2, 8, 8, 2)
    images = spaces.from_uint8(levels)
    assert images.shape == (2, 2, 8, 8)
    assert images.dtype == torch.float32
    assert images.min() == -1
    assert images.max() == 1
    assert images.is_contiguous()
    back = spaces.to_uint8(images)
    assert back.dtype == torch.uint8
    assert np.array_equal(back.numpy(), levels)
    assert torch.equal(spaces.from_uint8(torch.from_numpy(levels)), images)


def test_images_of_a_read_only_cache_are_left_alone():
    cache = np.full((1, 2, 2, 3), 7, dtype=np.uint8)
    cache.flags.writeable = False
    spaces.from_uint8(cache).zero_()
    assert (cache == 7).all()


def test_colours_outside_the_range_are_clipped():
    images = torch.tensor([-3.0, 3.0, 0.0]).view(1, 3, 1, 1)
    assert spaces.to_uint8(images).flatten().tolist() == [0, 255, 128]


@pytest.mark.parametrize(("size", "patch"), [((30, 32), 4), ((32, 30), 4), ((32, 32), 0)])
def test_a_patch_must_divide_the_size(size, patch):
    with pytest.raises(UserError, match=f"size {size[0]}×{size[1]} .* patch {patch}"):
        spaces.build(config.Space(patch=patch), size, 3)


def test_an_unknown_space_is_refused():
    with pytest.raises(UserError, match="fourier"):
        spaces.build(config.Space(kind="fourier"), (8, 8), 3)


def test_build_gives_the_configured_space():
    space = spaces.build(config.Space(patch=2), (8, 12), 1)
    assert (space.size, space.channels, space.grid, space.patch_dim) == ((8, 12), 1, (4, 6), 4)
