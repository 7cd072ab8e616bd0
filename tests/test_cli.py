"""The command line: what it answers, prints and returns."""

import argparse
import dataclasses
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import underpaint
from underpaint import config
from underpaint.cli import VERBS, main, parser
from underpaint.cli import train as training
from underpaint.cli.parser import print_facts, print_table
from underpaint.cli.prepare import WRONG
from underpaint.core import masks
from underpaint.errors import Interrupted, RunFailed, UserError
from underpaint.planning import machine

HEAVY = ["torch", "matplotlib", "scipy", "numpy", "PIL", "rich", "jinja2", "safetensors"]
HEAVY += ["huggingface_hub"]


def parsed(*flags: str, verb: str = "train") -> tuple[argparse.Namespace, list[str]]:
    return parser(verb).parse_known_args(list(flags))


def recipe(*flags: str, verb: str = "train") -> config.Run:
    return training.recipe(*parsed(*flags, verb=verb))


# --- help --------------------------------------------------------------------------------------


def test_help_imports_nothing_heavy() -> None:
    code = f"""
import contextlib, io, sys
import underpaint
from underpaint.cli import VERBS, main
with contextlib.redirect_stdout(io.StringIO()):
    main(["--help"]), main(["--version"])
    for verb in VERBS:
        with contextlib.suppress(SystemExit):
            main([verb, "--help"])
print([m for m in {HEAVY} if m in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_loading_a_model_does_not_import_the_compiler() -> None:
    """torch._dynamo takes seconds, and nothing that loads or draws needs it."""
    script = (
        "import sys; from underpaint import model\n"
        "model.load('pretrained:lorelei', device='cpu').sample(1, steps=1)\n"
        "print('torch._dynamo' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.stdout == "False\n", found.stderr


@pytest.mark.parametrize("verb", list(VERBS))
def test_help_says_what_a_verb_does_in_one_sentence(verb: str) -> None:
    described = parser(verb).description
    assert described is not None
    assert re.fullmatch(r"[A-Z][^\n]*[^.?][.?]", described)


def test_train_help_has_every_setting_with_its_help() -> None:
    text = " ".join(parser("train").format_help().split())
    for name in config.flag_names(config.Run()):
        assert name in text
    for cls, section in ((config.Stage, "stages.NAME"), (config.Train, "train")):
        for field in dataclasses.fields(cls):
            assert f"--{section}.{field.name} " in text
            assert field.metadata["help"] in text
    assert "peak learning rate (default: 0.001)" in text


def test_overview_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    overview = capsys.readouterr().out
    assert all(re.search(rf"^  {verb} ", overview, re.M) for verb in VERBS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"underpaint {underpaint.__version__}\n"


def test_as_a_module() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "underpaint", "trian"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert run.stderr == "underpaint: 'trian' is not a command; did you mean 'train'?\n"


# --- exit codes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (RunFailed("no space left"), 1, "underpaint: no space left\n"),
        (Interrupted(), 130, ""),
        (KeyboardInterrupt(), 130, "underpaint: interrupted\n"),
    ],
)
def test_exit_codes(
    error: BaseException,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(importlib.import_module("underpaint.cli.presets"), "run", raiser(error))
    assert main(["presets"]) == code
    assert capsys.readouterr().err == line


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    presets = importlib.import_module("underpaint.cli.presets")
    monkeypatch.setattr(presets, "run", raiser(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        main(["presets"])


def raiser(error: BaseException) -> Callable[..., None]:
    def run(*_: object) -> None:
        raise error

    return run


def test_a_closed_pipe_is_quiet() -> None:
    command = f"{sys.executable} -c 'import time, sys; time.sleep(1); import underpaint.cli as c; "
    command += 'sys.exit(c.main(["presets", "default"]))\' | true; exit ${PIPESTATUS[0]}'
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")


# --- recipes from flags ------------------------------------------------------------------------


def test_flags_win_over_the_file_and_the_file_over_the_preset(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("train: {seed: 3, ema: 0.9}\nstages: {whole: {batch: 16, images: 640}}\n")
    run = recipe(
        *("--preset", "masked", "--config", str(path), "--data", "photos", "--size", "32", "48"),
        *("--channels", "1", "--no-labels", "--train.seed", "7", "--stages.whole.batch=64"),
    )
    assert (run.train.seed, run.train.ema, run.stages["whole"].batch) == (7, 0.9, 64)
    assert (run.stages["whole"].images, run.stages["whole"].minutes) == (640, 0)
    assert run.stages["masked"] == config.preset("masked").stages["masked"]
    assert run.data == dataclasses.replace(
        config.preset("masked").data, source="photos", size=(32, 48), channels=1
    )
    assert not run.network.labels


def test_the_default_recipe_has_patches_for_the_size_of_the_images(faces: Path) -> None:
    assert recipe("--data", "photos", "--size", "32").space.patch == 2
    assert recipe("--data", "photos", "--size", "32", "--space.patch", "4").space.patch == 4
    assert recipe("--data", "photos", "--size", "32", "--preset", "default").space.patch == 4
    assert recipe("--data", str(faces), "--held-out", "none").space.patch == 2  # 16×16 pixels


def test_a_file_alone_is_a_whole_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("stages: {only: {images: 64}}\n")
    assert recipe("--config", str(path)) == config.load(path)
    assert list(recipe("--config", str(path)).stages) == ["only"]


def test_pretrain_and_finetune_are_the_two_halves() -> None:
    preset = "maskdm-celebahq256"
    masked = recipe("--preset", preset, verb="pretrain").stages
    whole = recipe("--preset", preset, "--from", "pretrained:x", verb="finetune").stages
    assert list(masked) == ["masked90", "masked50"]
    assert list(whole) == ["whole"]
    assert masked | whole == config.preset(preset).stages
    assert list(recipe(verb="pretrain").stages) == ["masked"]  # without a preset


def test_minutes_are_split_in_the_recipes_proportions(tmp_path: Path) -> None:
    stages = recipe("--preset", "masked", "--minutes", "60").stages
    own = config.preset("masked").stages
    assert sum(stage.minutes for stage in stages.values()) == pytest.approx(60)
    assert stages["masked"].minutes / stages["whole"].minutes == pytest.approx(
        own["masked"].minutes / own["whole"].minutes
    )
    path = tmp_path / "images.yaml"  # 300 images of a quarter cost what 75 whole ones do
    path.write_text(
        "stages: {a: {images: 300, mask: patch, rate: 0.75, batch: 1}, b: {images: 25, batch: 1}}"
    )
    stages = recipe("--config", str(path), "--minutes", "2").stages
    assert [(s.images, s.minutes) for s in stages.values()] == [(0, 1.5), (0, 0.5)]


def test_a_length_is_given_once() -> None:
    for flags in (["images", "64", "minutes", "0"], ["minutes", "0", "images", "64"]):
        given = (f"--stages.whole.{flags[0]}", flags[1], f"--stages.whole.{flags[2]}", flags[3])
        whole = recipe(*given).stages["whole"]
        assert (whole.images, whole.minutes) == (64, 0)
    with pytest.raises(UserError, match=r"whole.images and --stages.whole.minutes: give one"):
        recipe("--stages.whole.images", "64", "--stages.whole.minutes", "2")
    with pytest.raises(UserError, match=r"--minutes and --stages.whole.images: give one"):
        recipe("--minutes", "2", "--stages.whole.images", "64")


def test_the_help_of_export_names_every_form() -> None:
    from underpaint.interop.export import FORMS

    text = parser("export").format_help()
    assert all(f"\n  {form} " in text for form in FORMS)
    assert "hub:ORG/NAME" in text


@pytest.mark.parametrize(
    ("source", "verb", "out"),
    [
        ("photos/", "train", "runs/photos"),
        ("some/where/my photos.zip", "train", "runs/my-photos"),
        ("avatars:lorelei", "train", "runs/avatars-lorelei"),
        ("photos", "finetune", "runs/photos-finetune"),
    ],
)
def test_a_run_is_named_after_its_images(source: str, verb: str, out: str) -> None:
    run = config.preset("default")
    run.data.source = source
    assert training._default_out(run, verb) == out


# --- verbs -------------------------------------------------------------------------------------


def test_presets(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["presets"]) == 0
    listed = capsys.readouterr().out
    names = config.preset_names()
    assert {
        "quickstart",
        "default",
        "maskdm-celeba64",
        "maskdm-celebahq256",
        "maskdm-transfer",
    } < set(names)
    assert all(re.search(rf"^{name} +\S", listed, re.M) for name in names)
    assert main(["presets", "default"]) == 0
    (tmp_path / "mine.yaml").write_text(capsys.readouterr().out)
    assert config.load(tmp_path / "mine.yaml") == config.preset("default")
    assert main(["presets", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["presets"]) == names


def test_dry_run_needs_no_images(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--preset", "maskdm-celebahq256", "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] / 1e6 == pytest.approx(102.42, abs=0.01)
    assert [(s["name"], s["visible"]) for s in found["stages"]] == [
        ("masked90", 416),
        ("masked50", 2048),
        ("whole", 4096),
    ]
    assert main(["pretrain", "--preset", "maskdm-celebahq256", "--dry-run"]) == 0
    table = capsys.readouterr().out
    assert "416 of 4096" in table
    assert "whole" not in table


@pytest.mark.parametrize("name", config.preset_names())
def test_dry_run_of_every_preset(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Parameters, and the FLOPs of each stage."""
    run, command = config.preset(name), ["train", "--preset", name, "--dry-run"]
    if run.network.depth > 6:  # blocks that are all alike are slow to count
        command += ["--network.depth", "6"]
    assert main(command) == 0
    table = capsys.readouterr().out
    assert ("a size is assumed" in table) == (not run.data.size)  # that of the user's own images
    assert re.search(r"^[\d,]{7,} parameters, images of \d+×\d+×3$", table, re.M)
    assert "GFLOP/image" in table
    timed = any(stage.minutes for stage in run.stages.values())
    assert ("minutes are in all: start, checks" in table) == timed
    for stage, settings in run.stages.items():
        row = rf"^{stage} +{settings.mask} +[\d.]+% +[\d.]+ of \d+ +[\d.,]*[1-9][\d.,]* +1/[\d.]+"
        assert re.search(row, table, re.M), table


