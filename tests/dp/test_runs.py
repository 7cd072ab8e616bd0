"""Runs with a private stage: what they publish, what they spend, and what is refused."""

import json
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.training.runs import metrics, weights
from underpaint import api, config, factory, model_folder, report
from underpaint.cli import main
from underpaint.dp import scope, step
from underpaint.dp import stage as private
from underpaint.errors import UserError
from underpaint.training import cost, stages, train
from underpaint.training.checkpointing import read_progress

pytest.importorskip("opacus")

STEPS, EVERY = 8, 3  # of the private stage; steps between checkpoints
ALONE = {"epsilon": 8, "multiplicity": 2, "labels": ["0", "1"]}
Change = Callable[[config.Run], object]


@pytest.fixture
def private_run(recipe: config.Run) -> config.Run:
    """One private stage of 8 steps on the 57 training images of `recipe`."""
    whole = recipe.stages["whole"]
    whole.dp = config.from_dict(config.DP, ALONE, "test: ")
    whole.images = STEPS * whole.batch
    recipe.stages = {"whole": whole}
    recipe.network.dropout = 0.0
    recipe.train.check_every = 0
    recipe.train.log_every, recipe.train.sample_every = 8, 64
    recipe.train.check_images = 4
    recipe.train.checkpoint_every = EVERY * whole.batch
    return recipe


def lines(out: Path) -> int:
    return (out / "privacy.log").read_text().count("whole\n")


# --- what is published ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ran() -> list[Path]:
    """The folder of the run below, once it has been made."""
    return []


