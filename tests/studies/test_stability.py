"""The outcomes of the stability study."""

import numpy as np

from studies.stability import run as stability


def test_outcomes_of_the_stability_study() -> None:
    outcome = stability.outcome
    falling = np.geomspace(1.2, 0.2, 100).tolist()
    assert outcome(falling, 1.05, 0.2, None) == "learned"
    assert outcome([*falling, 0.5], 2.5, 0.5, None) == "diverged"
    assert outcome([1.2] * 100, 1.01, 1.2, None) == "stuck"
    assert outcome(falling, 1.05, 0.2, "no finite gradient") == "failed"
