"""The study of privacy: whose pictures, equal compute, and what the page may say."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from studies.privacy import arms, page
from studies.privacy import run as privacy


def test_the_study_of_privacy_takes_the_first_length_that_leaks() -> None:
    names, lengths, chosen = privacy.PILOTS, privacy.LENGTHS, privacy.chosen

    def pilots(*values: float) -> dict[str, Any]:
        return {name: {"auc": {"value": v}} for name, v in zip(names, values, strict=False)}

    assert chosen({}) is None
    assert chosen(pilots(0.6)) is None  # the next is not done yet
    assert chosen(pilots(0.6, 0.7)) == {"length": lengths[1], "reached": True}
    assert chosen(pilots(0.6, 0.8, 0.9)) == {"length": lengths[1], "reached": True}
    assert chosen(pilots(0.6, 0.6, 0.6)) == {"length": lengths[2], "reached": False}


def test_privacy_pools_are_disjoint_and_drawn_anew_for_each_seed() -> None:
    private = np.random.default_rng(0).random(40_000) < 0.26
    first, again, other = (arms.pools(private, seed, 1.0) for seed in (1, 1, 2))
    assert {name: len(ids) for name, ids in first.items() if name != "public"} == arms.COUNTS
    every = np.concatenate(list(first.values()))
    assert len(np.unique(every)) == len(every)
    for name, ids in first.items():
        assert (ids == again[name]).all()
        assert private[ids].all() == (name != "public")
    assert (first["public"] == other["public"]).all()
    expected = 500 * 500 / private.sum()  # of two independent draws
    assert len(np.intersect1d(first["members"], other["members"])) < 2.5 * expected
    with pytest.raises(ValueError, match=r"fewer than the 4500 that a seed draws"):
        arms.pools(private[:4000], 1, 1.0)


def test_privacy_arms_spend_the_same_and_see_members_as_often_as_said(tmp_path: Path) -> None:
    runs = {arm: arms.recipe(arm, 1, 2e13, 1.0, tmp_path) for arm in arms.ARMS}
    told = {arm: arms.described(run) for arm, run in runs.items()}
    spent = {arm: sum(stage["flops"] for stage in own) for arm, own in told.items()}
    assert spent == pytest.approx(dict.fromkeys(spent, 2e13), rel=2e-2)
    del spent["public-dp"]  # its steps are large
    assert spent == pytest.approx(dict.fromkeys(spent, 2e13), rel=2e-3)
    seen = {arm: arms.exposures(arm, own, 500) for arm, own in told.items()}
    assert seen["public"] == {"exposures": 0.0, "share_seen": 0.0}
    images = runs["ordinary"].stages["1-members"].images
    assert seen["ordinary"] == {"exposures": images / 500, "share_seen": 1.0}
    # 90 % of 64 in blocks of four: 56 are hidden, 8 shown
    images = runs["fixed-public"].stages["1-members"].images
    assert seen["fixed-public"] == {"exposures": images / 8 / 500, "share_seen": 1 / 8}
    assert seen["fresh-public"] == {"exposures": images / 8 / 500, "share_seen": 1.0}
    two = runs["parts-whole"].stages
    masked, whole = two["1-members"].images, two["2-members"].images
    assert seen["parts-whole"]["exposures"] == pytest.approx((masked / 4 + whole) / 500)
    # checkpoints at every quarter of the FLOPs, though a masked stage has many more images
    for arm, run in runs.items():
        lengths = np.cumsum([stage.images for stage in run.stages.values()])
        there = {*range(0, lengths[-1], run.train.checkpoint_every), *lengths.tolist()} - {0}
        shares = [share for _, share in arms.points(told[arm], sorted(there))]
        assert shares == pytest.approx([0.25, 0.5, 0.75, 1.0], abs=0.126)


def _privacy_units(auc: dict[str, float], frechet: dict[str, float]) -> dict[str, Any]:
    def unit(arm: str, seed: int) -> dict[str, Any]:
        off = (0.0, 0.01, -0.01)[seed - 1]
        best = {"auc": {"value": auc[arm] + off}, "tpr_at": {"0.01": {"needs": 300, "has": 30}}}
        curve = [
            {"frechet": distance, "auc": {"value": value}}
            for distance, value in ((100.0, 0.4), (40.0, auc[arm] - 0.1))
        ]
        return {"attacks": {"best": best}, "frechet": frechet[arm] * (1 + off), "curve": curve}

    return {f"{arm}_{seed}": unit(arm, seed) for arm in auc for seed in (1, 2, 3)}


def test_the_curve_of_an_arm_is_a_mean_over_the_seeds_that_have_the_point() -> None:
    def point(share: float, frechet: float, auc: float) -> dict[str, Any]:
        return {"share": share, "frechet": frechet, "auc": {"value": auc}}

    units = {
        "parts_1": {"curve": [point(1.0, 50, 0.6)]},  # its other checkpoints are gone
        "parts_2": {"curve": [point(0.25, 90, 0.5), point(1.0, 70, 0.8)]},
        "ordinary_1": {"curve": [point(1.0, 10, 0.9)]},
    }
    found = page.along(units, "parts")
    assert found == [(90, 0.5), (60, pytest.approx(0.7))]


def test_leaks_are_compared_at_a_quality_that_both_runs_reach() -> None:
    at = page.at_equal_quality

    def curve(*points: tuple[float, float]) -> list[dict[str, Any]]:
        return [{"frechet": distance, "auc": {"value": auc}} for distance, auc in points]

    long = curve((80, 0.5), (40, 0.6), (20, 0.8))
    assert at(curve((40, 0.55)), long) == pytest.approx((0.55, 0.6))
    # half way between 40 and 20 in the logarithm; and the one that ends worse sets the quality
    assert at(long, curve((90, 0.5), (math.sqrt(800), 0.9))) == pytest.approx((0.7, 0.9))
    assert at(long, curve((100, 0.5), (90, 0.6))) is None


def test_the_page_on_privacy_tells_what_was_computed_in_which_precision() -> None:
    done = page._done
    told: dict[str, Any] = {"data": None, "pilot": {"runs": []}, "scale": 1, "units": {}}
    assert not any("computed in" in line for line in done(told))
    names = ("ordinary_1", "parts_1", "public_1")
    told["units"] = {
        name: {"seconds": 60.0, "precision": "bf16"}
        | {"sampling": {"sampler": "heun", "steps": 10}, "curve": [{}, {}]}
        for name in names
    }
    assert "Samples and attacks were computed in bf16." in done(told)
    assert "Samples were drawn by heun, 10 steps." in done(told)
    assert not any("were gone" in line for line in done(told))
    told["units"]["parts_1"]["curve"] = [{}]
    assert any(line.startswith("Of parts_1 the checkpoints") for line in done(told))
    told["units"]["parts_1"]["precision"] = "fp32"
    assert "Samples and attacks were computed in bf16, of parts_1 in fp32." in done(told)


def test_the_answer_on_privacy_tells_failures_first() -> None:
    pilot = {"wanted": 0.7, "chosen": {"length": 2e13, "reached": True}}
    auc = {"ordinary": 0.9, "parts-whole": 0.6, "parts": 0.95, "public": 0.5}
    frechet = {"ordinary": 50.0, "parts-whole": 60.0, "parts": 70.0, "public": 100.0}
    told = {"pilot": pilot, "units": _privacy_units(auc, frechet)}
    lines = page.answer(told)
    assert lines[0] == (
        "Does masked training protect? Of 2 comparisons the claim fails in 1, 0 are undecided, "
        "and it holds in 1. At equal quality (compared afterwards) 1 of 2 leak less, and 1 more."
    )
    assert "(a): fails: it leaks more. AUC 0.950 against 0.900" in lines[1]
    assert "(a): holds: it protects. AUC 0.600 against 0.900" in lines[2]
    assert lines[2].endswith(
        "Less is not nothing: its own AUC stays above 0.5. "
        "At equal quality the Loss attack's AUC differs by -0.300 (-0.300 to -0.300)."
    )

    def verdict(auc: dict[str, float], frechet: dict[str, float]) -> str:
        return str(page.claims(_privacy_units(auc, frechet))[0]["verdict"])

    # protected, but no better than without the private pictures; and nothing to protect from
    pair = {"parts": 0.5, "ordinary": 0.9, "public": 0.5}
    assert verdict(pair, {"parts": 130.0, "ordinary": 50.0, "public": 100.0}) == "fails"
    assert verdict(pair, {"parts": 100.0, "ordinary": 50.0, "public": 100.0}) == "undecided"
    assert verdict(pair, {"parts": 60.0, "ordinary": 50.0, "public": 100.0}) == "holds"
    pair["ordinary"] = 0.5
    assert verdict(pair, {"parts": 60.0, "ordinary": 50.0, "public": 100.0}) == "undecided"

    # what makes the study void comes before everything
    pilot["chosen"]["reached"] = False
    told["units"] |= _privacy_units({"public": 0.6}, {"public": 100.0})
    lines = page.answer(told)
    assert lines[0].startswith("No length of the pilot made an ordinary model leak")
    assert lines[1].startswith("The control fails: public pictures alone have an AUC of 0.600")
    json.dumps(page.claims(told["units"]))
