"""What the studies share: units are done once, results are written and told."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from studies.lib import index, units
from studies.privacy import page as privacy_page
from studies.times import run as times
from studies.transfer import page as transfer_page
from studies.where import run as where
from underpaint.compare import record
from underpaint.errors import Interrupted, UserError

ROOT = Path(__file__).parents[2] / "studies"


def test_units_are_done_once_and_wait_for_what_they_need(tmp_path: Path) -> None:
    done: list[str] = []

    def do(name: str) -> dict[str, int]:
        if name == "second" and "first" not in done:
            raise units.NotYet
        done.append(name)
        return {"value": len(done)}

    written: list[int] = []
    for _ in range(2):
        code = units.conduct(["second", "first"], tmp_path, do, lambda: written.append(1))
        assert code == 0
    assert done == ["first", "second"]
    assert len(written) == 2 + 1 + 1
    found = units.gather(["first", "second", "third"], tmp_path)
    assert found == {"first": {"value": 1}, "second": {"value": 2}}


def test_a_unit_that_is_refused_is_said_and_left_to_another_call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = [True]

    def do(name: str) -> dict[str, int]:
        if name == "first" and refused:
            raise UserError("the weights are not here")
        return {"value": 1}

    assert units.conduct(["first", "second"], tmp_path, do, lambda: None) == 1
    assert "first: the weights are not here" in capsys.readouterr().out
    assert list(units.gather(["first", "second"], tmp_path)) == ["second"]
    refused.clear()
    assert units.conduct(["first", "second"], tmp_path, do, lambda: None) == 0


def test_a_unit_that_another_process_holds_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed = units._claimed(tmp_path / "mine.lock")

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

    assert units.conduct(["mine", "other"], tmp_path, do, lambda: None) == 0
    assert done == ["other"]


@pytest.mark.parametrize("signal", [Interrupted("stopped"), KeyboardInterrupt()])
def test_an_interrupted_unit_is_not_done(tmp_path: Path, signal: BaseException) -> None:

    def stopped(name: str) -> dict[str, int]:
        raise signal

    assert units.conduct(["one"], tmp_path, stopped, lambda: None) == 130
    assert units.gather(["one"], tmp_path) == {}


def test_results_are_written_briefly_and_read_back(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None], "b": [{"c": [], "d": {}}, [3, [4]]], "e": "[ é \n ]", "f": {}}
    units.write_json(tmp_path / "new" / "x.json", value)
    text = (tmp_path / "new" / "x.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert ' "a": [1, 2.5, null],\n' in text
    assert text.endswith("}\n")


def test_the_answers_in_the_readme_are_those_of_the_committed_json() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert index.text() == text
    found = json.loads((ROOT / "maskdit" / "results.json").read_text())["verdicts"]
    assert found["with the loss on hidden patches"]["sentence"] in text
    for link in re.findall(r"\]\((.*?)\)", text):
        assert (ROOT / link).exists()


@pytest.mark.parametrize("name", index.QUESTIONS)
def test_a_study_is_stated_as_its_committed_json_says(name: str) -> None:
    text = (ROOT / name / "README.md").read_text(encoding="utf-8")
    assert index.readme(name) == text
    for link in re.findall(r"\]\((.*?)\)", text):
        assert (ROOT / name / link).exists()


def test_what_the_studies_tell_follows_from_their_runs() -> None:
    """Those of `underpaint compare` are in test_compared.py."""
    for name, key, of_runs in (
        ("where", "cells", where.judged),
        ("transfer", "effects", transfer_page.effects),
        ("privacy", "claims", privacy_page.claims),
        ("times", "effects", times.effects),
    ):
        found = index.results(name)
        assert json.loads(json.dumps(of_runs(found["units"]))) == found[key], name


@pytest.mark.parametrize("name", index.QUESTIONS)
def test_results_have_a_line_for_each_run(name: str) -> None:
    text = (ROOT / name / "results.json").read_text(encoding="utf-8")
    assert record.text(json.loads(text)) == text
    for run in index.runs(name).values():
        assert json.dumps(run, ensure_ascii=False) in text


def test_weights_of_heads_are_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []

    def trained(run: Any, folder: Path) -> dict[str, Any]:
        runs.append(run)
        return {"images": 1}

    monkeypatch.setattr(units, "trained", trained)
    assert units.heads(tmp_path) == units.heads(tmp_path) == str(tmp_path / "heads")
    (run,) = runs
    assert (run.network.kind, run.data.source) == ("dit", "avatars:lorelei")
    with units._claimed(tmp_path / "heads.lock"), pytest.raises(units.NotYet):
        units.heads(tmp_path)
