"""What people do every day: names in any encoding, ~, terminals without UTF-8, typos in Python."""

import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import underpaint as up
from tests.conftest import SMALL, write_pictures
from tests.heard import Heard
from underpaint import config, model_folder, training
from underpaint.cli import main
from underpaint.errors import RunFailed, UserError
from underpaint.progress import following
from underpaint.report import page
from underpaint.training import identities
from underpaint.training.checkpointing import RunFolder


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "underpaint", *map(os.fsencode, map(str, arguments))]
    return subprocess.run(command, capture_output=True, env=os.environ | environment, timeout=300)


def test_a_latin_1_name_is_a_label_to_the_end(
    tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = write_pictures(tmp_path / "data")
    (place / "dark").rename(place / os.fsdecode(b"caf\xe9"))
    flags = ["--config", small, "--data", place, "--out", tmp_path / "run", "--quiet"]
    assert main(["train", *map(str, flags)]) == 0
    assert up.load(tmp_path / "run").label_names == ("café", "light")
    out = str(tmp_path / "samples")
    assert main(["sample", str(tmp_path / "run"), "-n", "2", "--steps", "1", "--out", out]) == 0
    moved = place.rename(tmp_path / os.fsdecode(b"d\xe9j\xe0"))
    found = run("prepare", moved, "--json", PYTHONIOENCODING="ascii")
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["labels"] == {"café": 12, "light": 12}
    for encoding in ("utf-8", "latin-1"):  # the same without a process of its own
        written = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
        assert main(["prepare", str(moved), "--json"]) == 0
        said = json.loads(written.getvalue().decode(encoding))
        assert said["labels"] == {"café": 12, "light": 12}


def test_brackets_in_names_are_no_markup(
    tmp_path: Path, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = write_pictures(tmp_path / "bl[u] :smile: <b>&$(id)")
    (place / "dark").rename(place / "[old] cats")
    out = tmp_path / "r u;n[red]"
    flags = ["--config", small, "--data", place, "--out", out, "--quiet"]
    assert main(["train", *map(str, flags)]) == 0
    printed = capsys.readouterr().out
    assert f"sample   underpaint sample '{out}' -n 64" in printed
    assert main(["prepare", str(place), "--size", "8"]) == 0
    printed = capsys.readouterr().out
    assert "[old] cats 12" in printed
    assert str(place) in printed
    text = page.build(out).read_text()
    assert "<b>&$" not in text
    assert "&lt;b&gt;&amp;$(id)" in text
    assert main(["prepare", str(tmp_path / "[/u]\x1b[31m")]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_no_name_commands_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = write_pictures(tmp_path / "data")
    (place / "dark").rename(place / "a\x1b]0;owned\x07")
    (place / "\x1b[2J.txt").write_text("x")
    assert main(["prepare", str(place), "--quiet"]) == 0
    shown = capsys.readouterr()
    assert "a\ufffd]0;owned\ufffd 12" in shown.out
    assert "\x1b" not in shown.out + shown.err


def test_home_is_expanded_everywhere(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, small: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "data")
    shutil.copytree(trained, tmp_path / "old")
    flags = ["--config=~/small.yaml", "--data=~/data", "--out=~/run", "--from=~/old", "--quiet"]
    assert main(["train", *flags]) == 0
    assert main(["sample", "~/run", "-n", "1", "--steps", "1", "--out=~/u.png"]) == 0
    assert (tmp_path / "u.png").is_file()
    recipe = config.load("~/small.yaml")
    recipe.data.source = Path("~/data")  # type: ignore[assignment]
    up.train(recipe, "~/again", quiet=True, write_report=False)
    up.load("~/again").save("~/saved")
    assert (tmp_path / "saved" / "config.json").is_file()
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_terminals_without_utf_8(encoding: str, faces: Path) -> None:
    for arguments in (("--help",), ("train", "--help"), ("prepare", faces, "--size", 8)):
        found = run(*arguments, PYTHONIOENCODING=encoding)
        assert (found.returncode, b"Traceback" in found.stderr) == (0, False), found.stderr


# --- settings in Python ------------------------------------------------------------------------


@pytest.fixture
def recipe(faces: Path, tmp_path: Path) -> config.Run:
    (tmp_path / "my.yaml").write_text(SMALL)
    run = config.load(tmp_path / "my.yaml")
    run.data.source = str(faces)
    return run


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("stages.whole.schedule", "cosin", "recipe: stages.whole.schedule: 'cosin' is not one of"),
        ("stages.whole.batch", "8", "recipe: stages.whole.batch: expected a whole number, got '8'"),
        ("stages.whole.batch", 8.5, "stages.whole.batch: expected a whole number"),
        ("train.seed", -1, "train.seed -1: give a whole number from 0"),
        ("train.seed", 2**63, r"train.seed .*: give a whole number from 0"),
        ("train.device", 3, "device '3' is not available"),
        ("network", None, "recipe: network: expected settings"),
    ],
)
def test_settings_are_checked_when_training_begins(
    place: str, value: Any, message: str, recipe: config.Run, tmp_path: Path
) -> None:
    section: Any = recipe
    *path, name = place.split(".")
    for part in path:
        section = section[part] if isinstance(section, dict) else getattr(section, part)
    setattr(section, name, value)
    with pytest.raises(UserError, match=message):
        up.train(recipe, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_python_takes_paths_and_one_number_and_no_typo(recipe: config.Run, tmp_path: Path) -> None:
    with pytest.raises(AttributeError):
        recipe.stages["whole"].lr = 1e-9  # type: ignore[attr-defined]
    recipe.data.source, recipe.data.size = Path(recipe.data.source), 8  # type: ignore[assignment]
    up.train(recipe, tmp_path / "run", quiet=True, write_report=False)
    assert up.load(tmp_path / "run").spec.size == (8, 8)


def test_labels_and_batches_that_cannot_be(trained: Path) -> None:
    model = up.load(trained)
    for wrong in ({"labels": []}, {"labels": ["0"]}, {"labels": ""}, {"batch": -1}, {"n": 0}):
        with pytest.raises(UserError):
            model.sample(**{"n": 1, "steps": 1, **wrong})
    for seed in (-1, 2**63):
        with pytest.raises(UserError, match="seed"):
            model.sample(1, steps=1, seed=seed)
    assert model.label_ids(["light", 0, -1]) == [1, 0, -1]
    assert model.label_ids("light") == [1]


def test_a_name_that_is_a_number_is_the_name(tmp_path: Path, recipe: config.Run) -> None:
    place = tmp_path / "numbers"
    for i in range(12):
        (place / str(3 + i % 2)).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / str(3 + i % 2) / f"{i}.png")
    recipe.data.source = str(place)
    up.train(recipe, tmp_path / "run", quiet=True, write_report=False)
    model = up.load(tmp_path / "run")
    assert model.label_ids(["3", "4", 0]) == [0, 1, 0]
    with pytest.raises(UserError, match="label '1' is unknown"):
        model.label_ids(["1"])


# --- going on ----------------------------------------------------------------------------------


@pytest.fixture
def begun(tmp_path: Path, recipe: config.Run) -> Path:
    return up.train(recipe, tmp_path / "run", quiet=True, write_report=False)


def test_a_finished_run_is_extended_and_resumes_exactly(begun: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(begun, tmp_path / "other"))
    up.resume(begun, images=32, quiet=True, write_report=False)
    run = config.load(begun / "config.yaml")
    assert list(run.stages) == ["masked", "whole", "whole-more1"]
    stage = run.stages["whole-more1"]
    assert (stage.images, stage.warmup, stage.schedule, stage.batch) == (32, 0, "cooldown", 8)
    lines = [json.loads(line) for line in (begun / "metrics.jsonl").read_text().splitlines()]
    rates = [r["lr"] for r in lines if r["kind"] == "step" and r["stage"] == "whole-more1"]
    assert rates == [stage.learning_rate] * 4  # its last quarter is one step, which begins at 1
    assert model_folder.newest(begun).folder.name == f"{96:012d}"
    assert main(["train", "--resume", "--out", str(other), "--images", "32", "--quiet"]) == 0
    for name in ("model", "ema"):
        folders = [model_folder.newest(run).folder for run in (begun, other)]
        one, two = (model_folder.read_weights(folder, name) for folder in folders)  # type: ignore[arg-type]
        assert all((one[key] == two[key]).all() for key in one)
    up.resume(other, images=16, quiet=True, write_report=False)
    assert list(config.load(other / "config.yaml").stages)[-1] == "whole-more2"


def test_an_unfinished_run_is_not_extended(begun: Path, wrong: Any, tmp_path: Path) -> None:
    first = sorted((begun / "checkpoints").glob("0*"))[0]
    (begun / "checkpoints" / "LATEST").write_text(first.name + "\n")
    for flags in (("--minutes", 10), ("--images", 64)):
        line = wrong("train", "--resume", "--out", begun, *flags)
        assert "of the 64 images that it was given" in line
    assert "give --resume too" in wrong("train", "--data", "x", "--images", 3)
    assert up.resume(begun, quiet=True, write_report=False) == begun


def test_data_that_moved_are_taken_if_they_are_the_same(
    begun: Path, faces: Path, tmp_path: Path, wrong: Any
) -> None:
    first = sorted((begun / "checkpoints").glob("0*"))[0]
    (begun / "checkpoints" / "LATEST").write_text(first.name + "\n")
    moved = faces.rename(tmp_path / "elsewhere")
    flags = ("train", "--resume", "--out", begun, "--quiet", "--data")
    assert "there is no such file" in wrong("train", "--resume", "--out", begun)
    other = write_pictures(tmp_path / "others")
    (other / "dark" / "0.png").unlink()
    assert "the images have changed" in wrong(*flags, other)
    assert main([*map(str, flags), str(moved)]) == 0
    assert config.load(begun / "config.yaml").data.source == str(moved)


def test_a_resumed_run_holds_out_what_it_held_out(begun: Path, wrong: Any, cache: None) -> None:
    """Whose record was lost, or whose config.yaml was led elsewhere by hand."""
    first = sorted((begun / "checkpoints").glob("0*"))[0]
    (begun / "checkpoints" / "LATEST").write_text(first.name + "\n")
    known, folder = identities.read(begun), RunFolder(begun)
    identities.write(folder, identities.Images(known.held_out, known.trained))
    assert "other images would be held out" in wrong("train", "--resume", "--out", begun, "--quiet")
    identities.write(folder, known)
    for name, damage in (("images.bin", bytes(32)), ("images.json", b"[" * 200_000)):
        before = (begun / name).read_bytes()
        (begun / name).write_bytes(damage)
        said = wrong("train", "--resume", "--out", begun, "--quiet")
        assert f"{name}: is missing or damaged" in said
        (begun / name).write_bytes(before)


def test_a_run_of_an_earlier_version_knows_its_images(begun: Path, cache: None) -> None:
    """It has them as text in images.json."""
    known = identities.read(begun)
    names = ("trained", "held_out")
    texts = {n: [sha.tobytes().hex() for sha in part] for n, part in zip(names, known, strict=True)}
    assert texts["trained"]
    assert texts["held_out"]
    (begun / "images.json").write_text(json.dumps(texts))
    (begun / "images.bin").unlink()
    assert identities.read(begun).digest() == known.digest()
    first = sorted((begun / "checkpoints").glob("0*"))[0]
    (begun / "checkpoints" / "LATEST").write_text(first.name + "\n")
    assert main(["train", "--resume", "--out", str(begun), "--quiet"]) == 0


def test_data_of_a_stage_that_moved(
    tmp_path: Path, recipe: config.Run, faces: Path, wrong: Any
) -> None:
    """`--data` says nothing of them; the line says what does."""
    own = write_pictures(tmp_path / "own")
    stage = dataclasses.replace(recipe.stages["masked"], data=config.Data(source=str(own)))
    recipe.stages["masked"] = stage
    run = up.train(recipe, tmp_path / "run", quiet=True, write_report=False)
    first = sorted((run / "checkpoints").glob("0*"))[0]
    (run / "checkpoints" / "LATEST").write_text(first.name + "\n")
    moved = own.rename(tmp_path / "elsewhere")
    for flags in ((), ("--data", moved)):
        line = wrong("train", "--resume", "--out", run, "--quiet", *flags)
        assert f"stage masked: its data {own} are not there any more" in line
        assert f"as stages.masked.data.source into {run / 'config.yaml'}" in line
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace(str(own), str(moved)))
    assert main(["train", "--resume", "--out", str(run), "--quiet"]) == 0