def test_dry_run_with_images_trains_nothing(
    faces: Path, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--config", str(small), "--data", str(faces), "--out", str(tmp_path / "run")]
    assert main(["train", *flags, "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["size"], found["classes"]) == ([8, 8], 2)
    assert not (tmp_path / "run").exists()


def test_prepare(faces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", str(faces), "--size", "8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["labels"] == {"dark": 12, "light": 12}
    assert main(["prepare", str(faces), "--size", "8"]) == 0
    assert re.search(r"^labels +dark 12, light 12 *$", capsys.readouterr().out, re.M)


def test_a_name_with_a_line_break_stays_in_its_line(
    faces: Path, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a label, of a file that cannot be read, and of what nobody reads."""
    (faces / "dark").rename(faces / "dark\nroom")
    (faces / "light" / "half\npart.png").write_bytes(b"")
    (faces / "a\u2028note.txt").write_text("x")
    images = [str(faces), "--size", "8", "--max-bad", "0.5"]
    assert main(["prepare", *images]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = {line.split("  ")[0]: line.rstrip() for line in lines}
    assert re.fullmatch(r"labels +dark\ufffdroom 12, light 12", found["labels"])
    assert re.search(r"light/half\ufffdpart.png: ", found["unreadable"])
    assert re.search(r"a\ufffdnote.txt", found["unread"])
    assert main(["prepare", *images, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report["labels"]) == ["dark\nroom", "light"]
    assert len(lines) == sum(bool(fact) or key not in WRONG for key, fact in report.items())
    recipe = config.load(small)
    recipe.data.source, recipe.data.max_bad = str(faces), 0.5
    recipe.stages = {"whole": config.Stage(images=8, batch=8)}
    run = underpaint.train(recipe, tmp_path / "run", write_report=False, quiet=True)
    log = (run / "log.txt").read_text(encoding="utf-8").splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d ", line) for line in log), log


def test_tables_keep_to_their_lines(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["a\nb", "c"], [["d\ne", "1"], ["f", "2\x0b"]])
    print_facts({"one": "x\ny", "many": ["u\nv", "w"]})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["a\ufffdb", "c"],
        ["d\ufffde", "1"],
        ["f", "2\ufffd"],
        ["one", "x\ufffdy"],
        ["many", "u\ufffdv"],
        ["w"],
    ]


def test_plan_writes_a_recipe_that_trains(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Timed here; the recipe is cut to a few batches to be trained."""
    out = tmp_path / "plan.yaml"
    flags = [str(faces), "--size", "16", "--budget", "10m", "--seconds", "0.1", "--out", str(out)]
    assert main(["plan", *flags, "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["measured"]
    assert found["config"] == str(out)
    assert all(stage["images_per_s"] > 0 for stage in found["stages"])
    assert config.to_dict(config.load(out)) == found["recipe"]
    assert main(["train", "--config", str(out), "--dry-run", "--json"]) == 0
    dry = json.loads(capsys.readouterr().out)
    assert dry["parameters"] == found["parameters"]
    assert [s["images"] for s in dry["stages"]] == [s["images"] for s in found["stages"]]
    few = ["--stages.whole.images", "64", "--train.check_every", "-1", "--train.sample_every", "-1"]
    cut = config.apply_flags(config.load(out), few)
    folder = underpaint.train(
        cut, tmp_path / "run", start=found["from"], write_report=False, quiet=True
    )
    network = config.load(folder / "config.yaml").network  # that of the packaged weights
    assert (network.kind, network.width) == ("hourglass", 64)


def test_plan_for_a_gpu_that_is_not_here(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "plan.yaml"
    flags = [
        str(faces),
        "--size",
        "32",
        "--budget",
        "1h",
        "--device",
        "rtx-4090",
        "--out",
        str(out),
    ]
    assert main(["plan", *flags]) == 0
    text = capsys.readouterr().out
    assert "computed, not measured" in text
    assert "patches per image" in text  # the evidence is cited
    assert f"train --config {out} --from pretrained:lorelei" in text  # 24 images are few
    assert "\n- no masked stage" in text
    assert main(["plan", *flags, "--overwrite", "--explain"]) == 0
    assert "\n- few images" in capsys.readouterr().out


def test_an_interrupted_plan_writes_nothing(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.setattr(machine, "speed", raiser(KeyboardInterrupt()))
    out = tmp_path / "plan.yaml"
    assert main(["plan", str(faces), "--size", "16", "--device", "cpu", "--out", str(out)]) == 130
    assert capsys.readouterr().err == "underpaint: interrupted\n"
    assert not out.exists()


def test_train_says_where_everything_is(
    faces: Path, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    flags = ["--config", str(small), "--data", str(faces), "--out", str(out)]
    assert main(["train", *flags, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["run"] == str(out)
    assert found["images"] == 64
    assert Path(found["report"]).is_file()
    assert main(["train", "--resume", "--out", str(out), "--quiet"]) == 0
    assert str(out) in capsys.readouterr().out


def test_finetune_takes_the_network_of_its_start(
    trained: Path, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tuned"
    flags = ["--from", str(trained), "--data", str(faces), "--out", str(out), "--quiet"]
    settings = ["--stages.whole.images", "32", "--train.sample_every", "-1"]
    assert main(["finetune", *flags, *settings]) == 0
    run = config.load(out / "config.yaml")
    assert run.network.width == 64
    assert list(run.stages) == ["whole"]
    assert run.data.size == (8, 8)


def test_sample_as_a_grid(trained: Path, tmp_path: Path) -> None:
    grid = tmp_path / "new" / "grid.png"
    assert main(["sample", str(trained), "-n", "4", "--steps", "2", "--out", str(grid)]) == 0
    with Image.open(grid) as sheet:
        about = sheet.info
        assert (about["seed"], about["steps"], about["labels"]) == ("0", "2", "dark, light")
        assert 600 <= sheet.width <= 1000


def test_samples_depend_on_their_seed_alone(trained: Path, tmp_path: Path) -> None:
    def draw(name: str, *flags: str) -> Path:
        out = tmp_path / name
        common = ["--steps", "2", "--sampler", "ancestral", "--label", "light", "--guidance", "2"]
        assert main(["sample", str(trained), *common, *flags, "--out", str(out)]) == 0
        return out

    arrays = np.load(draw("a.npz", "-n", "3", "--seed", "5", "--batch", "2"))
    assert arrays["images"].shape == (3, 8, 8, 3)
    assert arrays["seeds"].tolist() == [5, 6, 7]
    assert json.loads(str(arrays["about"]))["guidance"] == 2
    folder = draw("folder", "-n", "1", "--seed", "7")
    (file,) = folder.iterdir()
    assert file.name == "seed00000007_light.png"
    with Image.open(file) as image:
        assert (image.info["seed"], image.info["label"]) == ("7", "light")
        assert np.array_equal(np.asarray(image), arrays["images"][2])


def test_sample_json_is_one_object(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "x.npz")
    assert main(["sample", str(trained), "-n", "2", "--out", out, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (found["out"], found["n"], found["sampler"]) == (out, 2, "euler")


# --- the package -------------------------------------------------------------------------------


def test_public_names() -> None:
    assert all(hasattr(underpaint, name) for name in underpaint.__all__)
    assert masks.Mask((2, 2)).grid == (2, 2)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        underpaint.trian  # noqa: B018
