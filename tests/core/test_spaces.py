import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from underpaint import config, factory
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
    with pytest.raises(ValueError, match=f"size {size[0]}×{size[1]} .* patch {patch}"):
        spaces.build("pixels", size, 3, patch=patch)
    with pytest.raises(UserError, match=f"size {size[0]}×{size[1]} .* patch {patch}"):
        factory.space(config.Space(patch=patch), size, 3)


def test_an_unknown_space_is_refused():
    with pytest.raises(ValueError, match="fourier"):
        spaces.build("fourier", (8, 8), 3)
    with pytest.raises(UserError, match=r"^space\.kind 'fourier'"):
        factory.space(config.Space(kind="fourier"), (8, 8), 3)


def test_build_gives_the_configured_space():
    space = factory.space(config.Space(patch=2), (8, 12), 1)
    assert (space.size, space.channels, space.grid, space.patch_dim) == ((8, 12), 1, (4, 6), 4)


# --- wavelets


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_wavelets_come_back_and_are_orthonormal_up_to_a_factor(B, h, w, p, C, levels):
    side = p * 2**levels
    space = spaces.Wavelets((h * side, w * side), C, p, levels)
    images = torch.rand(B, C, h * side, w * side) * 2 - 1
    patches = space.encode(images)
    assert space.grid == (h, w)
    assert patches.shape == (B, h * w, space.patch_dim) == (B, h * w, C * 4**levels * p * p)
    assert (space.decode(patches) - images).abs().max() <= 1e-6
    energy = images.double().square().sum()
    torch.testing.assert_close(patches.double().square().sum() * 4**levels, energy)
    back = torch.randn_like(patches)
    torch.testing.assert_close(space.encode(space.decode(back)), back, rtol=0, atol=2e-6)


def test_bands_are_in_their_order():
    """One square (1 2 / 4 8) of the first colour: LL, LH (rows differ), HL (columns differ), HH."""
    images = torch.zeros(1, 2, 2, 2)
    images[0, 0] = torch.tensor([[1.0, 2.0], [4.0, 8.0]])
    images[0, 1] = 1
    bands = spaces.Wavelets((2, 2), 2, 1).encode(images)
    assert (4 * bands).flatten().tolist() == [15, 3 - 12, 5 - 10, 1 + 8 - 6, 4, 0, 0, 0]


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_every_band_reaches_from_minus_one_to_one(levels):
    """Clipping x0 to [−1, 1] cuts nothing off an image, and no band could do with less."""
    side = 2**levels
    space = spaces.Wavelets((side, side), 1, 1, levels)
    band = torch.eye(space.patch_dim)[:, None]  # one coefficient of 1 each
    patterns = space.decode(band)
    assert set(patterns.unique().tolist()) == {-1.0, 1.0}
    torch.testing.assert_close(space.encode(patterns), band)
    noise = torch.rand(500, 1, side, side).round() * 2 - 1
    assert space.encode(noise).abs().max() <= 1


def test_build_gives_wavelets():
    space = factory.space(config.Space(kind="wavelets", patch=4), (256, 256), 3)
    assert (space.grid, space.patch_dim) == ((32, 32), 12 * 16)


@pytest.mark.parametrize(
    ("size", "patch", "levels"),
    [((33, 32), 1, 1), ((32, 36), 4, 1), ((32, 32), 4, 4), ((32, 32), 4, 0), ((32, 32), 0, 1)],
)
def test_wavelets_need_sides_that_can_be_halved(size, patch, levels):
    says = f"size {size[0]}×{size[1]}.* sides divisible by"
    with pytest.raises(ValueError, match=says) as raised:
        spaces.build("wavelets", size, 3, patch=patch, levels=levels)
    assert "\n" not in str(raised.value)
