"""Data-set inference: was this collection used for training, taken as a whole?

A single image gives little evidence; a hundred together give much (CDI, Dubiński et al. 2025, arXiv
2411.12858). From all scores of the attacks a logistic model learns, on half of the suspects and
half of images of the same distribution that were never used, which is which. On the other halves

    H0: the suspects' mean score is not higher than that of the never-used images

is tested by Welch's one-sided t. The p-values of several random splits, which depend on each other
in ways unknown, are combined as twice their median: valid whatever the dependence (Rüger 1978;
Meinshausen et al. 2009). So the chance of accusing an honest model is at most the level asked for.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from underpaint.privacy.statistics import calibration_split

Features = NDArray[np.float64]
Scale = Callable[[Features, Features], Features]  # features, and those that the scale is of


def fit(
    features: Features, positive: NDArray[np.bool_], penalty: float = 1.0
) -> NDArray[np.float64]:
    """Weights [F + 1] of logistic regression with an L2 penalty; the last is the constant.

    Minimises Σ log(1 + exp(−y f)) + penalty/2 ‖w‖², y = ±1; `features` [n, F] of about unit scale.
    """
    sign = np.where(positive, 1.0, -1.0)
    design = np.concatenate([features, np.ones((len(features), 1))], 1)
    penalties = np.full(design.shape[1], penalty)
    penalties[-1] = 0.0  # the constant is free

    def value(w: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        margin = sign * (design @ w)
        loss = float(np.logaddexp(0, -margin).sum() + 0.5 * (penalties * w**2).sum())
        return loss, design.T @ (-sign * special.expit(-margin)) + penalties * w

    start = np.zeros(design.shape[1])
    return np.asarray(optimize.minimize(value, start, jac=True, method="L-BFGS-B").x, np.float64)


def predict(weights: NDArray[np.float64], features: Features) -> NDArray[np.float64]:
    """The logit of being a suspect, [n]."""
    return np.asarray(features @ weights[:-1] + weights[-1], np.float64)


def scaled(features: Features, base: Features) -> Features:
    """Each column by the median and spread of `base`; errors have long tails, so in logarithms."""
    both = [np.sign(v) * np.log1p(np.abs(v)) for v in (features, base)]
    deviation = both[1].std(0)
    return np.asarray((both[0] - np.median(both[1], 0)) / np.where(deviation > 0, deviation, 1.0))


def separate(
    one: Features, two: Features, seed: int, scale: Scale, penalty: float = 1.0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Logits of belonging to `one`, of a half of each set, learned on the other halves."""
    fit_one, test_one = calibration_split(len(one), seed)
    fit_two, test_two = calibration_split(len(two), seed + 1)
    known = np.concatenate([one[fit_one], two[fit_two]])
    weights = fit(scale(known, known), np.arange(len(known)) < len(fit_one), penalty)
    first, second = (scale(part, known) for part in (one[test_one], two[test_two]))
    return predict(weights, first), predict(weights, second)


def infer(
    suspects: Features, never: Features, *, splits: int = 25, seed: int = 0
) -> dict[str, Any]:
    """Test whether `suspects` [m, F] were used, against images `never` [n, F] that were not.

    Returns the aggregated p-value, those of the splits and the numbers of images.
    Raises ValueError for fewer than eight of either.
    """
    if min(len(suspects), len(never)) < 8:
        raise ValueError(f"{len(suspects)} suspects and {len(never)} others: give eight of each")
    p_values = []
    for split in range(splits):
        split_seed = int(np.random.default_rng([seed, split]).integers(2**31))
        one, two = separate(suspects, never, split_seed, scaled)
        if one.std() + two.std() == 0:
            p_values.append(1.0)
            continue
        test = stats.ttest_ind(one, two, equal_var=False, alternative="greater")
        p_values.append(float(test.pvalue))
    return {
        "p_value": min(1.0, 2 * float(np.median(p_values))),
        "splits": p_values,
        "suspects": len(suspects),
        "never_used": len(never),
        "features": suspects.shape[1],
    }
