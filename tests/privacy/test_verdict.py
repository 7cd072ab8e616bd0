"""What is said follows from the numbers: controls first, then findings at one error for all."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from underpaint.privacy import statistics, verdict


def numbers(**changes: Any) -> dict[str, Any]:
    """An audit that found nothing, with images enough."""
    ratio = {"count": 0, "p_value": 1.0}
    result: dict[str, Any] = {
        "members": 500,
        "non_members": 500,
        "detectable": 0.58,
        "membership": {"loss": {"auc": {"value": 0.51}, "p_value": 0.3}},
        "copies": {
            "spaces": {
                "pixels": {"samples": 64, "ratios": {"second": {"third": ratio, "quantile": ratio}}}
            }
        },
        "completion": {"p_value": 0.4, "advantage": 0.001},
        "dataset": {"p_value": 0.2},
        "controls": {
            "null": {"blind": {"passed": True}, "reference": None},
            "positive": {"passed": True, "best": 0.99},
        },
    }
    return result | changes


def test_nothing_found_is_said_only_if_it_could_have_been() -> None:
    assert verdict.judge(numbers(), 10)["verdict"] == "no leak found"
    for controls, words in (
        ({"null": {"blind": {"passed": False}, "reference": None}}, "without asking the model"),
        ({"null": {"blind": {"passed": True}, "reference": {"passed": False}}}, "reference model"),
        ({"positive": {"passed": False, "best": 0.7}}, "planted leak (AUC 0.70"),
    ):
        own = verdict.judge(numbers(controls=numbers()["controls"] | controls), 10)
        assert own["verdict"] == "no verdict"
        assert words in own["reasons"][0]
    alone = verdict.judge(numbers(controls=numbers()["controls"] | {"positive": None}), 10)
    assert alone["verdict"] == "no leak found"
    assert verdict.sentence(numbers() | alone) == (
        "no leak found: 500 members, 500 non-members; the smallest AUC that would be seen is 0.58; "
        "not checked against a positive control"
    )
    few = verdict.judge(numbers(detectable=0.95, members=16, non_members=16), 10)
    assert few["verdict"] == "no verdict"
    assert "16 members and 16 non-members are too few" in few["reasons"][0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"membership": {"loss": {"auc": {"value": 0.7}, "p_value": 1e-4}}}, "AUC 0.700"),
        ({"completion": {"p_value": 1e-4, "advantage": 0.2}}, "advantage 0.2000"),
        ({"dataset": {"p_value": 1e-4}}, "p = 0.0001"),
        (
            {
                "copies": {
                    "spaces": {
                        "features": {
                            "samples": 64,
                            "ratios": {
                                "next": {
                                    "third": {"count": 1, "p_value": 0.5},
                                    "quantile": {"count": 9, "p_value": 1e-4},
                                }
                            },
                        }
                    }
                }
            },
            "copies in features by the ratio next: 9 of 64",
        ),
    ],
)
def test_each_way_of_leaking_is_a_finding(changes: dict[str, Any], words: str) -> None:
    """Also with few images: what they show is shown. The error is shared by all tests."""
    found = verdict.judge(numbers(detectable=0.95, **changes), 10)
    assert found["verdict"] == "leak found"
    assert words in found["findings"][0]
    many = verdict.judge(numbers(**changes), 1000)  # 1e-4 is not below 5e-5
    assert many["verdict"] == "no leak found"


def test_sealed_images_are_judged_without_copies_and_completion() -> None:
    assert verdict.judge(numbers(copies=None, completion=None), 3)["verdict"] == "no leak found"
    assert verdict.count_tests(5, 0) == 6
    assert verdict.count_tests(5, 1) == 5 + 4 + 1 + 1


def test_attacks_accuse_no_more_often_than_said() -> None:
    """An attack at three levels on images that are alike, 120 audits."""
    rng = np.random.default_rng(0)
    p = [
        statistics.evaluate(*rng.normal(size=(2, 30, 3)), seed=seed, fpr=())["p_value"]
        for seed in range(120)
    ]
    assert np.sum(np.array(p) < verdict.ERROR) <= stats.binom.ppf(0.99, 120, verdict.ERROR)


def test_a_certain_leak_is_one_however_few_images_show_it() -> None:
    """Eight members below all of eight others come about by chance once in 12,870 times."""
    found = statistics.mann_whitney(np.arange(8.0), np.arange(8.0) + 50)
    assert found == pytest.approx(1 / 12870)
    assert statistics.mann_whitney(np.arange(8.0) + 50, np.arange(8.0)) == 1
