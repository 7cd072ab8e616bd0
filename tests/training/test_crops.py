"""A U-Net's run: crops in multiples of its stride, counted at what they really cost."""

import json
from pathlib import Path

import pytest

from tests.training.runs import assert_same_run, metrics
from underpaint import config
from underpaint.cli import main
from underpaint.errors import Interrupted
from underpaint.evaluation.validation import OverfitCheck
from underpaint.training import step as steps
from underpaint.training import train


@pytest.fixture
def crops(recipe: config.Run) -> config.Run:
    """16×16 images, patches of 2: crops in multiples of 4 pixels, 2 patches."""
    recipe.space.patch = 2
    recipe.network = config.Network(
        kind="unet", width=8, depth=1, heads=1, dropout=0.1, options={"multipliers": [1, 1, 2]}
    )
    recipe.stages["masked"].mask = "crop"
    recipe.train.check_every = recipe.train.sample_every = 64
    recipe.stages["masked"].rate = 0.6  # ⌊8 √0.4⌋ = 5 patches a side, so 6
    return recipe


def test_crops_of_a_run_are_whole_strides(crops: config.Run, tmp_path: Path) -> None:
    run = train(crops, tmp_path / "run", make_check=OverfitCheck.of, quiet=True)
    records = metrics(run)
    masked, _ = (r for r in records if r["kind"] == "stage" and r["event"] == "start")
    assert (masked["visible"], masked["patches"]) == (36, 64)
    assert masked["rate"] == pytest.approx(1 - 36 / 64)
    flops = {r["stage"]: r["flops_per_image"] for r in records if r["kind"] == "step"}
    assert flops["masked"] == pytest.approx(flops["whole"] * 36 / 64, rel=0.05)
    checks = [r for r in records if r["kind"] == "check" and r["stage"] == "masked"]
    assert {r["mask"] for r in checks} == {"whole", "stage"}


def test_a_stopped_run_goes_on_as_if_it_had_not_been(crops: config.Run, tmp_path: Path) -> None:
    through = train(crops, tmp_path / "through", quiet=True)
    drawn, original = [], steps.draw_batch

    def interrupting(*args: object) -> object:
        drawn.append(args)
        if len(drawn) == 7:
            raise Interrupted
        return original(*args)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "draw_batch", interrupting)
        with pytest.raises(Interrupted):
            train(crops, tmp_path / "stopped", quiet=True)
    assert_same_run(through, train(None, tmp_path / "stopped", resume=True, quiet=True))


def test_a_dry_run_says_what_saves_nothing(
    crops: config.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(config.to_yaml(crops))
    wish = ["train", "--config", str(path), "--dry-run"]
    assert main(wish) == 0
    assert "saves nothing" not in capsys.readouterr().out
    assert main([*wish, "--stages.masked.mask", "patch"]) == 0
    assert "stage masked: this network computes on hidden patches" in capsys.readouterr().out
    assert main([*wish, "--stages.masked.mask", "patch", "--json"]) == 0
    masked = json.loads(capsys.readouterr().out)["stages"][0]
    assert masked["times_cheaper"] == pytest.approx(1)
    assert not masked["saves"]


def test_a_size_that_cannot_be_halved_is_refused(
    crops: config.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    crops.data.size = (14,)
    path = tmp_path / "recipe.yaml"
    path.write_text(config.to_yaml(crops))
    for more in ([], ["--dry-run"]):
        assert main(["train", "--config", str(path), "--out", str(tmp_path / "run"), *more]) == 2
        line = capsys.readouterr().err
        assert "14×14 is not divisible by 4; give size 12×12 or 16×16" in line
