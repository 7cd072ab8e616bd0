"""Completion finds what is remembered, and an ignorant model has no advantage."""

import pytest
import torch

from tests.privacy.known import GRID, Constant, Memoriser, Normal, draws
from underpaint.core import samplers
from underpaint.privacy import completion

MEMBERS, OTHERS = draws(40, 1), draws(40, 2)


def test_a_model_that_remembers_completes_its_images() -> None:
    model = Memoriser(MEMBERS)
    members, others = (completion.errors(model, part) for part in (MEMBERS, OTHERS))
    # not 0: replacement is no exact conditioning, and some trajectories end at another image
    assert members.mean() < 0.35 * others.mean()
    found = completion.advantage(members, others)
    assert found["low"] > 0
    assert found["auc"]["low"] > 0.8
    assert found["p_value"] < 1e-6


@pytest.mark.parametrize("model", [Constant(), Normal()])
def test_a_model_that_knows_no_image_has_no_advantage(model: Constant | Normal) -> None:
    members, others = (completion.errors(model, draws(200, seed)) for seed in (3, 4))
    found = completion.advantage(members, others)
    assert found["low"] < 0 < found["high"]
    assert found["p_value"] > 0.01


def test_the_error_of_a_constant_is_known() -> None:
    """It answers 0, so the error is the square of what is hidden."""
    masks = completion.masks(GRID, 2, 0)
    assert masks.hidden is not None
    squares = MEMBERS.square().mean(2)  # [n, N]
    expected = torch.stack([squares[:, ids].mean(1) for ids in masks.hidden]).mean(0)
    assert completion.errors(Constant(), MEMBERS) == pytest.approx(expected.numpy(), rel=1e-4)


def test_visible_patches_are_kept_and_hidden_ones_not_read() -> None:
    visible = torch.tensor([[0, 3, 4, 8]]).expand(40, -1)
    patches = torch.full_like(MEMBERS, float("nan"))
    patches[:, visible[0]] = MEMBERS[:, visible[0]]
    model = Memoriser(MEMBERS)
    levels = samplers.sigmas(model.process, 20)
    found = completion.complete(model, patches, visible, draws(40, 5) * 2, levels)
    assert torch.equal(found[:, visible[0]], MEMBERS[:, visible[0]])
    assert torch.isfinite(found).all()
