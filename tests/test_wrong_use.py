"""Wrong use gives one line that says what was given, what was expected, and what to do.

The fixture `wrong` runs a command and asserts exit code 2, one line on stderr and no traceback.
"""

import errno
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from underpaint.cli import main

Wrong = Callable[..., str]


@pytest.fixture
def train(wrong: Wrong, small: Path, tmp_path: Path) -> Wrong:
    """`underpaint train` with a small recipe, refused."""

    def run(*arguments: object, verb: str = "train") -> str:
        return wrong(verb, "--config", small, "--out", tmp_path / "run", *arguments)

    return run


# --- images ------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["prepare", "train"])
def test_images_that_are_not_there(verb: str, wrong: Wrong, train: Wrong, tmp_path: Path) -> None:
    path = tmp_path / "nowhere"
    line = train("--data", path) if verb == "train" else wrong("prepare", path)
    assert str(path) in line


def test_no_images_given(train: Wrong, wrong: Wrong) -> None:
    assert "--data" in train()
    assert "--stages.masked.data.source" in wrong(
        "train", "--preset", "maskdm-transfer", "--data", "x"
    )
    assert "--size" in wrong("train", "--dry-run")


def test_an_empty_folder(wrong: Wrong, train: Wrong, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    assert str(folder) in wrong("prepare", folder)
    assert str(folder) in train("--data", folder)


def test_nothing_but_unreadable_images(wrong: Wrong, train: Wrong, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.png").write_bytes(b"not a picture")
    assert "read" in wrong("prepare", folder, "--size", 8)
    assert "read" in train("--data", folder, "--size", 8)


def test_one_image(train: Wrong, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    Image.new("RGB", (8, 8), "red").save(folder / "only.png")
    assert str(folder) in train("--data", folder)


def test_wishes_that_no_image_can_have(wrong: Wrong, faces: Path) -> None:
    assert "--size: expected a whole number, got 'big'" in wrong("prepare", faces, "--size", "big")
    assert "size '0': give one positive number" in wrong("prepare", faces, "--size", 0)
    assert "--channels: 2 is not one of 1, 3" in wrong("prepare", faces, "--channels", 2)
    assert "--fit: 'squash' is not one of" in wrong("prepare", faces, "--fit", "squash")
    assert "max_bad 7" in wrong("prepare", faces, "--size", 8, "--max-bad", 7)
    assert "prepare needs DATA" in wrong("prepare")


# --- recipes -----------------------------------------------------------------------------------


def test_a_size_that_the_patch_does_not_divide(train: Wrong, faces: Path) -> None:
    assert "patch" in train("--data", faces, "--size", 10)
    assert "patch" in train("--data", faces, "--space.patch", 3)  # the images' own size


def test_a_grid_smaller_than_a_block(train: Wrong, faces: Path) -> None:
    flags = ("--stages.masked.mask", "block", "--stages.masked.block", 3)
    assert "block" in train("--data", faces, *flags)


@pytest.mark.parametrize(("rate", "mask"), [(1.0, "patch"), (1.5, "patch"), (0.99, "crop")])
def test_a_rate_that_leaves_no_patch(rate: float, mask: str, train: Wrong, faces: Path) -> None:
    line = train("--data", faces, "--stages.masked.rate", rate, "--stages.masked.mask", mask)
    assert "rate" in line
    assert "masked" in line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train: {learing_rate: 1}", "'learing_rate' is not a setting of train; did you mean"),
        ("stages: {whole: {bach: 3}}", "did you mean 'batch'?"),
        ("train: {seed: many}", "train.seed: expected a whole number, got 'many'"),
        ("stages: {whole: {batch: [3]}}", "stages.whole.batch: expected a whole number"),
        ("a: [", "is not valid YAML"),
        ("just words", "expected settings"),
    ],
)
def test_a_recipe_with_a_mistake(text: str, expected: str, wrong: Wrong, tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(text)
    line = wrong("train", "--config", path, "--data", "x")
    assert "my.yaml" in line
    assert expected in line


def test_a_recipe_that_is_not_there(wrong: Wrong, tmp_path: Path) -> None:
    assert "cannot be read" in wrong("train", "--config", tmp_path / "no.yaml")
    assert "did you mean 'quickstart'?" in wrong("train", "--preset", "quikstart")
    assert "did you mean 'default'?" in wrong("presets", "defualt")


def test_a_network_that_is_not_there(train: Wrong, faces: Path) -> None:
    assert "did you mean 'uvit'?" in train("--data", faces, "--network.kind", "uvitt")
    assert "heads" in train("--data", faces, "--network.heads", 3)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--dta", "x"], "'--dta' is not a flag of underpaint train; did you mean '--data'?"),
        (["--batch", "3"], "'--batch' is not a flag"),
        (["--train.sed", "3"], "did you mean 'seed'?"),
        (["--stages.hole.batch", "3"], "no stage 'hole'"),
        (["--minutes", "soon"], "--minutes: expected a number, got 'soon'"),
        (["--minutes", "0"], "--minutes 0: give a positive number"),
        (["--size"], "--size: expected at least one argument"),
        (["--data"], "--data: expected one argument"),
        (["photos"], "'photos' was not expected"),
        (["--stop", "soon"], "--stop: 'soon' is not one of none, auto"),
        (["--stop", "auto", "--held-out", "none"], "stage masked has none; hold some out"),
    ],
)
def test_wrong_flags(flags: list[str], expected: str, train: Wrong, faces: Path) -> None:
    if "auto" in flags:  # what only the images tell
        flags = [*flags, "--data", str(faces), "--train.check_every", "8"]
    assert expected in train(*flags)


