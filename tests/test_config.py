"""Settings: what is read, what is written, what is refused."""

import dataclasses
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from underpaint import config
from underpaint.config import presets
from underpaint.errors import UserError
from underpaint.training import cost

ROOT = Path(__file__).parent.parent


def read(values: dict[str, Any], base: config.Run | None = None) -> config.Run:
    return config.from_dict(config.Run, values, "my.yaml: ", base)


def whole(**changes: Any) -> dict[str, Any]:
    """A recipe of one stage with `changes`."""
    return {"stages": {"only": {"images": 640, **changes}}}


# --- presets -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", config.preset_names())
def test_a_preset_is_a_recipe_that_works(name: str, tmp_path: Path) -> None:
    run = config.preset(name)
    config.check(run)
    assert len(presets()[name]) <= 80
    path = tmp_path / "again.yaml"
    path.write_text(config.to_yaml(run))
    assert config.load(path) == run  # what it costs: test_cli.py, test_dry_run_of_every_preset


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("maskdm-celeba64", 44.29),
        ("maskdm-transfer", 46.26),
        ("maskdm-celebahq256", 102.42),
        ("maskdm-dwt-celebahq256", 232.3),
    ],
)
def test_published_presets_have_the_published_size(name: str, millions: float) -> None:
    run = config.preset(name)
    size = config.image_size(run.data.size)
    assert size
    network = cost.network(run, size, 3, 0)
    parameters = sum(p.numel() for p in network.parameters())
    assert parameters / 1e6 == pytest.approx(millions, abs=0.05)


def test_presets_for_few_images_are_a_ladder() -> None:
    runs = [config.preset(f"small-{count}") for count in (300, 3000, 30_000)]
    for falling in (
        [run.network.label_drop for run in runs],
        [run.network.dropout for run in runs],
        [-sum(stage.images for stage in run.stages.values()) for run in runs],
    ):
        assert falling == sorted(falling, reverse=True)
        assert len(set(falling)) == 3
    assert not any(config.network_of(run).augment for run in runs)
    default = config.preset("default")
    for run in runs:  # the rest is `default`'s
        assert (run.noise, run.space, run.train) == (default.noise, default.space, default.train)
        fewer = {"dropout": run.network.dropout, "label_drop": run.network.label_drop}
        assert run.network == dataclasses.replace(default.network, **fewer)
        (stage,), (same,) = run.stages.values(), default.stages.values()
        assert stage == dataclasses.replace(same, images=stage.images, minutes=0.0)


def test_published_warmups_are_in_images() -> None:
    stages = config.preset("maskdm-celebahq256").stages
    assert [s.warmup for s in stages.values()] == [0, 320_000, 160_000]
    assert [s.batch for s in stages.values()] == [256, 64, 32]
    assert [s.rate for s in stages.values()] == [0.9, 0.5, 0]
    assert [s.learning_rate for s in stages.values()] == [2e-4, 2e-4, 1e-5]


def test_every_preset_is_a_file_of_the_package() -> None:
    with pytest.raises(UserError, match="did you mean 'quickstart'"):
        config.preset("quikstart")


# --- reading -----------------------------------------------------------------------------------


def test_values_are_taken_as_their_type() -> None:
    run = read(
        {
            "data": {"source": 7, "size": 32},
            "train": {"betas": [0, 1e-1], "weight_decay": 0, "ema": "1e-1"},
            "stages": {"a": {"learning_rate": "1e-4", "data": {"source": "x"}}},
        }
    )
    assert (run.data.source, run.data.size) == ("7", (32,))
    assert (run.train.betas, run.train.weight_decay, run.train.ema) == ((0.0, 0.1), 0.0, 0.1)
    assert run.stages["a"].learning_rate == 1e-4
    assert run.stages["a"].data == config.Data(source="x")


def test_reading_on_top_changes_only_what_is_said_and_not_the_base() -> None:
    base = config.preset("masked")
    before = config.to_dict(base)
    run = read({"stages": {"whole": {"batch": 8}, "masked": None}, "train": {"seed": 1}}, base)
    assert config.to_dict(base) == before
    assert list(run.stages) == ["whole"]
    assert run.stages["whole"] == dataclasses.replace(base.stages["whole"], batch=8)
    assert run.train == dataclasses.replace(base.train, seed=1)


