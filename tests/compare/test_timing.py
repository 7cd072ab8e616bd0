"""Seconds an image of the arms of a study."""

import pytest

from underpaint.compare import timing


def test_speeds_of_arms_do_not_depend_on_a_machine_that_drifts() -> None:
    true = {("unmasked", "whole"): 0.025, ("masked", "masked"): 0.003, ("masked", "whole"): 0.025}
    passes = [{key: pace * value for key, value in true.items()} for pace in (1.3, 1, 1.1, 1.2, 1)]
    passes[3]["masked", "masked"] *= 2  # one that was disturbed
    found = timing.paired(passes)
    assert found == {key: pytest.approx(value) for key, value in true.items()}