def test_halves_that_a_recipe_does_not_have(wrong: Wrong, train: Wrong, tmp_path: Path) -> None:
    path = tmp_path / "whole.yaml"
    path.write_text("stages: {whole: {images: 64}}")
    assert "no masked stage" in wrong("pretrain", "--config", path, "--data", "x")
    assert "finetune needs --from" in train("--data", "x", verb="finetune")


# --- weights to begin with ---------------------------------------------------------------------


def test_weights_that_are_not_there(
    train: Wrong, wrong: Wrong, faces: Path, tmp_path: Path
) -> None:
    nowhere = tmp_path / "nowhere"
    assert str(nowhere) in train("--data", faces, "--from", nowhere)
    assert str(tmp_path) in train("--data", faces, "--from", tmp_path)
    assert "pretrained:nobody" in train("--data", faces, "--from", "pretrained:nobody")
    assert str(nowhere) in wrong("finetune", "--data", faces, "--from", nowhere)


def test_weights_of_another_architecture(train: Wrong, trained: Path, faces: Path) -> None:
    line = train("--data", faces, "--from", trained, "--network.depth", 5, "--network.width", 96)
    assert "network.width" in line  # the first mismatch
    assert "64" in line
    assert "96" in line


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def checkpoint(run: Path) -> Path:
    return run / "checkpoints" / (run / "checkpoints" / "LATEST").read_text().strip()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def tamper(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [truncate, tamper, pytest.param(Path.unlink, id="missing")])
def test_damaged_weights(
    damage: Callable[[Path], None],
    copy: Path,
    wrong: Wrong,
    train: Wrong,
    faces: Path,
    tmp_path: Path,
) -> None:
    for folder in (copy / "checkpoints").glob("0*"):
        damage(folder / "ema.safetensors")
    out = tmp_path / "x.png"
    for source in (copy, checkpoint(copy)):
        assert "safetensors" in wrong("sample", source, "--out", out)
        assert "safetensors" in train("--data", faces, "--from", source)
    assert "safetensors" in wrong("train", "--resume", "--out", copy)
    assert not out.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", json.dumps({"model": {"network": {"wdth": 3}}})])
def test_a_damaged_description(text: str, copy: Path, wrong: Wrong, tmp_path: Path) -> None:
    for folder in (copy / "checkpoints").glob("0*"):
        (folder / "config.json").write_text(text)
    wrong("sample", checkpoint(copy), "--out", tmp_path / "x.png")
    wrong("sample", copy, "--out", tmp_path / "x.png")


# --- folders -----------------------------------------------------------------------------------


def test_a_run_that_is_there_already(wrong: Wrong, trained: Path, small: Path, faces: Path) -> None:
    line = wrong("train", "--config", small, "--data", faces, "--out", trained)
    assert "--resume" in line
    assert "--overwrite" in line


def test_a_run_that_is_not_there(wrong: Wrong, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    assert str(nowhere) in wrong("train", "--resume", "--out", nowhere)
    assert "--out" in wrong("train", "--resume")
    assert "--overwrite" in wrong("train", "--resume", "--overwrite", "--out", nowhere)
    assert str(nowhere) in wrong("sample", nowhere, "--out", tmp_path / "x.png")
    assert str(nowhere) in wrong("report", nowhere)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--train.seed", "5"], "--train.seed 5: the run in "),
        (["--size", "16"], "--size 16: the run in "),
        (["--remove-duplicates"], "--remove-duplicates true: the run in "),
        (["--stages.whole.images", "64"], "--stages.whole.images 64: the run in "),
        (["--preset", "default"], "--preset default: "),
        (["--preset", "default"], " more differ too), and "),
        (["--train.seed", "5", "--size", "16"], " (train.seed differs too), and "),
        (["--from", "pretrained:lorelei"], "--from pretrained:lorelei: the run in "),
    ],
)
def test_resume_and_something_else(flags: list[str], said: str, copy: Path, wrong: Wrong) -> None:
    assert said in wrong("train", "--resume", "--out", copy, *flags)


