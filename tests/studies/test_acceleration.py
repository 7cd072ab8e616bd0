"""The acceleration study: its masked arm, its page, and what the planner takes from it."""

import json
from pathlib import Path

import pytest

from studies.acceleration import page as acceleration
from studies.lib import compared
from studies.masks import run as masks
from underpaint.compare import study
from underpaint.training import cost

ROOT = Path(__file__).parents[2] / "studies"


def test_the_masked_arm_is_the_best_of_those_tried_at_equal_compute() -> None:
    for first in masks.FIRST:
        spent = cost.describe(masks.recipe(first, 1.0), (64, 64), 3, 8)["flops"]
        assert spent == pytest.approx(1.8e13, rel=1e-2)
    scores = {
        name: unit["score"]
        for name, unit in json.loads((ROOT / "masks" / "results.json").read_text())["units"].items()
    }
    assert set(scores) == {first.name for first in masks.FIRST}
    best = next(f for f in masks.FIRST if f.name == min(scores, key=lambda n: scores[n]))
    found = study.load(ROOT / "acceleration" / "study.yaml")
    stage = found.arms["masked"].settings["stages"]["masked"]
    assert stage == {"mask": best.mask, "block": best.block, "rate": best.rate, "batch": best.batch}
    assert found.arms["masked"].shares == {"masked": best.share, "whole": 1 - best.share}


def test_the_page_of_acceleration_tells_the_figure_first_and_then_why(tmp_path: Path) -> None:
    scores = {("tuning/unmasked", 32): 0.10, ("before/masked", 32): 0.08}
    scores |= {("tuning/unmasked", 4): 0.05, ("before/masked", 4): 0.05}
    settings = {"space": {"patch": 4}, "stages": {"whole": {"learning_rate": 0.004, "batch": 32}}}
    tried = [
        {"run": f"{where}/{batch}", "arm": "masked", "score": score, "seconds": 90.0}
        | {"settings": {"stages.whole.batch": batch}}
        for (where, batch), score in scores.items()
    ]
    verdict = {"ratio": 0.8, "relation": "=", "sentence": "masked reaches it in 0.8"}
    runs = [
        {"arm": arm, "point": point, "seed": seed, "score": (level + seed / 1000) / point}
        | {"flops": 1e6 * point, "images": images * point, "seconds": 30.0}
        for arm, level, images in (
            ("unmasked", 0.03, 1000),
            ("masked", 0.02, 4600),
            ("other", 0.025, 1),
        )
        for point in (0.5, 1.0)
        for seed in (1, 2)
    ]
    results = {
        "verdicts": {"masked": verdict},
        "by_seconds": {"masked": verdict},
        "settings": {"masked": settings},
        "runs": runs,
        "trials": tried[:1],
        "earlier": tried[1:],
        "baseline": "unmasked",
        "study": {"arms": {"masked": {"shares": {"masked": 0.4, "whole": 0.6}}}},
        "seconds_an_image": {"unmasked": {"whole": 0.03}, "masked": {"masked": 0.01}},
    }
    assert compared.beside(results, "masked", 0.5).rows == [
        ["unmasked", "0.0630", "+0.0200 (+0.0200 to +0.0200)", "2"],
        ["masked", "0.0430", "–", "2"],
        ["other", "0.0530", "+0.0100 (+0.0100 to +0.0100)", "2"],
    ]
    # 600 whole images cost 0.6 of the FLOPs, 4,000 masked ones the rest
    assert "10.0 times fewer FLOPs" in compared.slower(results, "masked", "unmasked")
    assert "3.0 times less time" in compared.slower(results, "masked", "unmasked")
    controls = acceleration.controls
    assert "other +0.0100 (+0.0100 to +0.0100). So the masks do more" in controls(results)
    noisy = [run | {"score": 0.043} if run["arm"] == "other" else run for run in runs]
    assert "it is not shown that the masks do more" in controls(results | {"runs": noisy})
    text = acceleration.page(results).write(tmp_path / "page.html").read_text()
    assert "The claim of 0.25 of the compute is not reached: masked reaches it in 0.8." in text
    assert "20.0 % less error in batches of 32 at a learning rate of 0.004" in text
    assert "0.0 % less error in batches of 4" in text
    assert "12 runs took 6 core-minutes and that of 2 trials 3, one thread" in text
    for relation, ratio, word in (("=", 0.25, "is reached"), (">", 0.2, "is not reached")):
        verdict |= {"relation": relation, "ratio": ratio}
        assert word in acceleration.answer(results)[0]
