"""A run from its recipe to its folder."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.runs import metrics, weights
from underpaint import config
from underpaint.errors import RunFailed, UserError
from underpaint.model import build, load
from underpaint.training import minutes, train, trainer
from underpaint.training import step as stepping
from underpaint.training.stages import prepare_stages


def test_a_run_leaves_a_whole_folder(recipe: config.Run, tmp_path: Path) -> None:
    out = train(recipe, tmp_path / "run", quiet=True)
    lines = metrics(out)
    stages = [(m["event"], m["stage"], m["images"]) for m in lines if m["kind"] == "stage"]
    assert stages == [
        ("start", "masked", 0),
        ("end", "masked", 96),
        ("start", "whole", 96),
        ("end", "whole", 160),
    ]
    masked = next(m for m in lines if m["kind"] == "step")
    assert (masked["visible"], masked["rate"]) == (8, 0.5)
    assert [m["images"] for m in lines if m["kind"] == "step"] == list(range(16, 161, 16))
    assert config.load(out / "config.yaml") == recipe
    assert json.loads((out / "env.json").read_text())["parameters"] > 0
    samples = [m["file"] for m in lines if m["kind"] == "sample"]
    assert samples == [f"samples/images_{n:012d}.png" for n in (80, 96, 160)]
    assert all((out / name).is_file() for name in samples)
    # the last two, and the end of each stage
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == [
        "000000000096",
        "000000000128",
        "000000000160",
        "LATEST",
    ]
    assert load(out).sample(3, steps=2).shape == (3, 16, 16, 3)


def test_the_same_recipe_gives_the_same_run(recipe: config.Run, tmp_path: Path) -> None:
    a = train(recipe, tmp_path / "a", quiet=True)
    b = train(recipe, tmp_path / "b", quiet=True)
    one, two = weights(a), weights(b)
    assert all(torch.equal(one[name], two[name]) for name in one)
    other = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, seed=1))
    c = weights(train(other, tmp_path / "c", quiet=True))
    assert not torch.equal(one["model/head.weight"], c["model/head.weight"])


def test_training_lowers_the_loss(recipe: config.Run, tmp_path: Path) -> None:
    stage = dataclasses.replace(
        recipe.stages["whole"], images=2400, learning_rate=3e-3, schedule="constant"
    )
    run = dataclasses.replace(recipe, stages={"whole": stage})
    lines = metrics(train(run, tmp_path / "run", quiet=True))
    losses = [m["loss"] for m in lines if m["kind"] == "step"]
    assert np.mean(losses[-20:]) < 0.75 * losses[0]


def test_steps_without_a_finite_gradient_are_skipped(
    recipe: config.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, lambda stage, position, attempt: position in (8, 24))
    out = train(recipe, tmp_path / "run", quiet=True)
    last = [m for m in metrics(out) if m["kind"] == "step"][-1]
    assert last["skipped"] == 4  # two positions in each of the two stages
    assert not [m for m in metrics(out) if m["kind"] == "rollback"]
    assert all(torch.isfinite(t).all() for t in weights(out).values())


def test_divergence_returns_to_the_last_checkpoint_with_half_the_rate(
    recipe: config.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # three steps in a row fail at the first attempt only
    poison(monkeypatch, lambda stage, position, attempt: attempt == 0 and 40 <= position < 64)
    out = train(recipe, tmp_path / "run", quiet=True)
    lines = metrics(out)
    (rollback,) = [m for m in lines if m["kind"] == "rollback"]
    assert rollback["to"] == 32
    assert rollback["learning_rate_factor"] == 0.5
    rates = {m["images"]: m["lr"] for m in lines if m["kind"] == "step"}
    assert rates[32] == recipe.stages["masked"].learning_rate
    assert rates[48] == recipe.stages["masked"].learning_rate / 2
    images = [m["images"] for m in lines if m["kind"] == "step"]
    assert images == sorted(set(images))  # what came after the checkpoint was cut away


def test_endless_divergence_ends_the_run(
    recipe: config.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, lambda stage, position, attempt: position >= 40)
    with pytest.raises(RunFailed, match=r"stages\.masked\.learning_rate"):
        train(recipe, tmp_path / "run", quiet=True)
    returns = [m for m in metrics(tmp_path / "run") if m["kind"] == "rollback"]
    assert len(returns) == 1  # earlier ones were cut back with the metrics after the checkpoint
    assert returns[0]["learning_rate_factor"] == 0.5**trainer.RETURNS


def poison(monkeypatch: pytest.MonkeyPatch, when: object) -> None:
    """Make the noise of chosen microbatches infinite."""
    original = stepping.draw_batch

    def draw(stage, run, model, rate, position, count, attempt, images):  # type: ignore[no-untyped-def]
        batch = original(stage, run, model, rate, position, count, attempt, images)
        if when(stage, position, attempt):  # type: ignore[operator]
            batch = batch._replace(noise=torch.full_like(batch.noise, torch.inf))
        return batch

    monkeypatch.setattr(stepping, "draw_batch", draw)


def test_a_stage_may_have_its_own_images_size_and_labels(
    recipe: config.Run, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    other = tmp_path / "other.npz"
    np.savez(other, images=rng.integers(0, 255, (30, 24, 24, 3), np.uint8), labels=[1, 2, 3] * 10)
    whole = dataclasses.replace(recipe.stages["whole"], data=config.Data(source=str(other)))
    run = dataclasses.replace(recipe, stages={**recipe.stages, "whole": whole})
    out = train(run, tmp_path / "run", quiet=True)
    model = load(out)
    assert model.spec.size == (24, 24)
    assert model.label_names == ("1", "2", "3")
    log = (out / "log.txt").read_text()
    assert "positions interpolated from 4×4 to 6×6" in log
    assert "1 of 3 labels carried over" in log


def test_minutes_are_measured_once_and_kept_as_images(
    recipe: config.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minutes, "LATE", float("inf"))  # on a busy machine it would end before
    stage = dataclasses.replace(recipe.stages["whole"], images=0, minutes=0.01)
    out = train(dataclasses.replace(recipe, stages={"whole": stage}), tmp_path / "run", quiet=True)
    kept = config.load(out / "config.yaml").stages["whole"]
    assert kept.minutes == 0
    assert kept.images > 0
    assert kept.images % stage.batch == 0
    assert metrics(out)[-1]["images"] == kept.images


def test_a_batch_larger_than_the_data_is_only_a_remark(recipe: config.Run, tmp_path: Path) -> None:
    stage = dataclasses.replace(recipe.stages["whole"], batch=128, images=256)
    out = train(dataclasses.replace(recipe, stages={"whole": stage}), tmp_path / "run", quiet=True)
    assert "fewer than a batch of 128" in (out / "log.txt").read_text()


def test_wrong_use(recipe: config.Run, tmp_path: Path) -> None:
    out = train(recipe, tmp_path / "run", quiet=True)
    with pytest.raises(UserError, match="--resume"):
        train(recipe, out, quiet=True)
    train(recipe, out, overwrite=True, quiet=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="not a run"):
        train(recipe, tmp_path / "other", overwrite=True, quiet=True)
    with pytest.raises(UserError, match="no run to resume"):
        train(None, tmp_path / "nothing", resume=True, quiet=True)
    with pytest.raises(UserError, match="is a file"):
        train(recipe, tmp_path / "other" / "mine.txt", quiet=True)
    with pytest.raises(UserError, match="choose another --out"):
        train(recipe, tmp_path / "other" / "mine.txt" / "run", quiet=True)
    odd = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, microbatch=3))
    with pytest.raises(UserError, match="microbatch 3"):
        train(odd, tmp_path / "odd", quiet=True)
    assert not (tmp_path / "odd").exists()


def test_resume_refuses_changed_images(recipe: config.Run, images: Path, tmp_path: Path) -> None:
    out = train(recipe, tmp_path / "run", quiet=True)
    rng = np.random.default_rng(9)
    np.savez(images, images=rng.integers(0, 255, (60, 16, 16, 3), np.uint8), labels=[0, 1] * 30)
    with pytest.raises(UserError, match="images have changed"):
        train(None, out, resume=True, quiet=True)


def test_metrics_also_go_to_tensorboard(recipe: config.Run, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe.train.track = "tensorboard"
    out = train(recipe, tmp_path / "run", quiet=True)
    events = EventAccumulator(str(out / "tensorboard")).Reload()
    steps = [m for m in metrics(out) if m["kind"] == "step"]
    logged = events.Scalars("step/loss")
    assert [e.step for e in logged] == [m["images"] for m in steps]
    assert [e.value for e in logged] == pytest.approx([m["loss"] for m in steps])


def test_a_tracker_that_is_not_installed(
    recipe: config.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe.train.track = "wandb"
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'underpaint\[track\]'"):
        train(recipe, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_labels_are_dropped_at_the_stated_rate(recipe: config.Run, share: float) -> None:
    recipe.network.label_drop = share
    (stage, _) = prepare_stages(recipe, lambda _: None)
    model = build(stage.spec)
    batch = stepping.draw_batch(stage, recipe, model, 0.5, 0, 2000, 0)
    true = torch.from_numpy(stage.training_set.labels[stage.order.at(0, 2000)])
    assert batch.labels is not None
    kept = batch.labels >= 0
    assert torch.equal(batch.labels[kept], true[kept])
    # five standard deviations of a binomial share
    assert abs(float((~kept).float().mean()) - share) <= 5 * (share * (1 - share) / 2000) ** 0.5