def test_resume_and_the_same_again(copy: Path, small: Path, faces: Path) -> None:
    flags = ["--config", small, "--data", faces, "--out", copy, "--train.precision", "auto"]
    assert main(["train", "--resume", *map(str, flags), "--quiet"]) == 0


def test_a_folder_of_other_things_is_not_overwritten(
    train: Wrong, faces: Path, wrong: Wrong
) -> None:
    line = wrong("train", "--data", faces, "--size", 8, "--out", faces, "--overwrite")
    assert str(faces) in line
    assert len(list(faces.rglob("*.png"))) == 24


@pytest.mark.parametrize("kind", ["below a file", "a file"])
def test_a_place_that_cannot_be_written(
    kind: str, wrong: Wrong, trained: Path, small: Path, faces: Path, tmp_path: Path
) -> None:
    file = tmp_path / "file.txt"
    file.touch()
    out = file / "run" if kind == "below a file" else file
    flags = ("--config", small, "--data", faces)
    assert str(out) in wrong("train", *flags, "--out", out)
    if kind == "below a file":
        for name in ("x.png", "x.npz", "folder"):
            assert "cannot be written" in wrong("sample", trained, "--out", out / name)
    else:
        assert "give a .png" in wrong("sample", trained, "--out", out)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_read_only_place(
    number: int,
    wrong: Wrong,
    small: Path,
    faces: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tests may run as root, whom no mode stops: the operating system's answer is played."""
    target, mkdir = tmp_path / "read-only" / "run", Path.mkdir

    def refused(path: Path, *args: object, **options: object) -> None:
        if "read-only" in path.parts:
            raise OSError(number, "refused", str(path))
        mkdir(path, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "mkdir", refused)
    flags = ("--config", small, "--data", faces)
    assert str(target) in wrong("train", *flags, "--out", target)


def test_no_space(
    wrong: Wrong, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    for out in (tmp_path / "x.png", tmp_path / "folder"):
        line = wrong("sample", trained, "-n", 2, "--out", out)
        assert f"no space left for {out}; free some, or choose another --out" in line
        assert not list(tmp_path.iterdir())


# --- sampling ----------------------------------------------------------------------------------


def test_wishes_that_no_model_can_meet(wrong: Wrong, trained: Path, tmp_path: Path) -> None:
    def sample(*flags: object) -> str:
        return wrong("sample", trained, "--out", tmp_path / "x.png", *flags)

    assert "-n 0: give a number from 1 up" in sample("-n", 0)
    assert "-n: expected a whole number, got 'many'" in sample("-n", "many")
    assert "--steps 0: give a number from 1 up" in sample("--steps", 0)
    assert "--guidance -1" in sample("--guidance", -1)
    assert "--sampler: 'hein' is not one of euler, heun" in sample("--sampler", "hein")
    assert "did you mean 'light'?" in sample("--label", "ligt")
    assert "known: dark, light" in sample("--label", "xyzzy")
    assert "did you mean '--steps'?" in sample("--stepps", 3)
    assert "mars" in sample("--device", "mars")
    assert "sample needs RUN" in wrong("sample")
    assert not (tmp_path / "x.png").exists()


def test_labels_of_an_unlabelled_model(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: Wrong
) -> None:
    images, run = tmp_path / "plain.npy", tmp_path / "plain"
    np.save(images, np.random.default_rng(0).integers(0, 255, (20, 8, 8, 3), dtype=np.uint8))
    flags = ["--config", small, "--data", images, "--out", run, "--quiet"]
    assert main(["train", *map(str, flags)]) == 0
    capsys.readouterr()
    out = ("--out", tmp_path / "x.png")
    assert "was trained without labels" in wrong("sample", run, *out, "--label", "cat")
    assert "was trained without" in wrong("sample", run, *out, "--guidance", 2)


# --- systems -----------------------------------------------------------------------------------


@pytest.fixture
def autoencoder(tmp_path: Path) -> Path:
    """The description of an autoencoder of grey images, 1/2 of the side."""
    folder = tmp_path / "vae"
    folder.mkdir()
    about = {"_class_name": "AutoencoderKL", "in_channels": 1, "latent_channels": 4}
    (folder / "config.json").write_text(json.dumps(about | {"block_out_channels": [8, 8]}))
    return folder


UNET = ("--network.kind", "unet", "--network.options.multipliers", 1, 1, 1, 1)
HOURGLASS = ("--network.kind", "hourglass")
LATENTS = ("--space.kind", "latents", "--space.patch", 1, "--space.factor", 2)
LATENTS = (*LATENTS, "--sampling.clip", "none")


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((*UNET, "--size", 12), "12×12 is not divisible by 8; give size 8×8 or 16×16"),
        (("--stages.masked.mask", "block", "--stages.masked.block", 3), "no block of 3×3; give"),
        (
            ("--space.kind", "wavelets", "--space.patch", 1, "--size", 9),
            "9×9 is not divisible by space.patch 1 · 2^1 of the wavelets; give size 8",
        ),
        (("--noise.hidden_weight", 0.1), "which dit has not; use 0, or network.kind maskdit"),
        (
            HOURGLASS,
            "stages.masked: mask 'patch' hides squares of 2×2 patches, as the network needs them, "
            "and the grid of 2×2 is only one; use mask none",
        ),
        (
            (*HOURGLASS, "--network.options.levels", 2),
            "levels 2: a grid of 2×2 patches is not divisible by 4; give fewer levels",
        ),
        ((*HOURGLASS, "--network.heads", 64), "network.heads 64: 128 features at the coarsest"),
        ((*HOURGLASS, "--network.options.levels", "two"), "levels: expected a value like 1"),
        (("--sampling.guidance", 2, "--no-labels"), "network.labels is false; give guidance 1"),
        (
            ("--noise.process", "ve"),
            "'flow' does not go with process ve",
        ),
    ],
)
def test_systems_that_cannot_be(
    flags: tuple[object, ...], expected: str, dry: tuple[str, ...], train: Wrong, faces: Path
) -> None:
    if "ve" in flags:
        flags = (*flags, "--noise.time", "log-uniform")
    assert expected in train("--data", faces, *flags, *dry)


