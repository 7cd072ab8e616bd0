"""The verdict on curves whose answer is known, and the interval's promise by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from underpaint.compare.verdict import Crossing, Point, crossing, more_seeds, verdict
from underpaint.errors import UserError
from underpaint.evaluation import intervals

LADDER = (0.25, 0.5, 1.0)


def curve(speed: float, noise: float = 0.0, slope: float = 0.05) -> list[Point]:
    """A score that falls by `slope` with each e-fold of compute, reached in 1/speed of it."""
    return [Point(c * 1e12, 0.2 - slope * math.log(speed * c) + noise) for c in LADDER]


def seeded(speed: float, noises: list[float]) -> dict[int, list[Point]]:
    return {seed: curve(speed, noise) for seed, noise in enumerate(noises, 1)}


def test_crossing_is_linear_in_log_compute_and_censored_outside() -> None:
    points = [Point(1.0, 3.0), Point(4.0, 1.0), Point(16.0, 0.0)]
    assert crossing(points, 2.0) == Crossing(2.0, "=")
    assert crossing(points, 0.5).compute == pytest.approx(8.0)
    assert crossing(points, 0.0) == Crossing(16.0, "=")
    assert crossing(points, 3.5) == Crossing(1.0, "≤")
    assert crossing(points, -0.1) == Crossing(16.0, ">")


def test_known_ratio_without_noise_but_a_seed_effect() -> None:
    """What a seed does to both arms cancels, however large; the spread is then nil."""
    effects = [0.0, 0.5, -0.3]
    found = verdict("masked", seeded(2.5, effects), seeded(1.0, effects), score="loss")
    assert found.answer == "pays"
    assert found.ratio == pytest.approx(0.4)
    assert (found.low, found.high) == pytest.approx((0.4, 0.4))
    assert found.target == pytest.approx(0.2 + np.mean(effects))


def test_sentence_of_an_arm_that_pays() -> None:
    arm = {s: curve(1 / r) for s, r in zip((1, 2, 3), (0.40, 0.43, 0.46), strict=True)}
    found = verdict("masked pre-training", arm, seeded(1.0, [0.0] * 3), score="FD")
    logs = np.log([0.40, 0.43, 0.46])
    half = 4.302653 * logs.std(ddof=1) / math.sqrt(3)  # t table, 2 degrees of freedom
    low, high = np.exp(logs.mean() - half), np.exp(logs.mean() + half)
    assert found.sentence == (
        f"masked pre-training reaches the baseline's final FD in 0.43 of its compute "
        f"(95 %: {low:.2f}–{high:.2f}, 3 seeds, 2 degrees of freedom): it pays"
    )
    timed = verdict("masked pre-training", arm, seeded(1.0, [0.0] * 3), score="FD", cost="time")
    assert timed.sentence == found.sentence.replace("compute", "time")


def test_a_slower_arm_does_not_pay() -> None:
    found = verdict("masked", seeded(0.5, [0.001, -0.001, 0.0]), seeded(1.0, [0.0] * 3))
    assert found.answer == "does not pay"
    assert found.relation == ">"
    assert [relation for relation, _ in found.ratios] == [">"] * 3
    assert "within 1× its compute with 3 of 3 seeds" in found.sentence


def test_an_arm_that_is_the_baseline_does_not_pay() -> None:
    base = seeded(1.0, [0.0] * 3)
    longer = {s: [*points, Point(2e12, 0.1)] for s, points in base.items()}
    found = verdict("same", longer, base)
    assert found.ratio == pytest.approx(1.0)
    assert found.answer == "does not pay"


def test_a_noisy_arm_is_undecided_and_says_how_many_seeds() -> None:
    arm = seeded(1.4, [0.0, 0.012, -0.02])
    found = verdict("masked", arm, seeded(1.0, [0.0] * 3), score="loss")
    assert found.answer == "undecided"
    assert found.high is not None
    assert found.high > 1
    assert found.more_seeds is not None
    assert f"run {found.more_seeds} more seed" in found.sentence
    logs = [math.log(r) for _, r in found.ratios]
    total = intervals.of_mean(logs)
    assert total is not None

    # with that many seeds of the same mean and spread the interval excludes 1, with one less not
    def half(n: int) -> float:
        return float(stats.t.ppf(0.975, n - 1) * np.std(logs, ddof=1) / math.sqrt(n))

    n = 3 + found.more_seeds
    assert half(n) < -total.value <= half(n - 1)


def test_one_seed_has_no_interval() -> None:
    found = verdict("masked", {1: curve(3.0)}, {1: curve(1.0)})
    assert found.answer == "undecided"
    assert (found.low, found.high) == (None, None)
    assert found.more_seeds == 2
    assert "no interval" in found.sentence


def test_an_arm_better_from_the_first_point_on_is_reported_as_at_most() -> None:
    found = verdict("fast", seeded(8.0, [0.001, 0.0, -0.001]), seeded(1.0, [0.0] * 3))
    assert found.relation == "≤"
    assert found.ratio == pytest.approx(0.25)
    assert (found.low, found.high) == (None, None)
    assert found.answer == "pays"  # by the scores at equal compute
    assert found.difference is not None
    assert found.difference.value == pytest.approx(-0.05 * math.log(8))
    assert "in at most 0.25 of its compute" in found.sentence


def test_seeds_censored_on_both_sides_are_undecided() -> None:
    arm = {1: curve(8.0), 2: curve(0.5), 3: curve(2.0)}
    found = verdict("wild", arm, seeded(1.0, [0.0] * 3))
    assert found.answer == "undecided"
    assert found.ratio is None


def test_more_seeds_of_no_difference_ends() -> None:
    assert more_seeds([1.0]) == 2
    assert more_seeds([-5.0, 5.0]) is None


def test_wrong_use_is_one_sentence() -> None:
    with pytest.raises(UserError, match="no seed in common"):
        verdict("a", {1: curve(1.0)}, {2: curve(1.0)})
    with pytest.raises(UserError, match="no finished run"):
        verdict("a", {1: []}, {1: curve(1.0)})
    longer = [Point(2 * c, s) for c, s in curve(1.0)]
    with pytest.raises(UserError, match="compare runs of one budget"):
        verdict("a", seeded(1.0, [0, 0]), {1: curve(1.0), 2: longer})


@pytest.mark.parametrize("seeds", [3, 5])
def test_the_interval_covers_the_truth_as_often_as_it_says(seeds: int) -> None:
    """Noise in every point, arms of different slopes, and an effect of the seed on both."""
    rng = np.random.default_rng(0)
    trials, truth, covered = 2000, 0.42, 0

    def noisy(points: list[Point], effect: float) -> list[Point]:
        return [Point(c, s + effect + rng.normal(0, 0.003)) for c, s in points]

    def arm() -> list[Point]:  # reaches 0.2, where the baseline ends, at `truth`
        return [Point(c * 1e12, 0.2 - 0.09 * math.log(c / truth)) for c in LADDER]

    for _ in range(trials):
        effects = rng.normal(0, 0.02, seeds)
        found = verdict(
            "arm",
            {s: noisy(arm(), e) for s, e in enumerate(effects)},
            {s: noisy(curve(1.0), e) for s, e in enumerate(effects)},
        )
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= truth <= found.high
    # 4 standard errors of a share of 0.95 in 2,000 trials
    assert abs(covered / trials - 0.95) < 4 * math.sqrt(0.95 * 0.05 / trials)
