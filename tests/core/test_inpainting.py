"""Inpainting of Gaussian data, whose conditional distribution is known in closed form."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from tests.core.gaussian import Gaussian
from underpaint.core import inpainting, samplers, schedules
from underpaint.core.samplers import Sampling

DATA = Gaussian([1.0, 0.3, 0.05, 0.2])
KNOWN = torch.tensor([True, False, True, False])
GIVEN = DATA.mean + torch.tensor([0.8, 0.0, -0.5, 0.0], dtype=torch.float64)
LEVELS = samplers.sigmas(schedules.Flow("uniform"), 20, "uniform")


def mix(x: Tensor, other: Tensor) -> Tensor:
    return torch.where(KNOWN, other, x)


def repaint(
    truth: Tensor, sampler: str, resample: int, count: int = 4000, callback: Callable | None = None
) -> Tensor:
    g = torch.Generator().manual_seed(0)

    def noise() -> Tensor:
        return torch.randn(count, 4, generator=g, dtype=torch.float64)

    return inpainting.repaint(
        DATA.denoise,
        noise() * LEVELS[0],
        LEVELS,
        Sampling(sampler, clip="none"),
        truth.expand(count, 4),
        mix,
        noise=noise,
        resample=resample,
        callback=callback,
    )


def conditional() -> tuple[Tensor, Tensor]:
    """Mean and covariance of the unknown given the known: the Schur complement."""
    k, u = KNOWN.nonzero()[:, 0], (~KNOWN).nonzero()[:, 0]
    C = DATA.cov
    gain = C[u][:, k] @ torch.linalg.inv(C[k][:, k])
    return DATA.mean[u] + gain @ (GIVEN - DATA.mean)[k], C[u][:, u] - gain @ C[k][:, u]


def away(sampler: str, resample: int) -> tuple[float, float]:
    """How far mean and covariance of what is drawn are from the conditional ones."""
    drawn = repaint(GIVEN, sampler, resample)[:, ~KNOWN]
    mean, cov = conditional()
    found = float((drawn.mean(0) - mean).abs().max())
    return found, float((torch.cov(drawn.T) - cov).norm() / cov.norm())


def test_heun_finds_the_conditional_distribution_where_steps_are_repeated() -> None:
    """What is known moves the mean by 0.63; without repeats most of that is missed."""
    mean, _ = conditional()
    assert float((mean - DATA.mean[~KNOWN]).abs().max()) > 0.6
    once, often = away("heun", 1), away("heun", 10)
    assert once[0] > 0.35
    assert once[1] > 0.2
    assert often[0] < 0.13
    assert often[1] < 0.1


@pytest.mark.parametrize("sampler", ["euler", "ancestral"])
def test_repeats_bring_the_mean_nearer_with_every_sampler(sampler: str) -> None:
    once, often = away(sampler, 1)[0], away(sampler, 10)[0]
    assert once > 0.25
    assert often < 0.4 * once


def test_what_is_known_is_put_in_at_the_level_of_the_step_with_new_noise() -> None:
    put: list[Tensor] = []

    def heard(x: Tensor, other: Tensor) -> Tensor:
        put.append(other)
        return mix(x, other)

    g = torch.Generator().manual_seed(0)
    x, sampling = torch.zeros(500, 4), Sampling("euler", clip="none")
    inpainting.repaint(
        DATA.denoise,
        x,
        LEVELS,
        sampling,
        x + 7.0,
        heard,
        noise=lambda: torch.randn(500, 4, generator=g),
        resample=2,
    )
    steps = inpainting.steps(LEVELS, 2)
    noise = [(other - 7.0) / step.s for other, step in zip(put, steps, strict=True)]
    for one, two in pairwise(noise):
        assert float(one.std()) == pytest.approx(1, abs=0.1)
        assert abs(float((one * two).mean())) < 0.15


@pytest.mark.parametrize("sampler", inpainting.ONE_STEP)
def test_what_is_unknown_is_not_read(sampler: str) -> None:
    unread = torch.where(KNOWN, GIVEN, torch.nan)
    assert torch.equal(repaint(unread, sampler, 2, 5), repaint(GIVEN, sampler, 2, 5))


def test_steps_are_repeated_where_the_image_is_decided() -> None:
    called: list[int] = []
    repaint(GIVEN, "euler", 3, 1, lambda: called.append(1))
    steps = inpainting.steps(LEVELS, 3)
    assert len(called) == len(steps)
    inner = [s for s in LEVELS[:-1].tolist() if inpainting.FROM < s < inpainting.TO]
    assert len(steps) == 20 + 2 * len(inner)
    assert 0 < len(inner) < 20
    assert sum(step.again for step in steps) == 2 * len(inner)


@pytest.mark.parametrize("sampler", sorted({*samplers.SAMPLERS} - {*inpainting.ONE_STEP}))
def test_samplers_that_cannot_go_back_are_refused(sampler: str) -> None:
    with pytest.raises(ValueError, match=r"cannot go back and take a step again; use one of euler"):
        repaint(GIVEN, sampler, 1, 1)


def test_a_step_is_taken_at_least_once() -> None:
    with pytest.raises(ValueError, match="resample 0: give at least 1"):
        repaint(GIVEN, "euler", 0, 1)