# --- hints, memory, processes ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("train", "--epochs", 3), "--minutes 30"),
        (("train", "--batch-size", 3), "--stages.NAME.batch"),
        (("finetune", "--lr", 3), "--stages.NAME.learning_rate"),
        (("train", "--microbatch", "x"), "train.microbatch: expected a whole number, got 'x'"),
        (("sample", "r", "--seed", 2**64), "below 2^62"),
    ],
)
def test_hints(arguments: tuple[object, ...], says: str, wrong: Any) -> None:
    assert says in wrong(*arguments)


def test_help_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["help"], ["-h"], ["--json", "-h"]):
        assert main(arguments) == 0
        assert "usage: underpaint COMMAND" in capsys.readouterr().out
    assert main(["help", "prepare"]) == 0
    assert "usage: underpaint prepare" in capsys.readouterr().out


def test_a_leftover_rank_is_said(monkeypatch: pytest.MonkeyPatch, faces: Path, small: Path) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UserError, match="type: unset RANK WORLD_SIZE LOCAL_RANK"):
        up.train(str(small), faces.parent / "run")
    monkeypatch.setenv("RANK", "one")
    with pytest.raises(UserError, match="RANK is 'one'"):
        up.train(str(small), faces.parent / "run")


def test_out_of_memory_is_one_line_or_half_the_microbatch(
    recipe: config.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from underpaint.core import loss

    forward = loss.DenoisingLoss.forward

    def full(self: Any, patches: torch.Tensor, *others: Any, **more: Any) -> Any:
        if len(patches) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, patches, *others, **more)

    monkeypatch.setattr(loss.DenoisingLoss, "forward", full)
    with pytest.raises(RunFailed, match=r"a batch of 8 in microbatches of 8; .*--microbatch auto"):
        up.train(recipe, tmp_path / "one", quiet=True, write_report=False)
    recipe.train.microbatch = -1
    up.train(recipe, tmp_path / "two", quiet=True, write_report=False)
    assert config.load(tmp_path / "two" / "config.yaml").train.microbatch == 2


def test_two_trainings_in_one_process_are_refused(recipe: config.Run, tmp_path: Path) -> None:
    import torch

    tried = []

    def inside(what: str, done: float, total: float) -> None:
        if not tried:
            tried.append(what)
            with pytest.raises(UserError, match="another training is going on"):
                up.train(recipe, tmp_path / "inner", quiet=True)

    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    with following(Heard(inside)):
        training.train(recipe, tmp_path / "run", quiet=True)
    assert tried
    assert torch.rand(1) == expected
