"""What people do every day: names in any encoding, ~, terminals without UTF-8, typos in Python."""

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
from underpaint import config
from underpaint.cli import main
from underpaint.errors import UserError
from underpaint.report import page


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "underpaint", *map(os.fsencode, map(str, arguments))]
    return subprocess.run(command, capture_output=True, env=os.environ | environment, timeout=300)


def test_a_latin_1_name_is_a_label_to_the_end(tmp_path: Path, small: Path) -> None:
    place = write_pictures(tmp_path / "data")
    (place / "dark").rename(place / os.fsdecode(b"caf\xe9"))
    flags = ["--config", small, "--data", place, "--out", tmp_path / "run", "--quiet"]
    assert main(["train", *map(str, flags)]) == 0
    assert up.load(tmp_path / "run").label_names == ("café", "light")
    out = str(tmp_path / "samples")
    assert main(["sample", str(tmp_path / "run"), "-n", "2", "--steps", "1", "--out", out]) == 0
    moved = place.rename(tmp_path / os.fsdecode(b"d\xe9j\xe0"))
    for encoding in ("utf-8", "ascii", "latin-1"):
        found = run("prepare", moved, "--json", PYTHONIOENCODING=encoding)
        assert found.returncode == 0, found.stderr
        assert json.loads(found.stdout)["labels"] == {"café": 12, "light": 12}


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
    for wrong in ({"labels": []}, {"labels": ["0"]}, {"labels": "dark"}, {"batch": -1}, {"n": 0}):
        with pytest.raises(UserError):
            model.sample(**{"n": 1, "steps": 1, **wrong})
    for seed in (-1, 2**63):
        with pytest.raises(UserError, match="seed"):
            model.sample(1, steps=1, seed=seed)
    assert model.label_ids(["light", 0, -1]) == [1, 0, -1]


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
