"""How sure an attack is, and how sure we are of it: AUC, rates at a threshold, their intervals.

Scores are low for members. With m members of scores s and n non-members of scores r

    AUC = P(s < r) + P(s = r)/2          estimated by the mean of ψ(s_i, r_j), ψ = 1, 1/2 or 0
    var = var_i(ψ̄_i.)/m + var_j(ψ̄_.j)/n    with ψ̄_i. and ψ̄_.j the means over one index

(DeLong, DeLong & Clarke-Pearson 1988; by mid-ranks as in Sun & Xu 2014). Counts have the exact
interval of Clopper & Pearson 1934. Whatever is chosen, a noise level or a threshold, is chosen on
one half of the images and scored on the other; a rate of false positives that so few images cannot
show is refused (Carlini et al. 2022, arXiv 2112.03570, tell why rates matter more than averages).
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from underpaint.errors import UserError

__all__ = [
    "NEEDED",
    "Interval",
    "auc",
    "by_chance",
    "clopper_pearson",
    "detectable",
    "evaluate",
    "halves",
    "needed",
    "rates",
    "require",
]

Scores = NDArray[np.float64]

NEEDED = {0.01: 300, 0.001: 3000}  # non-members for a rate of false positives: 0 of 3,000 bounds it


class Interval(NamedTuple):
    """An estimate with its confidence interval."""

    value: float
    low: float
    high: float

    def excludes(self, value: float) -> bool:
        """Whether `value` lies outside."""
        return not self.low <= value <= self.high


def auc(members: Scores, others: Scores, confidence: float = 0.95) -> Interval:
    """P(a member scores lower than a non-member), with DeLong's interval.

    Where no pair, or every pair, is in order DeLong's variance is zero; then the interval is that
    of a proportion with min(m, n) trials and as many successes, which is wide enough.
    Raises ValueError for fewer than two of a side.
    """
    m, n = len(members), len(others)
    if min(m, n) < 2:
        raise ValueError(f"{m} members and {n} non-members: an AUC needs two of each")
    both = stats.rankdata(np.concatenate([members, others]))  # mid-ranks settle ties
    # how many of the other side each one stands below, as a share
    of_member = 1 - (both[:m] - stats.rankdata(members)) / n
    of_other = (both[m:] - stats.rankdata(others)) / m
    value = float(of_other.mean())
    if value in (0.0, 1.0):
        low, high = clopper_pearson(round(value) * min(m, n), min(m, n), confidence)
        return Interval(value, low, high)
    deviation = math.sqrt(of_member.var(ddof=1) / m + of_other.var(ddof=1) / n)
    reach = float(stats.norm.ppf(0.5 + confidence / 2)) * deviation
    return Interval(value, max(0.0, value - reach), min(1.0, value + reach))


def by_chance(
    members: Scores, others: Scores, alternative: Literal["greater", "two-sided"] = "greater"
) -> float:
    """P(an AUC as high, or as far from 1/2, if both sides were drawn alike): Mann–Whitney.

    Exact for few images without ties, where DeLong's interval is only near.
    """
    return float(stats.mannwhitneyu(others, members, alternative=alternative).pvalue)


def clopper_pearson(count: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact interval of a proportion: `count` of `trials`."""
    if not 0 <= count <= trials or trials < 1:
        raise ValueError(f"{count} of {trials} is no proportion")
    tail = (1 - confidence) / 2
    low = float(stats.beta.ppf(tail, count, trials - count + 1)) if count else 0.0
    high = float(stats.beta.isf(tail, count + 1, trials - count)) if count < trials else 1.0
    return low, high


def needed(rate: float) -> int:
    """Non-members that a rate of false positives asks for: 300 for 1 %, 3,000 for 0.1 %."""
    return NEEDED.get(rate, math.ceil(3 / rate - 1e-9))


def require(rates: list[float], others: int) -> None:
    """Raise UserError unless `others` non-members can show each rate of false positives."""
    for rate in rates:
        if not 0 < rate < 1:
            raise UserError(f"false-positive rate {rate:g}: give a share between 0 and 1, as 0.01")
        if others < needed(rate):
            raise UserError(
                f"a false-positive rate of {rate:.3g} needs {needed(rate):,} non-members and there "
                f"are {others:,}; give more of them or a higher rate"
            )


