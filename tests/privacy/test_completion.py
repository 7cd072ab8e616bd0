"""Completion finds what is remembered, and an ignorant model has no advantage."""

from functools import partial

import pytest
import torch

from tests.privacy.known import GRID, Constant, Memoriser, Normal, draws
from underpaint.core import samplers
from underpaint.privacy import completion

MEMBERS, OTHERS = draws(40, 1), draws(40, 2)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_model_that_remembers_completes_its_images(seed: int) -> None:
    """The exact posterior of 40 images ends at one of them: at the truth, or at another.

    Non-members are never completed. With ten repeats the truth is found in nine of ten trials or
    more: what is shown tells the images apart, and steps that are repeated get the hidden half to
    agree with it.
    """
    model = Memoriser(MEMBERS)
    members, others = (
        completion.errors(model, part, repeats=10, seed=seed) for part in (MEMBERS, OTHERS)
    )
    assert (members < 1e-6).mean() > 0.9
    assert (others > 0.1).all()
    assert members.mean() < 0.1 * others.mean()
    found = completion.advantage(members.mean(0), others.mean(0))
    assert found["low"] > 0
    assert found["auc"]["value"] > 0.95
    assert found["p_value"] < 1e-6


def test_repeats_find_what_one_pass_misses() -> None:
    """As the module says: one pass settles for another image more often."""
    model = Memoriser(MEMBERS)
    once, often = (
        float((completion.errors(model, MEMBERS, repeats=n, draws=8) < 1e-6).mean())
        for n in (1, 10)
    )
    assert once > 0.7
    assert often > once + 0.05


@pytest.mark.parametrize("model", [Constant(), Normal()])
def test_a_model_that_knows_no_image_has_no_advantage(model: Constant | Normal) -> None:
    members, others = (completion.errors(model, draws(200, seed)).mean(0) for seed in (3, 4))
    found = completion.advantage(members, others)
    assert found["low"] < 0 < found["high"]
    assert found["p_value"] > 0.01


def test_the_error_of_a_constant_is_known() -> None:
    """It answers 0, so the error is the square of what is hidden."""
    masks = completion.masks(GRID, 2, 0)
    assert masks.hidden is not None
    squares = MEMBERS.square().mean(2)  # [n, N]
    expected = torch.stack([squares[:, ids].mean(1) for ids in masks.hidden])
    assert completion.errors(Constant(), MEMBERS) == pytest.approx(expected.numpy(), rel=1e-4)


def test_batches_and_order_do_not_matter() -> None:
    model = Memoriser(MEMBERS)
    one = completion.errors(model, MEMBERS, batch=40)
    two = completion.errors(model, MEMBERS.flip(0), batch=7)
    assert one == pytest.approx(two[:, ::-1], rel=1e-4, abs=1e-9)


def test_visible_patches_are_kept_and_hidden_ones_not_read() -> None:
    visible = torch.tensor([[0, 3, 4, 8]]).expand(40, -1)
    patches = torch.full_like(MEMBERS, float("nan"))
    patches[:, visible[0]] = MEMBERS[:, visible[0]]
    model = Memoriser(MEMBERS)
    levels = samplers.sigmas(model.process, 20)
    noise = partial(torch.randn, 1, *MEMBERS.shape[1:], generator=torch.Generator().manual_seed(5))
    found = completion.complete(model, patches, visible, levels, noise)
    assert torch.equal(found[:, visible[0]], MEMBERS[:, visible[0]])
    assert torch.isfinite(found).all()
