"""The study of what `plan` writes."""

import json
from typing import Any

import pytest

from studies.plan import run as study
from underpaint import config
from underpaint.planning.candidates import Images

FOUND = {
    "photographs": Images("photographs", 3000, 2500, (64, 64), 3),
    "garments": Images("garments", 3000, 2000, (28, 28), 1, 10),
}


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The images are not there, and a plan needs no more than their number and size."""
    monkeypatch.setattr(study, "images_of", FOUND.__getitem__)


@pytest.mark.parametrize(
    ("name", "arms"), [("garments", study.ARMS), ("photographs", ("default", "patch-8"))]
)
def test_all_arms_of_a_set_take_the_same_minutes(name: str, arms: tuple[str, ...]) -> None:
    machine = study.measured(name)
    seconds = json.loads(study.SPEEDS.read_text())["seconds_an_image"][name]
    for arm in arms:
        run = study.lengthened(study.recipe(name, arm, 6, machine), 6, machine)
        taken = sum(s.images * seconds[study.key(run, k)] for k, s in run.stages.items())
        assert taken == pytest.approx(360, rel=0.01)
        assert (run.data.limit, run.train.check_every) == (study.IMAGES, -1)
        assert run.data.held_out == study.SETS[name]["held_out"]


def test_in_few_epochs_plan_writes_what_default_is() -> None:
    machine = study.measured("garments")
    arms = {}
    for arm in ("default", "plan", "by-images"):
        arms[arm] = study.lengthened(study.recipe("garments", arm, 6, machine), 6, machine)
    assert arms["plan"] == arms["default"]
    assert (arms["by-images"].network.dropout, arms["default"].network.dropout) == (0.05, 0.0)
    fixed = study.recipe("garments", "patch-8", 6, machine)
    assert (fixed.network.kind, fixed.space.patch) == ("dit", 4)  # of 28 pixels
    assert fixed.noise.prediction == "x0"


def test_the_answer_follows_from_the_units() -> None:
    default: dict[str, Any] = {"frechet": 120.0}
    plan = {"frechet": 100.0, "difference_low": -30.0, "difference_high": -10.0}
    fixed = {"frechet": 140.0, "difference_low": 2.0, "difference_high": 3.0}
    units = {"garments-6-default": default, "garments-6-plan": plan, "garments-6-patch-8": fixed}
    assert study.answer(units) == (
        "Garments, 6 minutes: default 120.0; plan 100.0: better (-30.0 to -10.0); "
        "patch-8 140.0: worse (+2.0 to +3.0)."
    )
    plan["difference_high"] = 1.0
    assert "undecided" in study.answer(units)
    same = units | {"garments-6-plan": {"same_as": "default"}}
    assert study.answer(same).startswith(
        "Garments, 6 minutes: default 120.0, which is what plan writes; patch-8"
    )
    assert study.answer({"garments-6-default": default}) == "Too few units are done."


def test_networks_that_are_asked_for_are_collected_while_none_is_timed() -> None:
    machine = study.timed(None)
    study.recipe("garments", "plan", 6, machine)
    asked = {key: run for key, (run, _) in machine.asked.items()}
    assert all(isinstance(run, config.Run) and len(run.stages) == 1 for run in asked.values())
    assert len(asked) == 3  # larger ones than the smallest would hold 3,000 garments
    assert (
        asked.keys() < json.loads(study.SPEEDS.read_text())["seconds_an_image"]["garments"].keys()
    )