def detectable(members: int, others: int, error: float = 0.025, power: float = 0.8) -> float:
    """The AUC that a one-sided test with this error would tell from 0.5 with this power.

    From the variance of the Mann–Whitney statistic without a difference, (m + n + 1)/(12 m n).
    """
    deviation = math.sqrt((members + others + 1) / (12 * members * others))
    reach = stats.norm.isf(error) + stats.norm.ppf(power)
    return min(1.0, 0.5 + float(reach) * deviation)


def halves(count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`count` images in two random halves, ascending: one to choose on, one to score on."""
    order = np.random.default_rng([seed, count]).permutation(count)
    return np.sort(order[: count // 2]), np.sort(order[count // 2 :])


def rates(
    members: Scores, others: Scores, threshold: float, confidence: float = 0.95
) -> dict[str, Interval]:
    """True and false positives of "member, if the score is at most the threshold"."""
    found = {}
    for name, scores in (("tpr", members), ("fpr", others)):
        count = int((scores <= threshold).sum())
        low, high = clopper_pearson(count, len(scores), confidence)
        found[name] = Interval(count / len(scores), low, high)
    return found


def evaluate(
    members: Scores,
    others: Scores,
    *,
    seed: int = 0,
    fpr: tuple[float, ...] = (0.01, 0.001),
    confidence: float = 0.95,
) -> dict[str, Any]:
    """One attack: scores [m, levels] of members and [n, levels] of non-members.

    The level with the highest AUC, and each threshold, come from one half of both sides; what is
    returned was measured on the other. Rates for which there are too few non-members are None, with
    the number they need. Values are plain numbers and lists, ready for JSON.
    """
    choose_m, score_m = halves(len(members), seed)
    choose_n, score_n = halves(len(others), seed)
    first, second = members[choose_m], others[choose_n]
    level = int(np.argmax([auc(first[:, i], second[:, i]).value for i in range(members.shape[1])]))
    a, b = first[:, level], second[:, level]
    s, r = members[score_m, level], others[score_n, level]
    result: dict[str, Any] = {
        "level": level,
        "auc": auc(s, r, confidence)._asdict(),
        "p_value": by_chance(s, r),
        "two_sided": by_chance(s, r, "two-sided"),
        "auc_by_level": [auc(members[:, i], others[:, i]).value for i in range(members.shape[1])],
        "scored": [len(s), len(r)],
    }
    # two counts, each with half of the error: their mean is then inside at the whole confidence
    found = rates(s, r, _most_accurate(a, b), (1 + confidence) / 2)
    result["balanced_accuracy"] = Interval(
        (1 + found["tpr"].value - found["fpr"].value) / 2,
        (1 + found["tpr"].low - found["fpr"].high) / 2,
        (1 + found["tpr"].high - found["fpr"].low) / 2,
    )._asdict()
    result["tpr_at"] = {}
    for rate in fpr:
        if len(others) < needed(rate):
            result["tpr_at"][f"{rate:g}"] = {"needs": needed(rate), "has": len(others)}
            continue
        found = rates(s, r, _at_rate(b, rate), confidence)
        result["tpr_at"][f"{rate:g}"] = {name: own._asdict() for name, own in found.items()}
    return result


def _most_accurate(members: Scores, others: Scores) -> float:
    """The threshold with the highest balanced accuracy."""
    values = np.unique(np.concatenate([members, others]))
    below = np.searchsorted(np.sort(members), values, "right") / len(members)
    false = np.searchsorted(np.sort(others), values, "right") / len(others)
    return float(values[np.argmax(below - false)])


def _at_rate(others: Scores, rate: float) -> float:
    """The highest threshold at or below which at most this share of the non-members lies."""
    ordered = np.sort(others)
    allowed = math.floor(rate * len(ordered) + 1e-9)
    # just below the first score that is one too many
    return float(np.nextafter(ordered[allowed], -np.inf))