def test_wavelets_of_images_with_odd_sides(train: Wrong, tmp_path: Path) -> None:
    np.save(tmp_path / "odd.npy", np.zeros((20, 9, 9, 3), np.uint8))
    flags = ("--data", tmp_path / "odd.npy", "--space.kind", "wavelets", "--space.patch", 1)
    assert "size 9×9: 1 levels of wavelets with patch 1 need sides divisible by" in train(*flags)
    assert "sides divisible by patch · 2^levels = 2" in train(*flags, "--dry-run")


def test_latents_without_an_autoencoder_that_fits(
    train: Wrong, faces: Path, autoencoder: Path
) -> None:
    flags = ("--data", faces, *LATENTS)
    assert "needs an autoencoder; give --space.vae the folder" in train(*flags)
    line = train(*flags, "--space.vae", autoencoder)
    assert "takes images of 1 channels, these have 3; set data.channels" in line


def test_a_preset_with_guidance_and_images_without_labels(wrong: Wrong, tmp_path: Path) -> None:
    np.save(tmp_path / "plain.npy", np.zeros((20, 8, 8, 3), np.uint8))
    command = ("train", "--preset", "maskdit-xl2-imagenet256", "--data", tmp_path / "plain.npy")
    for more in (("--out", tmp_path / "run"), ("--dry-run",)):
        line = wrong(*command, *more, "--size", 16)
        assert "guides towards labels, and" in line
        assert "one class for all is enough, or set --sampling.guidance 1 to train without" in line
    assert not (tmp_path / "run").exists()


