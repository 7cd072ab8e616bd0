"""The studies that `underpaint compare` ran: every run is possible, recorded, and not run again."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from studies.lib import compared, index
from underpaint import config
from underpaint.compare import record, runner, study
from underpaint.errors import UserError
from underpaint.training import cost

ROOT = Path(__file__).parents[2] / "studies"
STUDIES = ["acceleration", "maskdit"]


@pytest.mark.parametrize("name", STUDIES)
def test_every_run_of_a_written_study_is_possible(name: str) -> None:
    found = study.load(ROOT / name / "study.yaml")
    for arm, about in found.arms.items():
        for trial in study.trials(found.tuning)[-2:]:
            run = study.recipe(found, arm, trial)
            point = min(found.points_of(arm))
            scaled = study.scaled(run, about.shares, found.budget, point, (64, 64), 3, 8)
            spent = cost.describe(scaled, (64, 64), 3, 8)["flops"]
            assert spent == pytest.approx(point * found.budget, rel=1e-2)


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for the pictures of the studies, of which nothing but the size is asked."""
    ids = np.arange(25_000)
    dataset = SimpleNamespace(
        size=(64, 64),
        channels=3,
        label_names=[str(i) for i in range(8)],
        key="pictures",
        train_ids=ids[:20_000],
        held_out_ids=ids[20_000:],
    )
    monkeypatch.setattr("underpaint.data.prepare", lambda wanted: dataset)
    counted: dict[str, Any] = {}
    describe = cost.describe

    def once(run: config.Run, *about: Any) -> Any:
        """The FLOPs of an image, which batch, rate and seed do not change."""
        shape = [(n, s.mask, s.rate, s.block, s.size) for n, s in run.stages.items()]
        key = repr((run.network, run.noise, shape))
        if key not in counted:
            counted[key] = describe(run, *about)
        return counted[key]

    monkeypatch.setattr(cost, "describe", once)

    def fails(*_: Any, **__: Any) -> None:
        raise AssertionError("a run that is recorded was trained or timed again")

    monkeypatch.setattr(runner, "train", fails)
    monkeypatch.setattr(runner.timing, "measured", fails)


@pytest.mark.parametrize("name", STUDIES)
def test_compare_takes_every_recorded_run_and_comes_to_the_same_results(
    name: str, pictures: None, tmp_path: Path
) -> None:
    """From results.json alone: settings, scores, speeds, and the verdicts that follow."""
    shutil.copy(ROOT / name / "results.json", tmp_path)
    before = (tmp_path / "results.json").read_text(encoding="utf-8")
    said: list[str] = []
    found = study.load(ROOT / name / "study.yaml")
    results = runner.conduct(found, tmp_path, workers=1, say=said.append)
    assert results == json.loads(before)
    assert (tmp_path / "results.json").read_text(encoding="utf-8") == before
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert len(said) == len(results["runs"]) + len(results["trials"])
    assert len(record.runs_of(results)) == {"acceleration": 75, "maskdit": 37}[name]


def test_compare_refuses_a_recorded_run_of_other_settings(pictures: None, tmp_path: Path) -> None:
    results = json.loads((ROOT / "maskdit" / "results.json").read_text())
    results["runs"][3]["settings"]["network.heads"] = 2
    (tmp_path / "results.json").write_text(record.text(results))
    run = results["runs"][3]["run"]
    with pytest.raises(UserError, match=f"{run}: stands in results.json with other settings"):
        runner.conduct(study.load(ROOT / "maskdit" / "study.yaml"), tmp_path, workers=1)


@pytest.mark.parametrize("name", STUDIES)
def test_the_committed_readmes_have_the_verdict_and_the_cost(name: str) -> None:
    text = (ROOT / name / "README.md").read_text(encoding="utf-8")
    results = index.results(name)
    assert compared.cost(results) in text
    arm = {"maskdit": "with the loss on hidden patches", "acceleration": "masked"}[name]
    assert results["verdicts"][arm]["sentence"] in text