@pytest.fixture
def finished(
    private_run: config.Run, ran: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished run; not to be written to."""
    if not ran:
        ran.append(tmp_path_factory.mktemp("finished") / "run")
        api.train(private_run, ran[0], quiet=True)
    return ran[0]


def test_a_run_says_what_it_spent_and_nothing_of_its_images(finished: Path) -> None:
    records = metrics(finished)
    steps = [r for r in records if r["kind"] == "step"]
    assert len(steps) == STEPS
    spent = [r["epsilon"] for r in steps]
    assert spent == sorted(spent)
    assert 0 < spent[0] < 7.9 < spent[-1] <= 8
    assert [r["spent_steps"] for r in steps] == list(range(1, STEPS + 1))
    assert not [r for r in records if r["kind"] == "check"]
    assert {r["health"] for r in records if r["kind"] == "sample"} == {None}
    of_images = {"loss", "x0_mse", "grad_norm", "gap", "held_out_mean", "train_mean"}
    for line in (finished / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        assert not of_images & record.keys()
        assert record["kind"] != "step" or not {"seconds", "images_per_s", "time"} & record.keys()
    end = records[-1]["privacy"]
    assert (end["spent"], end["spent_steps"], end["accountant"]) == (spent[-1], STEPS, "prv")
    assert end["sampling_rate"] == pytest.approx(8 / 57)
    log = (finished / "log.txt").read_text()
    assert f"epsilon {spent[-1]:.4g} at delta 1e-05 is spent, 8 of 8 steps" in log
    assert "loss 0" not in log

    page = (finished / "report.html").read_text()
    assert "Differential privacy" in page
    for figure in (f"{spent[-1]:.4g} of 8", "1e-05", f"{end['noise_multiplier']:.4g}", "8 of 8"):
        assert figure in page
    assert "PRV" in page
    assert 'alt="real image' not in page
    assert 'id="nearest"' not in page
    assert "The images of the last stage are private" in page
    assert json.loads((finished / "env.json").read_text())["data"]["whole"] not in page
    # the average is one of released weights, and moves
    assert read_progress(model_folder.find(finished)).ema_steps == STEPS


# --- what is spent -------------------------------------------------------------------------------


def test_a_run_resumed_at_a_checkpoint_has_spent_what_one_that_was_not(
    private_run: config.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, counted = private.private_step, []

    def until(steps: int) -> None:
        def step(*arguments: object) -> None:
            if len(counted) == steps:
                raise RuntimeError("stopped here")
            counted.append(arguments)
            real(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(private, "private_step", step)

    out = tmp_path / "run"
    until(5)  # two steps after the checkpoint at 3, and a sixth that was begun
    with pytest.raises(RuntimeError):
        train(private_run, out, quiet=True)
    assert read_progress(model_folder.find(out)).privacy["whole"]["spent_steps"] == EVERY
    assert lines(out) == 6
    at_checkpoint = weights(out)["model/embed.weight"]
    with pytest.raises(RuntimeError):
        train(None, out, resume=True, quiet=True)  # it looks at an image, and is lost as well
    assert lines(out) == 7
    assert torch.equal(weights(out)["model/embed.weight"], at_checkpoint)

    until(100)
    train(None, out, resume=True, quiet=True)
    assert len(counted) == 5 + 1  # of the budget of 8 two were lost: one is left
    assert lines(out) == STEPS
    progress = read_progress(model_folder.find(out))
    assert progress.images == STEPS * 8
    assert progress.privacy["whole"]["spent_steps"] == STEPS
    last = [r for r in metrics(out) if r["kind"] == "step"][-1]
    assert last["spent_steps"] == STEPS
    assert last["epsilon"] == progress.privacy["whole"]["epsilon"] <= 8
    assert "1 steps after the checkpoint are lost" not in (out / "log.txt").read_text()
    assert "4 steps after the checkpoint are lost" in (out / "log.txt").read_text()


def test_going_back_to_an_earlier_checkpoint_buys_nothing(
    private_run: config.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private_run.train.keep = 10
    out = train(private_run, tmp_path / "run", quiet=True)
    first = "000000000000"
    (out / "checkpoints" / "LATEST").write_text(first + "\n")
    before = weights(out)
    monkeypatch.setattr(private, "private_step", None)  # is not called
    train(None, out, resume=True, quiet=True)
    assert lines(out) == STEPS
    progress = read_progress(model_folder.find(out))
    assert (progress.stage, progress.images) == (1, STEPS * 8)
    assert progress.privacy["whole"]["spent_steps"] == STEPS
    after = weights(out)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert metrics(out)[-1]["event"] == "end"
    report.build(out)  # of a stage without steps

    (out / "checkpoints" / "LATEST").write_text(f"{progress.images:012d}\n")
    state = out / "checkpoints" / f"{progress.images:012d}" / "state.json"
    record = json.loads(state.read_text()) | {"stage": 0, "stage_images": 24}
    state.write_text(json.dumps(record))
    (out / "privacy.log").write_text("whole\nwhole\n")
    with pytest.raises(UserError, match=r"privacy\.log: counts 2 steps of stage whole"):
        train(None, out, resume=True, quiet=True)


def test_killed_between_two_checkpoints(
    private_run: config.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real = tmp_path / "run", private.private_step

    def killed(*arguments: object) -> None:
        real(*arguments)  # type: ignore[arg-type]
        if lines(out) == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(private, "private_step", killed)
    process = multiprocessing.get_context("fork").Process(
        target=train, args=(private_run, out), kwargs={"quiet": True}
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with (out / "privacy.log").open("a") as ledger:
        ledger.write("who")  # a line that never was whole
    monkeypatch.undo()
    monkeypatch.setenv("UNDERPAINT_CACHE", str(tmp_path / "cache"))
    train(None, out, resume=True, quiet=True)
    assert (out / "privacy.log").read_text() == "whole\n" * STEPS
    assert read_progress(model_folder.find(out)).privacy["whole"]["spent_steps"] == STEPS


def test_after_a_public_stage_on_other_images(private_run: config.Run, tmp_path: Path) -> None:
    """One loop runs both; the report shows the public stage's curves."""
    rng = np.random.default_rng(9)
    path = tmp_path / "public.npz"
    pixels = rng.integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    np.savez(path, images=pixels, labels=np.arange(20) % 2)
    public = config.Stage(images=32, batch=8, data=config.Data(source=str(path)))
    private_run.stages = {"public": public, **private_run.stages}
    dp = private_run.stages["whole"].dp
    assert dp is not None
    dp.labels = ()  # the public images have them
    out = api.train(private_run, tmp_path / "run", quiet=True)
    kinds = {(r["kind"], r.get("stage")) for r in metrics(out)}
    assert ("check", "public") in kinds
    assert ("check", "whole") not in kinds
    page = (out / "report.html").read_text()
    assert "Training and held-out images" in page
    assert "in other stages" in page


def test_what_it_costs_counts_every_draw(private_run: config.Run) -> None:
    asked = cost.describe(private_run, (16, 16), 3, 2)["stages"][0]["flops_per_image"]
    private_run.stages["whole"].dp = None
    assert asked == 2 * cost.describe(private_run, (16, 16), 3, 2)["stages"][0]["flops_per_image"]


# --- what is refused -----------------------------------------------------------------------------


@pytest.fixture
def refused(
    private_run: config.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """`underpaint train` with the private recipe and flags: exit 2 and one line, returned."""

    def run(*flags: object, change: Change | None = None) -> str:
        if change:
            change(private_run)
        path = tmp_path / "recipe.yaml"
        path.write_text(config.to_yaml(private_run))
        arguments = ["train", "--config", path, "--out", tmp_path / "refused", *flags]
        assert main([str(argument) for argument in arguments]) == 2
        stdout, stderr = capsys.readouterr()
        assert stdout == ""
        assert stderr.count("\n") == 1, stderr
        assert not (tmp_path / "refused").exists()
        return stderr

    return run


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--stages.whole.clip_percentile", 90], "stages.whole.clip_percentile 90"),
        (["--noise.learned_weights"], "noise.learned_weights"),
        (["--network.dropout", 0.1], "network.dropout 0.1"),
        (["--train.check_every", 8], "train.check_every 8"),
        (["--train.compile"], "train.compile"),
        (["--stages.whole.minutes", 1], "in images, not in minutes"),
        (["--stages.whole.dp.epsilon", 0], "stages.whole.dp.epsilon 0"),
        (["--stages.whole.dp.epsilon", 1e-6], "no noise keeps 8 steps"),
        (["--stages.whole.dp.delta", 1], "stages.whole.dp.delta 1"),
        (["--stages.whole.dp.delta", 0.1], "stages.whole.dp.delta 0.1: with 57 images"),
        (["--stages.whole.dp.clip", -1], "stages.whole.dp.clip -1"),
        (["--stages.whole.dp.multiplicity", 0], "stages.whole.dp.multiplicity 0"),
        (["--stages.whole.dp.epsilom", 3], "did you mean 'epsilon'?"),
        (["--stages.whole.batch", 64], "at most 57"),
    ],
)
def test_settings(flags: list[object], words: str, refused: Callable[..., str]) -> None:
    assert words in refused(*flags)


