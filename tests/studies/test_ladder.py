"""The ladder: what its units are, and that they get the same compute."""

import json

import pytest

from studies.ladder import run as ladder
from underpaint import config
from underpaint.training import cost


@pytest.mark.parametrize("unit", [name for name in ladder.UNITS if not name.endswith(("-2", "-3"))])
def test_a_unit_is_a_recipe_that_spends_its_budget(unit: str) -> None:
    about = ladder.settings(unit)["study"]
    height, width, channels, labels = about["images"]
    run = ladder.recipe(unit, 1.0)
    config.check(run)
    found = cost.describe(run, (height, width), channels, labels)
    spent = sum(stage["flops"] for stage in found["stages"])
    assert spent == pytest.approx(about["budget"], rel=0.02)  # whole batches
    for stage in found["stages"]:
        assert stage["flops"] == pytest.approx(about["shares"][stage["name"]] * spent, rel=0.03)


def test_a_unit_is_its_parent_and_what_it_changes() -> None:
    parent, child = ladder.settings("patch-8"), ladder.settings("patch-8-batch-8")
    assert child["stages"]["whole"] == parent["stages"]["whole"] | {"batch": 8}
    assert {k: v for k, v in child.items() if k != "stages"} == {
        k: v for k, v in parent.items() if k != "stages"
    }
    assert ladder.settings("dit")["space"] == {"patch": 4}  # parents are left as they were


def test_recorded_units_are_those_of_the_script() -> None:
    found = json.loads((ladder.HERE / "results.json").read_text(encoding="utf-8"))
    assert found["budget"] == ladder.BUDGET
    for name, unit in found["units"].items():
        parent, changes = ladder.UNITS[name]
        assert unit["settings"] == json.loads(json.dumps({"parent": parent, **changes}))
        # as published, a recipe makes too few steps in this budget to learn anything
        published = name.startswith(("ddpm", "maskdm", "end-ddpm-"))
        assert (0 < unit["error"] < 0.1) or (published and unit["frechet"] > 400)
        stages = ladder.recipe(name, 1.0).stages.values()
        assert unit["images"] == sum(stage.images for stage in stages)
        # lengths count a uvit's label token, which these pictures do not need: 0.5 % of whole
        # images, 3.6 % where 25 patches are visible
        budget = ladder.settings(name)["study"]["budget"]
        assert (0.97 if published else 0.98) * budget < unit["flops"] < 1.02 * budget
