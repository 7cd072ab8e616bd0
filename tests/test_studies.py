"""The studies' logic: units are done once, arms get equal compute, effects are what they say."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from underpaint import config
from underpaint.compare import study
from underpaint.core import samplers
from underpaint.core.schedules import Flow
from underpaint.errors import Interrupted
from underpaint.planning import evidence
from underpaint.training import cost

ROOT = Path(__file__).parent.parent / "studies"


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


@pytest.mark.parametrize("signal", [Interrupted("stopped"), KeyboardInterrupt()])
def test_an_interrupted_unit_is_not_done(
    studies: Any, tmp_path: Path, signal: BaseException
) -> None:
    units = studies("units.py")

    def stopped(name: str) -> dict[str, int]:
        raise signal

    assert units["conduct"](["one"], tmp_path, stopped, lambda: None) == 130
    assert units["gather"](["one"], tmp_path) == {}


def test_both_arms_of_every_system_get_the_same_compute(studies: Any, tmp_path: Path) -> None:
    systems = studies("systems.py")
    for system, about in systems["SYSTEMS"].items():
        spent, parameters = [], []
        for arm in systems["ARMS"]:
            run = systems["recipe"](f"{system}_{arm}", 1.0, tmp_path)
            assert not run.noise.stratified  # as when it was measured
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


@pytest.mark.parametrize("name", ["acceleration", "maskdit"])
def test_a_written_study_would_go_on_with_its_committed_runs(name: str) -> None:
    """`compare` refuses a run that was begun with other settings; so none may be changed after."""
    found = study.load(ROOT / f"{name}.yaml")
    committed = [
        path for part in ("tuning", "runs") for path in (ROOT / name / part).rglob("config.yaml")
    ]
    assert (len(committed) > 40) or name != "acceleration"
    for path in committed:
        arm = path.relative_to(ROOT / name).parts[1]
        run, now = config.load(path), study.recipe(found, arm)
        assert (run.noise, run.network) == (now.noise, now.network), path
        assert (run.data, run.stages.keys()) == (now.data, now.stages.keys()), path


def test_units_of_the_committed_json_are_not_done_again(studies: Any, tmp_path: Path) -> None:
    systems, work, out = studies("systems.py"), tmp_path / "work", tmp_path / "systems.json"
    (work / "uvit_whole").mkdir(parents=True)
    result = {"held_out": 0.1, "images": 32}
    (work / "uvit_whole" / "result.json").write_text(json.dumps(result))
    (work / "uvit_whole" / "grid.png").write_bytes(b"a picture")
    systems["restore"](work, out, 1.0)  # nothing is committed yet
    systems["gathered"](work, out, 1.0)
    systems["restore"](tmp_path / "other", out, 1.0)
    there = tmp_path / "other" / "uvit_whole"
    assert json.loads((there / "result.json").read_text()) == result
    assert (there / "grid.png").read_bytes() == b"a picture"
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["uvit_whole"]
    with pytest.raises(SystemExit, match="--scale 1; give another --out"):
        systems["restore"](work, out, 0.1)


def test_results_are_written_briefly_and_read_back(studies: Any, tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None], "b": [{"c": [], "d": {}}, [3, [4]]], "e": "[ é \n ]", "f": {}}
    studies("units.py")["write_json"](tmp_path / "new" / "x.json", value)
    text = (tmp_path / "new" / "x.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert ' "a": [1, 2.5, null],\n' in text
    assert text.endswith("}\n")


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


def test_cells_of_where_cost_as_much_as_their_baseline_and_see_as_many_images(studies: Any) -> None:
    where, whole = studies("where.py"), {}
    for patches, side in where["SIDES"].items():
        for name in [
            f"{patches}-whole-1",
            *(c.name for c in where["CELLS"] if c.patches == patches),
        ]:
            run = where["recipe"](f"{name}_1", 1.0, "avatars:lorelei")
            spent = cost.describe(run, (side, side), 3, 8)["flops"]
            assert spent == pytest.approx(where["BUDGET"] * patches, rel=1e-2)
            if name.endswith("whole-1"):
                whole[patches] = run.stages["whole"].images
    assert max(whole.values()) < 1.35 * min(whole.values())


def test_the_page_of_where_masking_pays(studies: Any, tmp_path: Path) -> None:
    where = studies("where.py")
    results = where_results(where, -0.4)
    cells = where["judged"](results)
    out = tmp_path / "where.json"
    units = {name: {**unit, "seconds": 90.0} for name, unit in list(results.items())[:4]}
    assert {cell["slowdown"] for cell in cells} == {None}
    seconds = {"masked": 30.0, "whole": 20.0}  # of equal FLOPs: half as fast again, on average
    first = where["CELLS"][0].name
    results[f"{first}_1"]["stage_seconds"] = seconds
    timed = where["judged"]({k: v for k, v in results.items() if k[-1] == "1"})[0]
    assert timed["slowdown"] == pytest.approx(50 / 40)
    cells[0] |= {"slowdown": 1.25, "ratio": 0.8}
    out.write_text(json.dumps({"budget": 2e13, "share": 0.4, "cells": cells, "units": units}))
    text = where["page"](out).read_text()
    assert "The training of 4 runs took 6 core-minutes" in text
    assert "<td>1.00</td></tr>" in re.sub(r"\s*\n\s*", "", text)
    assert f"Of {len(cells)} cells masking pays in {len(cells)}, does not pay in 0" in text
    assert text.count("</td></tr>") == len(cells)
    assert "2e13 training FLOPs for each patch of an image, 40 % of them on masked" in text


def test_what_was_found_is_what_the_planner_reads(
    studies: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = studies("where.py")
    cells = where["judged"](where_results(where, -0.4))
    found = {"budget": 2e13, "share": 0.4, "cells": cells}
    (tmp_path / "where.json").write_text(json.dumps(found))
    written: list[evidence.Prior] = []
    monkeypatch.setattr(evidence, "write", lambda told, path: written.append(told))
    monkeypatch.setattr("sys.argv", ["where.py", "--prior", "--out", str(tmp_path / "where.json")])
    assert where["main"]() == 0
    assert [cell.verdict for cell in written[0].cells] == ["pays"] * len(cells)
    assert written[0].nearest(256).patches == 256
    assert {(cell.rate, cell.batch) for cell in written[0].cells} == {(0.5, 1), (0.75, 2), (0.9, 4)}


# --- small.py ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [300, 3000])
def test_presets_of_few_images_have_the_steps_and_lengths_that_were_measured(
    size: int, studies: Any
) -> None:
    study = studies("small.py")
    stages = config.preset(f"small-{size}").stages
    for name, steps in study["steps"]("small", size).items():
        own = stages[name]
        assert {"batch": own.batch, "learning_rate": own.learning_rate} == steps
        assert own.images == pytest.approx(4 * study["LENGTH"][size][name], rel=0.01)


# --- index.py ------------------------------------------------------------------------------------


def test_the_answers_in_the_readme_are_those_of_the_committed_json(studies: Any) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert studies("index.py")["text"]() == text
    found = json.loads((ROOT / "maskdit" / "results.json").read_text())["verdicts"]
    assert found["with the loss on hidden patches"]["sentence"] in text
    for link in re.findall(r"\]\((.*?)\)", text):
        assert (ROOT / link).exists()


# --- samplers.py ---------------------------------------------------------------------------------


def test_samplers_are_compared_by_grain_and_by_their_distance_to_the_end(studies: Any) -> None:
    study = studies("samplers.py")
    plain = np.full((2, 4, 4, 3), 128, np.uint8)
    edge = plain.copy()
    edge[:, :, 2:] = 200  # one step of three in each row
    assert study["flat"](plain) == 1.0
    assert study["flat"](edge) == pytest.approx(2 / 3)
    assert study["flat"](plain + np.uint8([0, 2, 0, 2])[None, None, :, None]) == 1.0
    assert study["flat"](plain + np.uint8([0, 3, 0, 3])[None, None, :, None]) == 0.0
    assert study["error"](plain, plain) == 0.0
    assert study["error"](plain, edge) == pytest.approx(72 / math.sqrt(2))

    def found(distances: dict[str, float]) -> dict[str, Any]:
        return {"ways": {name: {"frechet": distances.get(name, 50.0)} for name in study["WAYS"]}}

    results = {"a": found({"heun-10": 40.0}), "b": found({"heun-10": 62.5})}
    told = study["ratios"](results)
    assert told["heun-10"][0] == pytest.approx(1.0)  # the geometric mean of 0.8 and 1.25
    assert told["heun-10"][1] < 0.8 < 1.25 < told["heun-10"][2]
    assert told["euler-20"] == pytest.approx([1.0, 1.0, 1.0])
    assert study["FIRST"] not in told


def test_ways_of_sampling_call_the_network_as_often_as_is_told(studies: Any) -> None:
    for way in studies("samplers.py")["WAYS"].values():
        calls: list[float] = []

        def denoise(x: Any, sigma: float, calls: list[float] = calls) -> Any:
            calls.append(sigma)
            return torch.zeros_like(x)

        levels = samplers.sigmas(Flow(), way.steps, way.grid)
        samplers.sample(denoise, torch.randn(1, 4, 3), levels, way.sampler)
        assert len(calls) == way.calls


def test_studies_draw_their_samples_as_when_they_began(studies: Any, tmp_path: Path) -> None:
    systems, batches = studies("systems.py"), studies("batches.py")
    runs = [systems["recipe"](f"{name}_whole", 1.0, tmp_path) for name in ("dit", "uvit", "unet")]
    runs += [batches["recipe"](way, 1.0) for way in batches["WAYS"].values()]
    assert {(run.sampling.sampler, run.sampling.steps) for run in runs} == {("euler", 30)}