def test_label_statistics(refused: Callable[..., str]) -> None:
    """That a label exists may be known from one private image alone."""
    for stated, words in (
        (["--stages.whole.dp.labels", "a"], "stages.whole.dp.labels a: the images have the labels"),
        (["--stages.whole.dp.labels", "[]"], "add --stages.whole.dp.labels 0 1, else --no-labels"),
    ):
        assert words in refused(*stated)


def test_the_same_images_without_noise(
    refused: Callable[..., str], images: Path, tmp_path: Path
) -> None:
    def also(run: config.Run) -> None:
        run.stages["after"] = config.Stage(images=32, batch=8)

    assert "57 of its images are trained on by stage after without dp" in refused(change=also)

    def one(run: config.Run) -> None:  # one of them, in another collection
        pixels = np.load(images)["images"]
        other = np.random.default_rng(3).integers(0, 256, (30, 16, 16, 3), dtype=np.uint8)
        other[7:9] = pixels[20:22]
        np.savez(tmp_path / "other.npz", images=other, labels=np.arange(30) % 2)
        data = config.Data(source=str(tmp_path / "other.npz"), held_out="none")
        run.stages["after"].data = data

    assert "of its images are trained on by stage after without dp" in refused(change=one)


def test_weights_that_have_seen_the_images(
    refused: Callable[..., str], finished: Path, tmp_path: Path
) -> None:
    """Also a run that began with weights of a run that had."""
    words = f"57 of its images were trained on already by the weights of {finished}"
    assert words in refused("--from", finished)
    child = shutil.copytree(finished, tmp_path / "child")  # as if trained on others after that
    environment = json.loads((child / "env.json").read_text()) | {"start": str(finished)}
    (child / "env.json").write_text(json.dumps(environment))
    (child / "images.json").write_text(json.dumps({"trained": ["0" * 64], "held_out": []}))
    assert words in refused("--from", child)


def test_weights_of_which_nobody_knows_get_a_note(
    private_run: config.Run, finished: Path, tmp_path: Path
) -> None:
    exported = shutil.copytree(model_folder.find(finished), tmp_path / "exported")
    prepared = stages.prepare_stages(private_run, lambda _: None)
    (note,) = scope.check_scope(prepared, str(exported), 1)
    assert f"cannot be compared with those that the weights of {exported}" in note


def test_several_processes(private_run: config.Run) -> None:
    prepared = stages.prepare_stages(private_run, lambda _: None)
    with pytest.raises(UserError, match=r"stages\.whole\.dp: works with one process so far, not 2"):
        scope.check_scope(prepared, None, 2)


def test_two_private_stages_on_the_same_images_add_up(private_run: config.Run) -> None:
    private_run.stages["again"] = private_run.stages["whole"]
    prepared = stages.prepare_stages(private_run, lambda _: None)
    (note,) = scope.check_scope(prepared, None, 1)
    assert note.endswith("together they spend up to epsilon 16 at delta 2e-05")


def test_batch_norm(private_run: config.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = stages.prepare_stages(private_run, lambda _: None)
    monkeypatch.setattr(factory, "unallocated_network", lambda _: nn.Sequential(nn.BatchNorm2d(3)))
    with pytest.raises(UserError, match=r"stages\.whole\.dp: network\.kind dit has batch norm"):
        scope.check_scope(prepared, None, 1)


def test_opacus_missing(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opacus", None)
    monkeypatch.setitem(sys.modules, "opacus.accountants", None)
    assert "pip install 'underpaint[dp]'" in refused()


def test_settings_come_from_yaml_and_flags(private_run: config.Run) -> None:
    flags = ["--stages.whole.dp.epsilon", "3", "--stages.whole.dp.labels", "a", "b"]
    dp = config.apply_flags(private_run, flags).stages["whole"].dp
    assert dp == config.DP(epsilon=3.0, multiplicity=2, labels=("a", "b"))
    plain = config.Run(stages={"whole": config.Stage(images=32)})
    assert config.apply_flags(plain, flags[:2]).stages["whole"].dp == config.DP(epsilon=3.0)
    again = config.from_dict(config.Run, config.to_dict(private_run), "test: ")
    assert again.stages["whole"].dp == private_run.stages["whole"].dp
    none = config.apply_flags(private_run, ["--stages.whole.dp", "null"])
    assert none.stages["whole"].dp is None


def test_the_operating_systems_generator_is_the_default() -> None:
    assert step.private_step.__defaults__ == (os.urandom,)
