"""The studies' logic: units are done once, arms get equal compute, effects are what they say."""

import json
import math
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from underpaint.errors import Interrupted
from underpaint.judge import cost, prior, study

ROOT = Path(__file__).parent.parent / "studies"


@pytest.fixture
def studies(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: runpy.run_path(str(ROOT / name))


def test_units_are_done_once_and_wait_for_what_they_need(studies: Any, tmp_path: Path) -> None:
    units = studies("units.py")
    done: list[str] = []

    def do(name: str) -> dict[str, int]:
        if name == "second" and "first" not in done:
            raise units["NotYet"]
        done.append(name)
        return {"value": len(done)}

    written: list[int] = []
    for _ in range(2):
        code = units["conduct"](["second", "first"], tmp_path, do, lambda: written.append(1))
        assert code == 0
    assert done == ["first", "second"]
    assert len(written) == 2 + 1 + 1
    found = units["gather"](["first", "second", "third"], tmp_path)
    assert found == {"first": {"value": 1}, "second": {"value": 2}}


def test_a_unit_that_another_process_holds_is_left_to_it(
    studies: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    units = studies("units.py")
    claimed = units["_claimed"](tmp_path / "mine.lock")

    def finishes(seconds: float) -> None:  # the other process, while this one waits
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "result.json").write_text("{}")
        claimed.__exit__(None, None, None)

    monkeypatch.setattr("time.sleep", finishes)
    assert claimed.__enter__()
    done: list[str] = []

    def do(name: str) -> dict[str, int]:
        done.append(name)
        return {}

    assert units["conduct"](["mine", "other"], tmp_path, do, lambda: None) == 0
    assert done == ["other"]


def test_an_interrupted_unit_is_not_done(studies: Any, tmp_path: Path) -> None:
    units = studies("units.py")

    def stopped(name: str) -> dict[str, int]:
        raise Interrupted("stopped")

    assert units["conduct"](["one"], tmp_path, stopped, lambda: None) == 130
    assert units["gather"](["one"], tmp_path) == {}


def test_both_arms_of_every_system_get_the_same_compute(studies: Any, tmp_path: Path) -> None:
    systems = studies("systems.py")
    for system, about in systems["SYSTEMS"].items():
        spent, parameters = [], []
        for arm in systems["ARMS"]:
            run = systems["recipe"](f"{system}_{arm}", 1.0, tmp_path)
            told = cost.describe(run, (32, 32), 3, 8)
            spent.append(told["flops"])
            parameters.append(told["parameters"])
            assert (list(run.stages) == ["whole"]) == (arm == "whole")
        assert spent == pytest.approx([about.get("budget", systems["BUDGET"])] * 2, rel=1e-3)
        assert parameters[0] == parameters[1]
        assert 1e6 < parameters[0] < 2.1e6, system


@pytest.mark.parametrize("name", ["acceleration", "maskdit"])
def test_every_run_of_a_written_study_is_possible(name: str) -> None:
    found = study.load(ROOT / f"{name}.yaml")
    for arm, about in found.arms.items():
        for trial in study.trials(found.tuning)[-2:]:
            run = study.recipe(found, arm, trial)
            point = min(found.points_of(arm))
            scaled = study.scaled(run, about.shares, found.budget, point, (64, 64), 3, 8)
            spent = cost.describe(scaled, (64, 64), 3, 8)["flops"]
            assert spent == pytest.approx(point * found.budget, rel=1e-2)


def test_units_of_the_committed_json_are_not_done_again(studies: Any, tmp_path: Path) -> None:
    systems, work, out = studies("systems.py"), tmp_path / "work", tmp_path / "systems.json"
    (work / "uvit_whole").mkdir(parents=True)
    result = {"held_out": 0.1, "images": 32}
    (work / "uvit_whole" / "result.json").write_text(json.dumps(result))
    (work / "uvit_whole" / "grid.png").write_bytes(b"a picture")
    systems["restore"](work, out)  # nothing is committed yet
    systems["gathered"](work, out, 1.0)
    systems["restore"](tmp_path / "other", out)
    there = tmp_path / "other" / "uvit_whole"
    assert json.loads((there / "result.json").read_text()) == result
    assert (there / "grid.png").read_bytes() == b"a picture"
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["uvit_whole"]


def test_outcomes_of_the_stability_study(studies: Any) -> None:
    outcome = studies("stability.py")["outcome"]
    falling = np.geomspace(1.2, 0.2, 100).tolist()
    assert outcome(falling, 1.05, 0.2, None) == "learned"
    assert outcome([*falling, 0.5], 2.5, 0.5, None) == "diverged"
    assert outcome([1.2] * 100, 1.01, 1.2, None) == "stuck"
    assert outcome(falling, 1.05, 0.2, "no finite gradient") == "failed"


def where_results(where: Any, gain: float) -> dict[str, Any]:
    """Errors of compute^-0.2, times the seed's luck; a cell needs exp(gain) of the compute."""
    rng = np.random.default_rng(0)
    luck = {seed: math.exp(rng.normal(0, 0.02)) for seed in where["SEEDS"]}
    results = {}
    for unit in where["UNITS"]:
        name, seed = unit.split("_")
        whole = "-whole-" in name
        compute = float(name.rsplit("-", 1)[1]) if whole else math.exp(-gain)
        own = 1.0 if whole else math.exp(rng.normal(0, 0.004))
        results[unit] = {"score": compute**-0.2 * luck[int(seed)] * own}
    return results


@pytest.mark.parametrize(("gain", "verdict"), [(-0.4, "pays"), (0.4, "does not pay")])
def test_where_masking_pays(studies: Any, gain: float, verdict: str) -> None:
    where = studies("where.py")
    told = where["judged"](where_results(where, gain))
    assert len(told) == len(where["CELLS"]) >= 12
    for cell in told:
        assert cell["ratio"] == pytest.approx(math.exp(gain), rel=0.15)
        assert cell["low"] < cell["ratio"] < cell["high"]
        assert cell["verdict"] == verdict
        assert cell["relation"] == "="
    at_par = where["judged"](where_results(where, 0.0))
    assert "undecided" in {cell["verdict"] for cell in at_par}


def test_what_was_found_is_what_the_planner_reads(
    studies: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = studies("where.py")
    cells = where["judged"](where_results(where, -0.4))
    found = {"budget": 2e13, "share": 0.4, "cells": cells}
    (tmp_path / "where.json").write_text(json.dumps(found))
    written: list[prior.Prior] = []
    monkeypatch.setattr(prior, "write", lambda told, path: written.append(told))
    monkeypatch.setattr("sys.argv", ["where.py", "--prior", "--out", str(tmp_path / "where.json")])
    assert where["main"]() == 0
    assert [cell.verdict for cell in written[0].cells] == ["pays"] * len(cells)
    assert written[0].nearest(256).patches == 256


def test_the_effect_of_transfer_is_at_each_arms_best_point_on_the_other_half(studies: Any) -> None:
    transfer = studies("transfer.py")
    rng = np.random.default_rng(0)
    results = {}
    for seed in transfer["SEEDS"]:
        noise = rng.normal(0, 0.01)
        for arm, level in (("scratch", 200.0), ("masked", 100.0), ("whole", 110.0)):
            curve = [
                {
                    "images": n,
                    "frechet_A": level * worse,
                    "frechet_B": level * worse * math.exp(noise),
                    "held_out": 0.1,
                }
                for n, worse in ((8, 2.0), (16, 1.0), (32, 1.5))
            ]
            # half B alone would have chosen this point
            curve.append({**curve[2], "frechet_B": 1.0})
            results[f"{arm}_1000_{seed}"] = {"learning_rate": 1e-3, "curve": curve}
    told = transfer["effect"](results, 1000, "masked", "scratch")
    assert told["frechet_B"]["ratio"] == pytest.approx(0.5)
    assert told["frechet_B"]["low"] <= 0.5 <= told["frechet_B"]["high"]
    assert told["frechet_B"]["seeds"] == 5
    assert transfer["effect"](results, 100, "masked", "scratch") is None
    json.dumps(told)
