"""Estimates equal brute force, intervals cover, and too few images are refused."""

import math

import numpy as np
import pytest
from scipy import stats

from underpaint.errors import UserError
from underpaint.evaluation import intervals
from underpaint.privacy import statistics


def pairs(members: np.ndarray, others: np.ndarray) -> np.ndarray:
    """ψ of every pair, [m, n]."""
    one, two = members[:, None], others[None]
    return (one < two) + 0.5 * (one == two)


@pytest.mark.parametrize("decimals", [8, 0])  # 0: many ties
def test_auc_and_its_variance_equal_brute_force(decimals: int) -> None:
    rng = np.random.default_rng(1)
    members, others = rng.normal(0, 2, 40).round(decimals), rng.normal(1, 2, 55).round(decimals)
    psi = pairs(members, others)
    found = statistics.auc(members, others)
    assert found.value == pytest.approx(psi.mean(), abs=1e-12)
    u = stats.mannwhitneyu(others, members).statistic
    assert found.value == pytest.approx(u / (40 * 55), abs=1e-12)
    variance = psi.mean(1).var(ddof=1) / 40 + psi.mean(0).var(ddof=1) / 55
    assert found.high - found.value == pytest.approx(1.959964 * math.sqrt(variance), rel=1e-6)


def test_delongs_interval_is_that_of_the_bootstrap() -> None:
    rng = np.random.default_rng(2)
    members, others = rng.normal(0, 1, 150), rng.normal(0.7, 1, 150)
    psi = pairs(members, others)
    drawn = [
        psi[np.ix_(rng.integers(0, 150, 150), rng.integers(0, 150, 150))].mean()
        for _ in range(1000)
    ]
    found = statistics.auc(members, others)
    assert [found.low, found.high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.012)


def test_an_interval_of_a_perfect_attack_is_not_a_point() -> None:
    found = statistics.auc(np.arange(20.0), np.arange(20.0) + 100)
    assert found.value == found.high == 1
    assert found.low == pytest.approx(0.025 ** (1 / 20))
    reverse = statistics.auc(np.arange(20.0) + 100, np.arange(20.0))
    assert reverse.value == reverse.low == 0
    assert reverse.high == pytest.approx(1 - 0.025 ** (1 / 20))


@pytest.mark.parametrize(("count", "trials"), [(0, 3000), (1, 7), (5, 20), (20, 20)])
@pytest.mark.parametrize("confidence", [0.95, 0.999])
def test_the_interval_of_a_proportion_is_clopper_pearson(
    count: int, trials: int, confidence: float
) -> None:
    """By the beta distribution: what each bound leaves outside is exactly half of the error."""
    tail = (1 - confidence) / 2
    low = stats.beta.ppf(tail, count, trials - count + 1) if count else 0
    high = stats.beta.isf(tail, count + 1, trials - count) if count < trials else 1
    found = intervals.of_proportion(count, trials, confidence)
    assert found == pytest.approx((count / trials, low, high), abs=1e-9)


def test_nothing_of_3000_bounds_the_rate_as_published() -> None:
    assert intervals.of_proportion(0, 3000).high == pytest.approx(0.0012, abs=5e-5)


def test_too_few_non_members_are_refused() -> None:
    statistics.require([0.01], 300)
    statistics.require([0.01, 0.001], 3000)
    with pytest.raises(UserError, match="3,000 non-members and there are 2,999"):
        statistics.require([0.001], 2999)
    with pytest.raises(UserError, match="300 non-members"):
        statistics.require([0.01], 299)
    with pytest.raises(UserError, match="between 0 and 1"):
        statistics.require([1.5], 299)


def test_a_rate_without_enough_images_is_left_out() -> None:
    rng = np.random.default_rng(0)
    found = statistics.evaluate(rng.normal(size=(400, 2)), rng.normal(size=(400, 2)))
    assert found["tpr_at"]["0.001"] == {"needs": 3000, "has": 400}
    assert set(found["tpr_at"]["0.01"]) == {"tpr", "fpr"}


def test_level_and_threshold_are_not_chosen_on_what_is_scored() -> None:
    """Twenty levels of pure chance: the best of them looks like a leak, the scored one does not."""
    rng = np.random.default_rng(3)
    inside = best_inside = 0
    for seed in range(100):
        members, others = rng.normal(size=(2, 60, 20))
        own = statistics.evaluate(members, others, seed=seed, fpr=())
        inside += own["auc"]["low"] <= 0.5 <= own["auc"]["high"]
        best = max(statistics.auc(members[:, i], others[:, i]) for i in range(20))
        best_inside += best.low <= 0.5 <= best.high
    assert inside >= 88  # 95 expected
    assert best_inside < 75


def test_the_level_that_tells_is_found_and_its_rates_are_right() -> None:
    rng = np.random.default_rng(4)
    members, others = rng.normal(size=(2000, 3)), rng.normal(size=(2000, 3))
    members[:, 1] -= 2
    found = statistics.evaluate(members, others, fpr=(0.01,))
    assert found["level"] == 1
    assert found["auc"]["value"] == pytest.approx(stats.norm.cdf(2 / math.sqrt(2)), abs=0.02)
    assert found["balanced_accuracy"]["value"] == pytest.approx(stats.norm.cdf(1), abs=0.03)
    at = found["tpr_at"]["0.01"]
    assert at["fpr"]["low"] <= 0.01 <= at["fpr"]["high"]
    assert at["tpr"]["value"] == pytest.approx(stats.norm.cdf(2 - 2.326), abs=0.12)


def test_detectable_difference_is_detected_as_often_as_promised() -> None:
    """Shift d of normals gives AUC = Φ(d/√2)."""
    wanted = statistics.detectable(100, 100)
    d = math.sqrt(2) * stats.norm.ppf(wanted)
    rng = np.random.default_rng(5)
    hits = [
        statistics.auc(rng.normal(0, 1, 100), rng.normal(d, 1, 100)).low > 0.5 for _ in range(300)
    ]
    assert np.mean(hits) == pytest.approx(0.8, abs=0.08)
