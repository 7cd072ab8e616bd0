"""The accountants against closed forms and an accountant of our own; noise from a budget."""

import math

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from underpaint import config
from underpaint.dp import accounting
from underpaint.errors import UserError

pytest.importorskip("opacus")

DELTA = 1e-5


def analytic(sigma: float, delta: float) -> float:
    """Epsilon of one Gaussian mechanism of sensitivity 1 (Balle & Wang 2018, Theorem 8)."""

    def exceeded(epsilon: float) -> float:
        high, low = (
            norm.cdf(0.5 / sigma - epsilon * sigma),
            norm.cdf(-0.5 / sigma - epsilon * sigma),
        )
        return high - math.exp(epsilon) * low - delta

    return float(brentq(exceeded, 0, 100))


@pytest.mark.parametrize(("noise", "steps"), [(5.0, 1), (1.0, 1), (5.0, 10), (60.0, 1000)])
def test_with_all_images_in_each_step_it_is_the_gaussian_mechanism(
    noise: float, steps: int
) -> None:
    exact = analytic(noise / math.sqrt(steps), DELTA)  # T steps are one of deviation / √T
    assert exact <= accounting.prv(noise, 1.0, steps, DELTA) <= exact + 0.02
    assert exact <= accounting.rdp(noise, 1.0, steps, DELTA) <= 1.15 * exact


def composed(noise: float, rate: float, steps: int, up: bool, removed: bool) -> float:
    """Epsilon by our own sums of privacy losses, all rounded up (a bound above) or down (below).

    Of P = (1 − q) N(0, z²) + q N(1, z²) against Q = N(0, z²), the image removed, or Q against P,
    added (Koskela et al. 2020, arXiv 1906.03049).
    """
    width, reach = 5e-4, 20.0
    x = np.linspace(-12 * noise, 12 * noise + 1, 100_001)
    edges = np.concatenate([[-np.inf], (x[1:] + x[:-1]) / 2, [np.inf]])
    of_q = np.diff(norm.cdf(edges / noise))
    of_p = (1 - rate) * of_q + rate * np.diff(norm.cdf((edges - 1) / noise))
    # the loss at the end of each cell where it is largest (or smallest): it rises with x
    ends = edges[1:] if up == removed else edges[:-1]
    ends = np.clip(ends, x[0] - 1, x[-1] + 1)
    loss = np.log1p(rate * np.expm1((2 * ends - 1) / (2 * noise**2)))
    mass, loss = (of_p, loss) if removed else (of_q, -loss)
    cells = (np.ceil if up else np.floor)(loss / width).astype(int)
    n = 2 * int(reach / width)
    assert np.abs(cells).max() < n // 2
    law = np.bincount(cells + n // 2, mass, minlength=n)
    law = np.roll(law, -(n // 2))  # loss 0 first, so that powers of the transform need no shift
    law = np.roll(np.fft.irfft(np.fft.rfft(law) ** steps, n), n // 2).clip(min=0)
    losses = (np.arange(n) - n // 2) * width

    def exceeded(epsilon: float) -> float:
        above = losses > epsilon
        return float((law[above] * -np.expm1(epsilon - losses[above])).sum()) - DELTA

    return float(brentq(exceeded, 0, reach - 1))


@pytest.mark.parametrize(
    ("noise", "rate", "steps"), [(1.0, 0.02, 50), (0.8, 0.1, 20), (2.0, 0.25, 40)]
)
def test_with_some_images_in_each_step_it_bounds_an_accountant_of_our_own(
    noise: float, rate: float, steps: int
) -> None:
    low = max(composed(noise, rate, steps, False, removed) for removed in (True, False))
    high = max(composed(noise, rate, steps, True, removed) for removed in (True, False))
    assert high - low < 0.05  # our own says it that closely
    assert low <= accounting.prv(noise, rate, steps, DELTA) <= high + 0.02
    assert low <= accounting.rdp(noise, rate, steps, DELTA) <= 1.5 * high


def found(epsilon: float = 2.0, **changes: object) -> accounting.Guarantee:
    """The guarantee of 40 steps of 25 among 100 images."""
    dp = config.DP(epsilon=epsilon, delta=DELTA)
    stage = config.Stage(images=1000, batch=25, **changes)  # type: ignore[arg-type]
    return accounting.guarantee("own", stage, dp, 100, 1000)


def test_the_noise_is_the_least_that_keeps_the_budget() -> None:
    own = found()
    assert (own.steps, own.sampling_rate, own.accountant) == (40, 0.25, "prv")
    assert 0.99 * 2.0 <= own.epsilon <= 2.0
    assert composed(own.noise_multiplier, 0.25, 40, False, True) <= own.epsilon
    assert accounting.prv(0.98 * own.noise_multiplier, 0.25, 40, DELTA) > 2.0


def test_what_is_spent_grows_to_the_budget() -> None:
    own = found()
    spent = [own.spent(steps) for steps in range(0, 41, 5)]
    assert spent[0] == 0
    assert spent[-1] == own.epsilon
    assert spent == sorted(spent)
    assert spent[4] >= composed(own.noise_multiplier, 0.25, 20, False, True)
    assert own == accounting.Guarantee.of(own.record(7))


def test_rdp_where_prv_does_not_come_out(monkeypatch: pytest.MonkeyPatch) -> None:
    least = found().noise_multiplier

    def fail(*_: object, **__: object) -> float:
        raise RuntimeError

    monkeypatch.setattr(accounting, "prv", fail)
    accounting._least_noise.cache_clear()
    own = found()
    assert own.accountant == "rdp"
    assert own.epsilon <= 2.0
    assert least < own.noise_multiplier < 1.3 * least
    accounting._least_noise.cache_clear()


def test_budgets_that_cannot_be() -> None:
    dp, stage = config.DP(), config.Stage(images=1000, batch=25)
    with pytest.raises(UserError, match="at most 20"):
        accounting.guarantee("own", stage, dp, 20, 1000)
    with pytest.raises(UserError, match=r"stages\.own\.dp\.delta 0\.01.*less than 0\.01"):
        accounting.guarantee("own", stage, config.DP(delta=0.01), 100, 1000)
    with pytest.raises(UserError, match=r"stages\.own\.dp\.epsilon 0\.0001: no noise"):
        accounting.guarantee("own", stage, config.DP(epsilon=1e-4), 100, 1000)
