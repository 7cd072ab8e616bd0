"""Augmentation: exact on images known by heart, and told truly."""

import numpy as np
import pytest
import torch

from underpaint.core import augmentation
from underpaint.core.augmentation import Changes, apply, condition, draw


def changes(batch: int = 1, **given: object) -> Changes:
    """Nothing but what is given."""
    zero = np.zeros(batch)
    none = Changes(
        zero.astype(bool), zero.astype(np.int64), np.zeros((batch, 2)), zero, zero, zero, zero
    )
    return none._replace(**{name: np.asarray(value) for name, value in given.items()})


def image(height: int = 16, width: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, 3, height, width, generator=generator) * 2 - 1


def test_nothing_changes_nothing() -> None:
    assert torch.equal(apply(image(), changes()), image())
    assert not condition(changes()).any()


def test_probability_zero_draws_nothing() -> None:
    drawn = draw(np.random.default_rng(0), 50, 0.0, square=True, colour=True)
    images = image().expand(50, -1, -1, -1)
    assert not condition(drawn).any()
    assert torch.equal(apply(images, drawn), images)


def test_flips_and_quarter_turns_are_exact() -> None:
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    flipped = apply(x, changes(flip=[True]))
    assert flipped.flatten().tolist() == [2, 1, 4, 3]
    for turns, expected in {1: [2, 4, 1, 3], 2: [4, 3, 2, 1], 3: [3, 1, 4, 2]}.items():
        assert apply(x, changes(turns=[turns])).flatten().tolist() == expected
    assert condition(changes(flip=[True])).tolist() == [[1, 0, 0, 0, 0, 0, 0, 0, 0]]
    told = condition(changes(3, turns=[1, 2, 3]))[:, 1:3]
    assert told.tolist() == [[-1, 1], [-2, 0], [-1, -1]]


def test_shifts_are_whole_pixels_with_mirrored_edges() -> None:
    x = image()
    moved = apply(x, changes(shift=[[1.0, -0.5]]))  # 2 pixels down, 1 to the left
    assert torch.equal(moved[..., 2:, :-1], x[..., :-2, 1:])
    assert torch.equal(moved[..., 1, :-1], x[..., 0, 1:])
    assert torch.equal(moved[..., 0, :-1], x[..., 1, 1:])
    assert torch.equal(moved[..., 2:, -1], x[..., :-2, -1])


def test_scaling_is_about_the_middle() -> None:
    rows = (torch.arange(32) + 0.5) / 16 - 1  # −1 … 1
    x = torch.stack([rows[:, None].expand(32, 32), rows[None].expand(32, 32)])[None]
    larger = apply(x, changes(scale=[0.4]))
    torch.testing.assert_close(larger, x * 2**-0.4, atol=1e-5, rtol=0)
    smaller = apply(x, changes(scale=[-0.4]))[..., 8:-8, 8:-8]
    torch.testing.assert_close(smaller, x[..., 8:-8, 8:-8] * 2**0.4, atol=1e-5, rtol=0)


def test_a_shift_with_a_scale_is_that_shift() -> None:
    x = image(16, 24)
    shift = [[0.9, -0.6]]
    exact = apply(x, changes(shift=shift))
    nearly = apply(x, changes(shift=shift, scale=[1e-7]))
    torch.testing.assert_close(nearly, exact, atol=1e-4, rtol=0)


def test_colours_are_their_formulas() -> None:
    x = image()
    torch.testing.assert_close(apply(x, changes(brightness=[0.3])), x + 0.3)
    torch.testing.assert_close(apply(x, changes(contrast=[-1.0])), x / 2)
    grey = x.mean(dim=1, keepdim=True)
    torch.testing.assert_close(apply(x, changes(saturation=[1.0])), 2 * x - grey)
    told = condition(changes(brightness=[0.3], contrast=[-1.0], saturation=[1.0]))
    assert told[0, 6:].tolist() == pytest.approx([1.5, -2.0, 1.0])


def test_each_image_has_its_own_draws() -> None:
    few = draw(np.random.default_rng(5), 4, 0.6, square=True, colour=True)
    many = draw(np.random.default_rng(5), 9, 0.6, square=True, colour=True)
    assert all(np.array_equal(a, b[:4]) for a, b in zip(few, many, strict=True))
    images = torch.randn(4, 3, 8, 8)
    together = apply(images, few)
    for i in range(4):
        alone = Changes(*(a[i : i + 1] for a in few))
        torch.testing.assert_close(apply(images[i : i + 1], alone)[0], together[i])


def test_an_unchanged_image_among_changed_ones_is_left_bit_for_bit() -> None:
    images = torch.randn(2, 3, 8, 8)
    some = changes(
        2, scale=[0.3, 0.0], saturation=[1.0, 0.0], contrast=[0.2, 0.0], brightness=[0.1, 0.0]
    )
    assert torch.equal(apply(images, some)[1], images[1])


def test_kinds_come_with_their_probability_and_spread() -> None:
    drawn = draw(np.random.default_rng(0), 20_000, 0.4, square=True, colour=True)
    told = condition(drawn).numpy()
    assert told.shape == (20_000, augmentation.CONDITION)
    assert drawn.flip.mean() == pytest.approx(0.2, abs=0.01)
    assert (drawn.turns > 0).mean() == pytest.approx(0.3, abs=0.01)
    assert np.bincount(drawn.turns)[1:] / 20_000 == pytest.approx([0.1] * 3, abs=0.01)
    for column in (3, 5, 6, 7, 8):
        assert (told[:, column] != 0).mean() == pytest.approx(0.4, abs=0.012)
    for column in (6, 7, 8):  # in units of their deviation
        values = told[told[:, column] != 0, column]
        assert values.mean() == pytest.approx(0, abs=0.05)
        assert values.std() == pytest.approx(1, abs=0.03)
    assert np.abs(drawn.shift).max() <= 1
    assert np.abs(drawn.scale).max() <= 0.5


def test_oblong_images_are_never_on_their_side_and_grey_ones_have_no_saturation() -> None:
    drawn = draw(np.random.default_rng(0), 500, 1.0, square=False, colour=False)
    assert set(drawn.turns) == {0, 2}
    assert not drawn.saturation.any()
    assert apply(torch.randn(500, 1, 4, 6), drawn).shape == (500, 1, 4, 6)
