"""Attacks find every image that a model remembers, and nothing where there is nothing to find."""

import numpy as np
import pytest
import torch

from tests.heard import Heard
from tests.privacy.known import GRID, Memoriser, Normal, draws, nan_hidden, shared_mask
from underpaint import config
from underpaint.core import masks
from underpaint.errors import UserError
from underpaint.model import build
from underpaint.privacy import attacks, statistics
from underpaint.progress import following

SIGMAS = [0.2, 0.4, 0.8]
MEMBERS, OTHERS = draws(40, 1), draws(40, 2)
BOTH = torch.cat([MEMBERS, OTHERS])


def best(scores: np.ndarray) -> float:
    return max(statistics.auc(scores[:40, i], scores[40:, i]).value for i in range(len(SIGMAS)))


@pytest.mark.parametrize("attack", attacks.ATTACKS)
def test_what_is_remembered_is_found(attack: str) -> None:
    found = attacks.scores(Memoriser(MEMBERS), BOTH, [attack], SIGMAS)[attack]
    assert found.shape == (80, 3)
    assert best(found) > 0.99


@pytest.mark.parametrize("attack", attacks.ATTACKS)
def test_a_model_of_the_distribution_gives_nothing_away(attack: str) -> None:
    both = torch.cat([draws(300, 3), draws(300, 4)])
    found = attacks.scores(Normal(), both, [attack], SIGMAS)[attack]
    for i in range(len(SIGMAS)):
        area = statistics.auc(found[:300, i], found[300:, i], 0.999)
        assert area.low <= 0.5 <= area.high


@pytest.mark.parametrize("attack", attacks.ATTACKS)
def test_parts_of_images_are_enough_and_hidden_ones_are_not_read(attack: str) -> None:
    mask = shared_mask([0, 2, 4, 5, 8], len(BOTH))
    model = Memoriser(MEMBERS)
    found = attacks.scores(model, nan_hidden(BOTH, mask), [attack], SIGMAS, mask=mask)[attack]
    assert np.isfinite(found).all()
    assert best(found) > 0.95


@pytest.mark.parametrize("names", [*([name] for name in attacks.ATTACKS), list(attacks.ATTACKS)])
def test_each_call_of_the_network_is_progress(names: list[str]) -> None:
    heard = Heard()
    with following(heard):
        attacks.scores(Memoriser(MEMBERS), BOTH[:64], names, SIGMAS, batch=32)
    done = [at for _, at, _ in heard.said]
    assert done == sorted(done)
    assert done.count(64) == 1  # at the last call, and not before
    assert np.allclose(np.diff(done), done[1])


def test_loss_is_that_of_its_definition() -> None:
    """D = x/(1 + 4σ²) for N(0, 1/4): (n − eps)² with the same n for every image."""
    found = attacks.scores(Normal(), BOTH, ["loss"], [0.5], noises=1)["loss"][:, 0]
    again = attacks.scores(Normal(), BOTH * 0, ["loss"], [0.5], noises=1)["loss"][:, 0]
    assert np.ptp(again) == 0  # one noise for all
    # at σ = 1/2, eps = x: n − (x0 + n/2) = n/2 − x0, and n² follows from the score of x0 = 0
    mean_n2 = 4 * again[0]
    cross = (found - again - BOTH.square().mean((1, 2)).numpy()) / -1.0
    assert mean_n2 == pytest.approx(1, abs=0.6)
    assert abs(cross.mean()) < 0.2


def test_sima_feeds_the_clean_image_unscaled() -> None:
    """EDM has alpha = 1: eps(x0) = x0 σ/(σ² + 1/4)."""
    found = attacks.scores(Normal(), BOTH, ["sima"], [0.5])["sima"][:, 0]
    assert found == pytest.approx(BOTH.square().mean((1, 2)).numpy(), rel=1e-5)


def test_batches_and_order_do_not_matter() -> None:
    model = Memoriser(MEMBERS)
    one = attacks.scores(model, BOTH, list(attacks.ATTACKS), SIGMAS, batch=80)
    two = attacks.scores(model, BOTH.flip(0), list(attacks.ATTACKS), SIGMAS, batch=7)
    for name in attacks.ATTACKS:
        assert one[name] == pytest.approx(two[name][::-1], rel=1e-5)


@pytest.mark.parametrize("kind", ["patch", "block", "crop"])
def test_real_networks_answer_for_every_process(kind: str) -> None:
    laws = {"flow": "logit-normal", "vp-cosine": "uniform", "edm": "log-normal"}
    for process, prediction in (("flow", "flow"), ("vp-cosine", "v"), ("edm", "edm")):
        spec = config.from_dict(
            config.ModelSpec,
            {
                "size": [8, 8],
                "channels": 1,
                "space": {"patch": 2},
                "network": {"width": 16, "depth": 3, "heads": 2},
                "noise": {"process": process, "prediction": prediction, "time": laws[process]},
            },
            "",
        )
        model = build(spec)
        patches = torch.randn(5, 16, 4)
        levels = attacks.levels(model.denoiser.process, 3)
        assert levels == sorted(levels)
        ensemble = attacks.Ensemble(kind, 0.5, 2, 3)
        g = torch.Generator().manual_seed(0)
        for mask in (None, masks.draw(masks.MaskSpec("patch", 0.5), (4, 4), 5, g)):
            found = attacks.scores(
                model.denoiser, patches, list(attacks.ATTACKS), levels, mask=mask, ensemble=ensemble
            )
            for values in found.values():
                assert values.shape == (5, 3)
                assert np.isfinite(values).all()


def test_crops_are_parts_too() -> None:
    g = torch.Generator().manual_seed(0)
    mask = masks.draw(masks.MaskSpec("crop", 0.5), GRID, len(BOTH), g)
    found = attacks.scores(Memoriser(MEMBERS), BOTH, ["loss", "masks"], SIGMAS, mask=mask)
    assert best(found["loss"]) > 0.95
    assert best(found["masks"]) > 0.95


@pytest.mark.parametrize(("size", "parts"), [(8, 4), (4, 0)])
def test_parts_are_squares_of_a_networks_coarse_tokens(size: int, parts: int) -> None:
    """2×2 patches of 2×2 pixels each: of half of four units, of none of one."""
    network = config.Network(kind="hourglass", width=16, depth=1, heads=2)
    spec = config.ModelSpec(
        size=(size, size), channels=1, space=config.Space(patch=2), network=network
    )
    denoiser, N = build(spec).denoiser, (size // 2) ** 2
    found = attacks._parts(masks.Mask((size // 2, size // 2)), attacks.Ensemble(), denoiser, 0)
    assert (0 if found is None else len(found.visible)) == (
        attacks.Ensemble().masks if parts else 0
    )
    patches, levels = torch.randn(5, N, 4), attacks.levels(denoiser.process, 2)
    shown = masks.MaskSpec("patch", 0.5, unit=2)
    g = torch.Generator().manual_seed(0)
    for mask in (None, masks.draw(shown, (4, 4), 5, g)) if parts else (None,):
        scores = attacks.scores(denoiser, patches, ["loss", "masks"], levels, mask=mask)
        assert all(np.isfinite(values).all() for values in scores.values())


def test_unknown_attacks_are_named() -> None:
    with pytest.raises(UserError, match="'los' does not exist; use loss, secmi"):
        attacks.check(["los"])
