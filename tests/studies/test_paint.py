"""The study of painting."""

import math

import numpy as np
import pytest

from studies.lib import index
from studies.paint import page as paint_page
from studies.paint import run as paint_study


def test_masks_erase_what_they_say() -> None:
    found = paint_study.masks(20, 64)
    assert {name: float((~keep).mean()) for name, keep in found.items()} == {
        "centre": 0.25,
        "blocks": 0.5,
        "right": 0.5,
    }
    assert not found["centre"][:, 16:48, 16:48].any()
    assert len({keep.tobytes() for keep in found["blocks"]}) > 15
    cells = found["blocks"].reshape(20, 4, 16, 4, 16)
    assert (cells == cells[:, :, :1, :, :1]).all()


def test_both_arms_spend_the_same_flops_and_differ_in_the_first_stage_alone() -> None:
    whole, parts = (paint_study.settings(f"heads-{arm}-2") for arm in paint_study.ARMS)
    assert whole["study"]["budget"] == parts["study"]["budget"]
    assert parts["stages"].pop("masked")["rate"] == 0.9
    assert whole["stages"].pop("masked") is None
    assert parts["study"].pop("shares") == {"masked": 0.5, "whole": 0.5}
    assert whole["study"].pop("shares") == {"whole": 1.0}
    assert whole == parts
    assert whole["train"]["seed"] == 2
    other = paint_study.settings("photographs-parts-1")
    assert other["data"]["source"] == "runs/data/photographs-64.zip"
    assert other["study"]["images"] == (64, 64, 3, 0)


def test_erased_pixels_are_filled_with_the_mean_of_the_others() -> None:
    images = np.zeros((1, 4, 4, 3), np.uint8)
    images[0, 0], images[0, 1:] = (10, 20, 30), (40, 40, 40)
    keep = np.zeros((1, 4, 4), bool)
    keep[0, 0] = keep[0, 1, 0] = True
    found = paint_study.filled(images, keep)
    assert (found[keep] == images[keep]).all()
    assert (found[~keep] == (16, 24, 32)).all()


def test_effects_are_ratios_of_pairs() -> None:
    ratios = {1: 0.8, 2: 0.9, 3: 1.0}
    scores = {mask: dict.fromkeys(paint_page.SCORES, 2.0) for mask in paint_page.MASKS}
    results = {f"heads-whole-{seed}": {"masks": scores} for seed in ratios}
    for seed, ratio in ratios.items():
        less = {mask: {k: v * ratio for k, v in found.items()} for mask, found in scores.items()}
        results[f"heads-parts-{seed}"] = {"masks": less}
    found = paint_page.effects(results)
    assert len(found) == 9
    effect = found["heads, right, error"]
    assert effect["ratio"] == pytest.approx(math.cbrt(0.72))
    assert effect["low"] < 0.8 < 1.0 < effect["high"]
    assert (effect["seeds"], effect["whole"]) == (3, 2.0)
    del results["heads-whole-2"], results["heads-whole-3"]
    assert paint_page.effects(results) == {}


def test_what_is_told_follows_from_the_runs() -> None:
    told = index.results("paint")
    assert paint_page.effects(told["units"]) == told["effects"]
