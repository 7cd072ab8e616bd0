"""Estimates with confidence intervals.

That of a proportion is exact (Clopper & Pearson 1934), that of a mean by Student's t.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """An estimate with its confidence interval."""

    value: float
    low: float
    high: float


def of_proportion(count: int, trials: int, confidence: float = 0.95) -> Interval:
    """The exact interval of `count` of `trials`. Raises ValueError where that is no proportion."""
    from scipy import stats  # takes a second to import

    interval = stats.binomtest(count, trials).proportion_ci(confidence, method="exact")
    return Interval(count / trials, float(interval.low), float(interval.high))


def of_mean(values: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """The t-interval of the mean of `values`; None for fewer than two."""
    n = len(values)
    if n < 2:
        return None
    from scipy import stats

    mean = float(np.mean(values))
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return Interval(mean, mean - half, mean + half)
