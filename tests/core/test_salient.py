import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from underpaint.core import masks
from underpaint.core.masks import MaskSpec
from underpaint.core.salient import chances, local_variance, systematic
from underpaint.core.spaces import Pixels

contrasts = st.lists(st.floats(0, 1e4), min_size=2, max_size=40)


@settings(max_examples=200, deadline=None)
@given(contrasts, st.floats(1e-4, 50), st.data())
def test_chances_sum_to_the_visible_and_rise_with_contrast(values, temperature, data):
    V = data.draw(st.integers(1, len(values) - 1))
    contrast = torch.tensor([values], dtype=torch.float64)
    pi = chances(contrast, V, temperature)[0]
    assert pi.sum().item() == pytest.approx(V, rel=1e-9)
    assert pi.max() <= 1
    assert (pi > 0).all()
    order = contrast[0].argsort()
    assert (pi[order].diff() >= -1e-12).all()


def test_chances_below_one_are_proportional_to_the_scores():
    contrast = torch.tensor([[0.0, 1.0, 2.0, 30.0, 60.0, 3.0]])
    v = contrast[0].double() / contrast.mean()
    score = (1 + v) ** 2
    pi = chances(contrast, 3, temperature=0.5)[0]
    assert pi[4] == 1
    free = pi < 1
    ratio = pi[free] / score[free]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))
    assert (ratio[0] * score[~free] >= 1).all()  # the others would have got more than 1


@settings(max_examples=100, deadline=None)
@given(contrasts, st.data())
def test_at_temperature_one_a_flat_patch_keeps_half_its_chance(values, data):
    V = data.draw(st.integers(1, len(values) - 1))
    pi = chances(torch.tensor([values]), V)
    assert pi.min() >= 0.5 * V / len(values) - 1e-9


def test_without_contrast_or_at_high_temperature_chances_are_equal():
    flat, any_contrast = torch.zeros(1, 8), torch.rand(1, 8)
    for pi in (chances(flat, 3), chances(any_contrast, 3, 1e6)):
        torch.testing.assert_close(pi, torch.full_like(pi, 3 / 8), rtol=1e-5, atol=0)


def every_draw(pi, V):
    """All orders and all u: (share, visible ids), the shares sum to 1.

    Along u the drawn set changes only where an end of the running sum passes it, so that one u
    between two such places stands for the whole interval.
    """
    N = len(pi)
    orders = list(itertools.permutations(range(N)))
    for order in orders:
        ends = pi[list(order)].cumsum(0)
        cuts = sorted({0.0, 1.0, *(ends % 1).tolist()})
        for low, high in itertools.pairwise(cuts):
            if high - low < 1e-9:
                continue
            start = torch.tensor([(low + high) / 2], dtype=torch.float64)
            drawn = systematic(pi[None], torch.tensor([order]), start, V)[0]
            yield (high - low) / len(orders), drawn.nonzero()[:, 0]


@pytest.mark.parametrize("temperature", [0.2, 1.0])
@pytest.mark.parametrize("V", [1, 2, 3])
def test_inclusion_probabilities_and_weights_are_exact(V, temperature):
    """By expectation over every order and every u of a grid of 5 patches."""
    contrast = torch.tensor([[0.0, 0.1, 0.5, 0.2, 3.0]], dtype=torch.float64)
    errors = torch.tensor([3.0, -1.0, 0.5, 7.0, 2.0], dtype=torch.float64)  # of single patches
    pi = chances(contrast, V, temperature)[0]
    shown = torch.zeros(5, dtype=torch.float64)
    estimate = plain = total = 0.0
    for share, ids in every_draw(pi, V):
        assert len(ids) == V
        total += share
        shown[ids] += share
        weights = V / 5 / pi[ids]
        estimate += share * (weights * errors[ids]).mean().item()
        plain += share * errors[ids].mean().item()
    assert total == pytest.approx(1)
    torch.testing.assert_close(shown, pi, rtol=0, atol=1e-7)
    assert estimate == pytest.approx(errors.mean().item(), abs=1e-7)
    assert abs(plain - errors.mean().item()) > 0.01  # the preference that the weights take away


def test_masks_are_drawn_by_their_chances_and_carry_their_weights():
    B, grid = 6000, (3, 4)
    contrast = torch.rand(12, generator=torch.Generator().manual_seed(1)).pow(4).expand(B, 12)
    spec = MaskSpec("salient", 0.6, temperature=0.5, reweight=True)
    mask = masks.draw(spec, grid, B, torch.Generator().manual_seed(0), contrast=contrast)
    V = masks.visible_count(spec, grid)
    assert mask.visible.shape == mask.weights.shape == (B, V) == (B, 12 - 7)
    pi = chances(contrast[:1], V, 0.5)[0]
    shown = torch.zeros(B, 12).scatter_(1, mask.visible, 1.0).mean(0)
    assert (shown - pi).abs().max() < 5 * (0.25 / B) ** 0.5
    torch.testing.assert_close(mask.weights, (V / 12 / pi).float()[mask.visible])


def test_weights_come_only_where_they_are_asked_for():
    spec, contrast = MaskSpec("salient", 0.5), torch.rand(2, 16)
    assert masks.draw(spec, (4, 4), 2, None, contrast=contrast).weights is None
    with pytest.raises(ValueError, match="contrast"):
        masks.draw(spec, (4, 4), 2, None)


def test_local_variance_is_within_channels():
    images = torch.randn(2, 3, 8, 12)
    images[:, :, :4, :4] = torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1)  # colourful, but flat
    found = local_variance(images, (2, 3))
    assert found[:, 0].tolist() == [0.0, 0.0]
    patches = Pixels((8, 12), 3, 4).encode(images).unflatten(2, (3, 16))
    torch.testing.assert_close(found, patches.var(dim=3, correction=0).mean(2))
