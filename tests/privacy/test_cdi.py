"""The test of a data set accuses no more often than it says, and finds weak traces together."""

import numpy as np
import pytest
from scipy import stats

from underpaint.privacy import cdi


def test_false_positives_under_the_null() -> None:
    rng = np.random.default_rng(0)
    found = [
        cdi.infer(rng.normal(size=(60, 6)), rng.normal(size=(80, 6)), splits=9, seed=i)["p_value"]
        for i in range(120)
    ]
    wrong = int((np.array(found) < 0.05).sum())
    # at 5 %: more than 12 of 120 would come in less than one of a hundred such tests
    assert wrong <= stats.binom.ppf(0.99, 120, 0.05)


def test_weak_traces_add_up() -> None:
    rng = np.random.default_rng(1)
    suspects, never = rng.normal(size=(300, 6)), rng.normal(size=(300, 6))
    suspects -= 0.2
    assert cdi.infer(suspects, never)["p_value"] < 0.01


def test_the_wrong_direction_is_learned_not_assumed() -> None:
    rng = np.random.default_rng(2)
    suspects, never = rng.normal(size=(300, 3)), rng.normal(size=(300, 3))
    suspects[:, 1] += 0.6
    assert cdi.infer(suspects, never)["p_value"] < 0.01


def test_the_fit_is_a_minimum() -> None:
    rng = np.random.default_rng(3)
    features = rng.normal(size=(400, 2))
    positive = rng.random(400) < 1 / (1 + np.exp(-(2 * features[:, 0] - features[:, 1] + 0.5)))
    weights = cdi.fit(features, positive, penalty=0.0)
    assert weights == pytest.approx([2, -1, 0.5], abs=0.45)
    residual = positive - 1 / (1 + np.exp(-cdi.predict(weights, features)))
    assert features.T @ residual == pytest.approx([0, 0], abs=0.05)  # the gradient


def test_too_few_images() -> None:
    with pytest.raises(ValueError, match="eight"):
        cdi.infer(np.zeros((7, 2)), np.zeros((9, 2)))
