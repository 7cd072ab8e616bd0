"""The quick start: three runs, equal lengths where they are compared, one report; resumable."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from underpaint import api, config, report
from underpaint.cli import main, quickstart
from underpaint.errors import Interrupted, UserError
from underpaint.evaluation import records
from underpaint.interop import onnx, web
from underpaint.io import mark
from underpaint.training import minutes, step_rule
from underpaint.training.checkpointing import RunFolder, read_progress


def test_minutes_are_shared() -> None:
    parts = quickstart.recipes(6.0, seed=3)
    minutes = {name: sum(s.minutes for s in run.stages.values()) for name, run in parts.items()}
    assert minutes == pytest.approx({"main": 4.8, "transfer": 0.54, "scratch": 0.54})
    assert parts["main"].train.seed == 3
    assert parts["transfer"].data.limit == parts["scratch"].data.limit == 1000
    assert parts["main"].sampling == config.preset("quickstart").sampling
    with pytest.raises(UserError, match="--minutes"):
        quickstart.recipes(0.0, seed=0)


def test_interrupted_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C in the first run, on a machine of another speed at each run; a small network."""
    preset = config.preset

    def small(name: str) -> config.Run:
        run = preset(name)
        run.network.width, run.network.depth, run.network.heads = 32, 1, 2
        run.sampling.count = 8
        return run

    monkeypatch.setattr(config, "preset", small)
    speeds = iter((100.0, 60.0, 60.0))  # of the first run's two stages and of the transfer
    monkeypatch.setattr(minutes, "speed", lambda *_: next(speeds))
    costs = minutes.Costs(rest=0.0, grid=0.0, checks={128: 1e3})  # too dear to be made
    monkeypatch.setattr(minutes, "measure", lambda *_: costs)
    step, taken = step_rule.step, []

    def pressed(*arguments: Any) -> None:
        step(*arguments)
        taken.append(arguments)
        if len(taken) == 4:
            os.kill(os.getpid(), signal.SIGINT)

    def page(run: Path) -> None:  # in place of the real one, which takes seconds
        (run / "web").mkdir()
        mark(run / "web", "export")

    monkeypatch.setattr(web, "made", page)
    monkeypatch.setattr(step_rule, "step", pressed)
    out = tmp_path / "quick"
    command = ["quickstart", "--out", str(out), "--minutes", "0.1"]
    assert main(command) == 130
    assert "underpaint quickstart --resume" in capsys.readouterr().err.splitlines()[-1]
    assert len(taken) == 4
    assert main([*command, "--resume"]) == 0
    assert '<a href="web/index.html">' in (out / "report.html").read_text()
    assert f"browser  underpaint app {out}" in capsys.readouterr().out
    # 0.1 min · 0.09 · 60 images/s, in batches of 16; more if this machine is faster
    assert config.load(out / "transfer" / "config.yaml").last.images == 32
    ends = [RunFolder(out / name).latest().folder for name in ("transfer", "scratch")]
    transfer, scratch = (read_progress(end) for end in ends)
    assert scratch.images == transfer.images >= 32
    shares = [stop["cooldown"] / stop["total"] for stop in _stops(out / "transfer")] or [0.25]
    assert config.load(out / "scratch" / "config.yaml").last.cooldown == shares[-1]
    assert "of the learning rate" not in (out / "log.txt").read_text()


def _stops(run: Path) -> list[records.Record]:
    return records.of_kind(records.read(run / "metrics.jsonl"), "stop")


@pytest.fixture
def did(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is done to which run, which leaves a checkpoint; the first is interrupted."""
    seen: list[tuple[str, str]] = []

    def done(what: str, folder: Path) -> None:
        seen.append((what, folder.name))
        checkpoint = folder / "checkpoints" / "000000000016"
        checkpoint.mkdir(parents=True, exist_ok=True)
        (checkpoint / "state.json").write_text("{}")
        mark(folder, "run")
        (folder / "config.yaml").write_text("")
        if len(seen) == 1:
            raise Interrupted

    def begin(_: config.Run, out: Path, overwrite: bool, **others: Any) -> None:
        RunFolder(out).check(overwrite)
        done("train", out)

    monkeypatch.setattr(api, "train", begin)
    monkeypatch.setattr(api, "resume", lambda out, **_: done("resume", out))
    monkeypatch.setattr(report, "build", lambda out, **_: out)
    monkeypatch.setattr(quickstart, "_write_web", lambda _: None)
    monkeypatch.setattr(config, "load", lambda _: config.Run())
    return seen


def test_what_stopped_before_its_first_checkpoint_begins_anew(
    tmp_path: Path, did: list[tuple[str, str]]
) -> None:
    with pytest.raises(Interrupted):
        quickstart.train(tmp_path / "quick", 1.0)
    transfer = tmp_path / "quick" / "transfer"
    (transfer / "checkpoints").mkdir(parents=True)
    (transfer / "config.yaml").write_text("")
    mark(transfer, "run")
    quickstart.train(tmp_path / "quick", 1.0, resume=True)
    assert did[1:] == [("resume", "quick"), ("train", "transfer"), ("train", "scratch")]


def test_runs_of_an_earlier_quick_start_are_not_gone_on_with(
    tmp_path: Path, did: list[tuple[str, str]]
) -> None:
    did.append(("", ""))
    quickstart.train(tmp_path / "quick", 1.0)
    with pytest.raises(UserError, match="a run is there already"):
        quickstart.train(tmp_path / "quick", 1.0)
    did.clear()
    with pytest.raises(Interrupted):
        quickstart.train(tmp_path / "quick", 1.0, overwrite=True)
    quickstart.train(tmp_path / "quick", 1.0, resume=True)
    assert did[1:] == [("resume", "quick"), ("train", "transfer"), ("train", "scratch")]


def test_without_the_extra_there_is_no_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnx, "missing", lambda: ["onnx"])
    quickstart._write_web(tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(quickstart, "train", lambda *_: tmp_path / "report.html")
    assert main(["quickstart", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert f"pip install 'underpaint[onnx]' && underpaint app {tmp_path}" in said


def test_a_page_that_fails_leaves_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(run: Path) -> None:
        raise UserError("no space left")

    monkeypatch.setattr(web, "made", full)
    quickstart._write_web(tmp_path)
    assert capsys.readouterr().err == "no page for the browser: no space left\n"