def test_one_class_for_all_is_enough(
    small: Path, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = "".join(f"{path},person\n" for path in sorted(faces.rglob("*.png")))
    (tmp_path / "one.csv").write_text("path,label\n" + table)
    flags = ["--config", small, "--data", tmp_path / "one.csv", "--sampling.guidance", "2"]
    assert main(["train", *map(str, flags), "--out", str(tmp_path / "run"), "--quiet"]) == 0
    assert main(["train", *map(str, flags), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.split("\n", 3)[3])["classes"] == 1


def test_diffusers_is_not_installed(
    train: Wrong, faces: Path, autoencoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("diffusers", "diffusers.models.unets.unet_2d"):
        monkeypatch.setitem(sys.modules, module, None)
    advice = "needs diffusers; type pip install 'underpaint[diffusers]'"
    unet = train("--data", faces, *UNET, "--size", 8)
    assert f"network.kind unet {advice}" in unet
    latents = train("--data", faces, *LATENTS, "--channels", 1, "--space.vae", autoencoder)
    assert f"space.kind latents {advice}" in latents


# --- planning ----------------------------------------------------------------------------------


def test_plans_that_cannot_be_made(wrong: Wrong, faces: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.yaml"

    def plan(data: object = faces, *flags: object, size: object = 16) -> str:
        line = wrong("plan", data, "--size", size, "--out", out, *flags)
        assert not out.exists()
        return line

    empty = tmp_path / "empty"
    empty.mkdir()
    assert str(empty) in plan(empty, "--device", "h100")
    assert str(tmp_path / "nowhere") in plan(tmp_path / "nowhere", "--device", "h100")
    assert "device 'h10' is neither here nor known; did you mean 'h100'?" in plan(
        faces, "--device", "h10"
    )
    assert "cuda" in plan(faces, "--device", "cuda:99")
    assert "--budget 'soon': give a time like 45min" in plan(faces, "--budget", "soon")
    assert "measuring this machine takes 20s of it; give at least 1min" in plan(
        faces, "--budget", "10s"
    )
    assert "too small for one checkpoint" in plan(
        faces, "--device", "t4", "--budget", "0.001s", size=64
    )
    assert "size 13×13 is not divisible" in plan(faces, size=13)
    assert "--seconds 0" in plan(faces, "--seconds", 0)
    assert "plan needs DATA" in wrong("plan")
    assert "ends in .yaml" in wrong("plan", faces, "--out", tmp_path / "plan.txt")
    assert "is a folder" in wrong("plan", faces, "--out", tmp_path)
    out.write_text("mine")
    assert "add --overwrite or choose another --out" in wrong("plan", faces, "--out", out)
    assert out.read_text() == "mine"


# --- comparing ---------------------------------------------------------------------------------


def test_studies_that_cannot_be_compared(wrong: Wrong, small: Path, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    arms = "arms: {a: {settings: {stages: {masked: null}}}, b: {BUDGET}}"
    text = f"recipe: {small.name}\nbudget: 1e6\nscore: held-out loss\n{arms}\n"
    data = f"settings: {{data: {{source: {tmp_path / 'x.npy'}, held_out: '12'}}}}\n"
    pixels = np.random.default_rng(0).integers(0, 255, (40, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "x.npy", pixels)
    path.write_text(data + text.replace("BUDGET", "budget: 2e6"))
    assert "arms that differ in budget cannot be compared" in wrong("compare", path)
    path.write_text(data + text.replace("BUDGET", ""))
    out = tmp_path / "out"
    line = wrong("compare", path, "--out", out, "--quiet")
    assert "a budget of 1e+06 FLOPs is too small for one checkpoint" in line
    assert not out.exists()
    path.write_text(text.replace("BUDGET", ""))
    assert "names no images" in wrong("compare", path)
    path.write_text(text.replace("BUDGET", "") + "stuff: 1\n")
    assert "study.yaml: 'stuff' is not a setting" in wrong("compare", path)
    assert "cannot be read" in wrong("compare", tmp_path / "no.yaml")
    assert "takes one study alone" in wrong("compare", path, path)


def test_runs_that_cannot_be_compared(wrong: Wrong, trained: Path, tmp_path: Path) -> None:
    assert "two runs at least" in wrong("compare", trained)
    assert "holds no run" in wrong("compare", trained, tmp_path)
    other = Path(shutil.copytree(trained, tmp_path / "other"))
    environment = json.loads((other / "env.json").read_text())
    environment["data"] = dict.fromkeys(environment["data"], "other images")
    (other / "env.json").write_text(json.dumps(environment))
    assert "--workers -1" in wrong("compare", trained, other, "--workers", -1)
    assert f"{other} was trained on other images than {trained}" in wrong("compare", trained, other)


@pytest.mark.parametrize("command", ["train", "pretrain", "finetune"])
@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_network_too_narrow_for_noise_is_not_trained(
    command: str,
    more: tuple[str, ...],
    faces: Path,
    small: Path,
    trained: Path,
    tmp_path: Path,
    wrong: Wrong,
) -> None:
    start = ("--from", trained) if command == "finetune" else ()
    flags = ("--config", small, "--data", faces, "--out", tmp_path / "run", *start, *more)
    line = wrong(command, *flags, "--network.width", 32)
    assert "a patch has 48 numbers and the network 32 features" in line
    assert "--noise.prediction x0" in line
    assert not (tmp_path / "run").exists()
