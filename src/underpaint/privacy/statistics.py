"""How sure an attack is, and how sure we are of it: AUC, rates at a threshold, their intervals.

Scores are low for members. With m members of scores s and n non-members of scores r

    AUC = P(s < r) + P(s = r)/2          estimated by the mean of ψ(s_i, r_j), ψ = 1, 1/2 or 0
    var = var_i(ψ̄_i.)/m + var_j(ψ̄_.j)/n    with ψ̄_i. and ψ̄_.j the means over one index

(DeLong, DeLong & Clarke-Pearson 1988; by mid-ranks as in Sun & Xu 2014). Counts have an exact
interval. Whatever is chosen, a noise level or a threshold, is chosen on one half of the images (the
calibration split) and evaluated on the other; a false-positive rate that so few images cannot show
is refused (Carlini et al. 2022, arXiv 2112.03570, explain why rates matter more than averages).
"""

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from underpaint.errors import UserError
from underpaint.evaluation.intervals import Interval, of_proportion

Scores = NDArray[np.float64]

REQUIRED = {0.01: 300, 0.001: 3000}  # non-members for a false-positive rate: 0 of 3,000 bound it


def auc(members: Scores, non_members: Scores, confidence: float = 0.95) -> Interval:
    """P(a member scores lower than a non-member), with DeLong's interval.

    Where no pair, or every pair, is in order DeLong's variance is zero; then the interval is that
    of a proportion with min(m, n) trials and as many successes, which is wide enough.
    Raises ValueError for fewer than two members or non-members.
    """
    m, n = len(members), len(non_members)
    if min(m, n) < 2:
        raise ValueError(f"{m} members and {n} non-members: an AUC needs two of each")
    both = stats.rankdata(np.concatenate([members, non_members]))  # mid-ranks settle ties
    # the share of the other set that each one lies below
    of_member = 1 - (both[:m] - stats.rankdata(members)) / n
    of_non_member = (both[m:] - stats.rankdata(non_members)) / m
    value = float(of_non_member.mean())
    if value in (0.0, 1.0):
        return of_proportion(round(value) * min(m, n), min(m, n), confidence)
    deviation = math.sqrt(of_member.var(ddof=1) / m + of_non_member.var(ddof=1) / n)
    reach = float(stats.norm.ppf(0.5 + confidence / 2)) * deviation
    return Interval(value, max(0.0, value - reach), min(1.0, value + reach))


def mann_whitney(
    members: Scores, non_members: Scores, alternative: Literal["greater", "two-sided"] = "greater"
) -> float:
    """P(an AUC as high, or as far from 1/2, if both had one distribution): the Mann–Whitney test.

    Exact for few images without ties, where DeLong's interval is approximate.
    """
    return float(stats.mannwhitneyu(non_members, members, alternative=alternative).pvalue)


def required_non_members(rate: float) -> int:
    """Non-members required for a false-positive rate: 300 for 1 %, 3,000 for 0.1 %."""
    return REQUIRED.get(rate, math.ceil(3 / rate - 1e-9))


def require(rates: list[float], non_members: int) -> None:
    """Raise UserError unless `non_members` images suffice for each false-positive rate."""
    for rate in rates:
        if not 0 < rate < 1:
            raise UserError(f"false-positive rate {rate:g}: give a share between 0 and 1, as 0.01")
        if non_members < (needed := required_non_members(rate)):
            raise UserError(
                f"a false-positive rate of {rate:.3g} needs {needed:,} non-members and there "
                f"are {non_members:,}; give more of them or a higher rate"
            )


def detectable(members: int, non_members: int, error: float = 0.025) -> float:
    """The AUC that a one-sided test with this error would tell from 0.5 in four cases of five.

    From the variance of the Mann–Whitney statistic without a difference, (m + n + 1)/(12 m n).
    """
    deviation = math.sqrt((members + non_members + 1) / (12 * members * non_members))
    reach = stats.norm.isf(error) + stats.norm.ppf(0.8)
    return min(1.0, 0.5 + float(reach) * deviation)


def calibration_split(count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Two random halves of `count` images, ascending: one to calibrate on, one to evaluate on."""
    order = np.random.default_rng([seed, count]).permutation(count)
    return np.sort(order[: count // 2]), np.sort(order[count // 2 :])


def rates(
    members: Scores, non_members: Scores, threshold: float, confidence: float = 0.95
) -> dict[str, Interval]:
    """True and false positives of "member, if the score is at most the threshold"."""
    return {
        name: of_proportion(int((scores <= threshold).sum()), len(scores), confidence)
        for name, scores in (("tpr", members), ("fpr", non_members))
    }


def evaluate(
    members: Scores,
    non_members: Scores,
    *,
    seed: int = 0,
    fpr: tuple[float, ...] = (0.01, 0.001),
    confidence: float = 0.95,
) -> dict[str, Any]:
    """One attack: scores [m, levels] of members and [n, levels] of non-members.

    The level with the highest AUC, and each threshold, come from the calibration split; what is
    returned was measured on the other half. Rates for which there are too few non-members have the
    number they need instead. Values are plain numbers and lists, ready for JSON.
    """
    choose_m, score_m = calibration_split(len(members), seed)
    choose_n, score_n = calibration_split(len(non_members), seed)
    first, second = members[choose_m], non_members[choose_n]
    level = int(np.argmax(auc_by_level(first, second)))
    a, b = first[:, level], second[:, level]
    s, r = members[score_m, level], non_members[score_n, level]
    result: dict[str, Any] = {
        "level": level,
        "auc": auc(s, r, confidence)._asdict(),
        "p_value": mann_whitney(s, r),
        "two_sided": mann_whitney(s, r, "two-sided"),
        "auc_by_level": auc_by_level(members, non_members),
        "scored": [len(s), len(r)],
    }
    # two counts, each with half of the error: their mean is then inside at the whole confidence
    share = rates(s, r, _most_accurate(a, b), (1 + confidence) / 2)
    result["balanced_accuracy"] = Interval(
        (1 + share["tpr"].value - share["fpr"].value) / 2,
        (1 + share["tpr"].low - share["fpr"].high) / 2,
        (1 + share["tpr"].high - share["fpr"].low) / 2,
    )._asdict()
    result["tpr_at"] = {}
    for rate in fpr:
        found: dict[str, Any] = {"needs": required_non_members(rate), "has": len(non_members)}
        if found["has"] >= found["needs"]:
            share = rates(s, r, _at_rate(b, rate), confidence)
            found = {name: interval._asdict() for name, interval in share.items()}
        result["tpr_at"][f"{rate:g}"] = found
    return result


def auc_by_level(members: Scores, non_members: Scores) -> list[float]:
    """The AUC of scores [m, levels] and [n, levels] at each level."""
    return [auc(members[:, i], non_members[:, i]).value for i in range(members.shape[1])]


def _most_accurate(members: Scores, non_members: Scores) -> float:
    """The threshold with the highest balanced accuracy."""
    values = np.unique(np.concatenate([members, non_members]))
    below = np.searchsorted(np.sort(members), values, "right") / len(members)
    false = np.searchsorted(np.sort(non_members), values, "right") / len(non_members)
    return float(values[np.argmax(below - false)])


def _at_rate(non_members: Scores, rate: float) -> float:
    """The highest threshold at or below which at most this share of the non-members lies."""
    ordered = np.sort(non_members)
    allowed = math.floor(rate * len(ordered) + 1e-9)
    # just below the first score that is one too many
    return float(np.nextafter(ordered[allowed], -np.inf))