def test_the_length_that_was_said_last_is_meant() -> None:
    base = config.preset("default")  # in minutes
    stage = read({"stages": {"whole": {"images": 640}}}, base).stages["whole"]
    assert (stage.images, stage.minutes) == (640, 0)
    again = read({"stages": {"whole": {"minutes": 2}}}, read(whole())).stages["whole"]
    assert (again.images, again.minutes) == (0, 2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trian": {}}, r"my.yaml: 'trian' is not a setting; did you mean 'train'\?"),
        ({"train": {"sed": 1}}, r"'sed' is not a setting of train; did you mean 'seed'\?"),
        (
            {"train": {"learing_rate": 1}},
            r"'learing_rate' is not a setting of train; did you mean 'stages.NAME.learning_rate'\?",
        ),
        (whole(bach=1), r"'bach' is not a setting of stages.only; did you mean 'batch'\?"),
        ({"train": {"seed": "x"}}, r"train.seed: expected a whole number, got 'x'"),
        ({"train": {"seed": 1.5}}, r"train.seed: expected a whole number, got '1.5'"),
        ({"train": {"seed": True}}, r"train.seed: expected a whole number, got 'True'"),
        ({"train": {"compile": "maybe"}}, r"train.compile: expected true or false"),
        ({"train": {"betas": [0.9]}}, r"train.betas: expected 2 values"),
        ({"noise": {"process": "vp"}}, r"noise.process: 'vp' is not one of vp-linear, vp-cosine"),
        ({"train": [1]}, r"train: expected settings as 'name: value'"),
        ({"stages": ["a"]}, r"stages: expected 'name: value' pairs"),
        ({"data": {"size": "big"}}, r"data.size: expected a whole number, got 'big'"),
    ],
)
def test_wrong_settings(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read(values)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is not valid YAML at line"),
        ("- 1\n", "expected settings"),
        ("false", "expected settings"),
    ],
)
def test_files_that_are_no_recipe(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        config.load(path)
    with pytest.raises(UserError, match="cannot be read"):
        config.load(tmp_path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not a text file"):
        config.load(path)


def test_an_empty_file_is_no_settings(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("# nothing\n")
    assert config.load(tmp_path / "my.yaml") == config.Run()


# --- flags -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "place", "value"),
    [
        (["--train.seed", "0"], "train.seed", 0),
        (["--train.seed=12"], "train.seed", 12),
        (["--train.check_every", "-1"], "train.check_every", -1),
        (["--train.compile"], "train.compile", True),
        (["--train.compile", "false"], "train.compile", False),
        (["--train.betas", "0.5", "0.75"], "train.betas", (0.5, 0.75)),
        (["--data.size", "32", "48"], "data.size", (32, 48)),
        (["--data.background", "#fff"], "data.background", "#fff"),
        (["--data.source", "2024-01-01"], "data.source", "2024-01-01"),
        (["--data.source", "a: [b"], "data.source", "a: [b"),
        (["--network.options", "{x: 1}"], "network.options", {"x": 1}),
    ],
)
def test_flags(flags: list[str], place: str, value: object) -> None:
    section, name = place.split(".")
    run = config.apply_flags(config.preset("default"), flags)
    assert getattr(getattr(run, section), name) == value


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--train.sed", "1"], r"--train: 'sed' is not a setting; did you mean 'seed'\?"),
        (["--trian.seed", "1"], r"'trian' is not a setting; did you mean 'train'\?"),
        (["--seed", "1"], r"'--seed' is not a setting; did you mean '--train.seed'\?"),
        (["--stages.hole.batch", "1"], r"no stage 'hole'; it has masked, whole"),
        (["--train.seed", "x"], r"--train.seed: expected a whole number, got 'x'"),
        (["--train.seed"], r"--train.seed: expected a whole number"),
        (["7"], r"'7' was not expected"),
    ],
)
def test_wrong_flags(flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config.apply_flags(config.preset("masked"), flags)


# --- what cannot work together -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "has no stages"),
        (whole(minutes=1), "both images and minutes are given"),
        (whole(images=0), "neither images nor minutes is given"),
        (whole(images=-1), "cannot be negative"),
        (whole(images=0, minutes=float("nan")), "cannot be negative"),
        (whole(images=10), "less than one batch of 32"),
        (whole(batch=0), "batch 0: give a number from 1 up"),
        (whole(mask="patch", rate=1.0), "rate 1: give the hidden share, from 0 to below 1"),
        (whole(mask="patch", rate=float("nan")), "give the hidden share"),
        (whole(mask="patch", rate_schedule="linear", rate_end=1), "rate_end 1: give the hidden"),
        (whole(rate=0.5), "hides nothing with mask none"),
        (whole(learning_rate=0), "learning_rate 0: give a number above 0"),
        (whole(cooldown=0), "cooldown 0: give a share above 0"),
        (whole(reweight=True), "reweight: mask none has no chances to weight by; use mask salient"),
        (whole(mask="patch", reweight=True), "reweight: mask patch has no chances"),
        (whole(mask="patch", fixed=True, flip=True), "fixed: a mirrored or shifted image"),
        (whole(mask="patch", fixed=True, shift=1), "fixed: a mirrored or shifted image"),
        (
            whole(mask="salient", fixed=True)
            | {"space": {"kind": "latents"}, "sampling": {"clip": "none"}},
            "fixed: latents are drawn anew",
        ),
        (whole(mask="patch", fixed=True, augment=0.1), "leave flip, shift and augment out"),
        (whole(augment=1.5), "augment 1.5: give a probability from 0 to 1"),
        (whole(clip_percentile=101), "clip_percentile 101: give a percentile from 0 to 100"),
        (whole(clip_percentile=float("nan")), "clip_percentile nan: give a percentile"),
        (
            whole(augment=0.1) | {"space": {"kind": "latents"}, "sampling": {"clip": "none"}},
            "augment 0.1: latents are computed once",
        ),
        (whole(temperature=0), "temperature 0: give a number above 0"),
        (whole(warmup=-1), "warmup -1: give a number from 0 up"),
        (whole(block=0), "block 0: give a number from 1 up"),
        (whole(size=[30]), "stages.only.size 30×30 is not divisible by space.patch 4; give size"),
        (whole(data={"channels": 2}), "stages.only.data.channels: '2' is not one of 1, 3, rgba"),
        (whole() | {"train": {"microbatch": 5}}, "batch 32 is not divisible by train.microbatch 5"),
        (whole() | {"train": {"ema": 1}}, "train.ema 1: give a number from 0 to below 1"),
        (whole() | {"train": {"check_every": -2}}, "train.check_every -2"),
        (whole() | {"train": {"keep": 0}}, "train.keep 0: give a number from 1 up"),
        (
            whole() | {"noise": {"steps": 10}, "sampling": {"steps": 20, "grid": "uniform"}},
            "sampling.steps 20: the noise has a grid of 10 levels",
        ),
        (whole() | {"sampling": {"snr": 0}}, "sampling.snr 0: give a number above 0"),
        (
            whole() | {"sampling": {"sampler": "pc", "snr": 0.6}},
            "sampling.snr 0.6: give at most 0.5",
        ),
        (
            whole() | {"sampling": {"sampler": "langevin", "corrections": 0}},
            "sampling.corrections 0: sampler langevin needs at least 1",
        ),
        (whole() | {"network": {"heads": 3}}, "width 128 is not divisible by network.heads 3"),
        (whole() | {"network": {"heads": 0}}, "width 128 is not divisible by network.heads 0"),
        (whole() | {"space": {"patch": 0}}, "space.patch 0"),
        (whole() | {"space": {"levels": 0}}, "space.levels 0"),
        (
            whole(size=[36]) | {"space": {"kind": "wavelets"}},
            r"36×36 is not divisible by space.patch 4 · 2\^1 of the wavelets; give size 32",
        ),
        (whole() | {"noise": {"hidden_weight": -1}}, "noise.hidden_weight -1"),
        (whole() | {"data": {"size": [30, 32]}}, "data.size 30×32 is not divisible by space.patch"),
        (whole() | {"data": {"size": [1, 2, 3]}}, "size '1 2 3': give one positive number"),
        (whole() | {"data": {"max_bad": 2}}, "data.max_bad 2: give a share"),
        (whole() | {"sampling": {"steps": 0}}, "sampling.steps 0"),
        ({"stages": {"a.b": {"images": 64}}}, "stage 'a.b': name it with letters"),
    ],
)
def test_check(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        config.check(read(values))
    assert "\n" not in str(error.value)


def test_a_size_that_does_not_fit_gets_one_that_does() -> None:
    with pytest.raises(UserError, match="give size 28 or another patch"):
        config.check(read(whole() | {"data": {"size": 27}}))


# --- the page of settings ----------------------------------------------------------------------


def test_docs_recipes_is_what_the_dataclasses_say() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert page == docs_tool().page(), "docs/recipes.md is stale: run `make docs`"
    for cls in (config.Data, config.Network, config.Noise, config.Stage, config.Train):
        assert all(f"| `{field.name}` |" in page for field in dataclasses.fields(cls))


def docs_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs", ROOT / "tools" / "docs.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
