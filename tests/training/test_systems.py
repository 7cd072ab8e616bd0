"""Networks, spaces and masks beyond the plain ones, through the whole loop."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.runs import assert_same_run, metrics, weights
from underpaint import config
from underpaint.core.spaces import from_uint8
from underpaint.model import load
from underpaint.report import summary
from underpaint.report.html import sentences
from underpaint.training import distributed, stages, step_rule, train
from underpaint.training.batch import draw_batch
from underpaint.training.train_state import TrainState
from underpaint.training.training_set import ImageSet

MASKDIT = {
    "kind": "maskdit",
    "options": {"decoder_width": 48, "decoder_depth": 1, "decoder_heads": 2},
}
EDM = {"process": "edm", "prediction": "edm", "time": "log-normal"}
SYSTEMS: dict[str, dict[str, Any]] = {
    "maskdit": {"network": MASKDIT, "noise": EDM | {"hidden_weight": 0.1}},
    "hourglass": {
        "space": {"patch": 2},
        "network": {"kind": "hourglass", "width": 32},
        "stages": {"masked": {"mask": "block", "rate": 0.9}},
    },
    "score": {
        "noise": {"process": "ve", "prediction": "score", "time": "log-uniform"},
        "sampling": {"sampler": "pc"},
    },
    "salient": {"stages": {"masked": {"mask": "salient", "reweight": True, "temperature": 0.5}}},
    "percentile clip": {"stages": {"masked": {"clip_percentile": 40}}, "train": {"microbatch": 4}},
    "query and key norms": {"network": {"qk_norm": True}},
    "augmentation": {"stages": {"whole": {"augment": 0.5, "shift": 1}}},
    "augmented crops": {
        "space": {"patch": 2},
        "network": {"kind": "unet", "depth": 1, "options": {"multipliers": [1, 1]}},
        "stages": {"masked": {"mask": "crop", "augment": 0.5, "flip": False}},
    },
    "learned weights": {
        "noise": {"learned_weights": True},
        "stages": {"whole": {"keep_optimizer": False}},
    },
    "fixed": {"stages": {"masked": {"fixed": True, "flip": False}}},
}


def changed(recipe: config.Run, changes: dict[str, Any]) -> config.Run:
    return config.from_dict(config.Run, changes, "test: ", recipe)


@pytest.mark.parametrize("name", SYSTEMS)
def test_trains_resumes_and_samples(
    name: str, recipe: config.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = changed(recipe, SYSTEMS[name])
    whole = train(run, tmp_path / "whole", quiet=True)
    losses = [m["loss"] for m in metrics(whole) if m["kind"] == "step"]
    assert np.isfinite(losses).all()
    samples = load(whole).sample(3, steps=2)
    assert samples.shape == (3, 16, 16, 3)

    class Cut(Exception):
        pass

    original = step_rule.step

    def step(stage, run, state, progress):  # type: ignore[no-untyped-def]
        if progress.images >= 80:
            raise Cut
        original(stage, run, state, progress)

    monkeypatch.setattr(step_rule, "step", step)
    with pytest.raises(Cut):
        train(run, tmp_path / "cut", quiet=True)
    monkeypatch.setattr(step_rule, "step", original)
    train(None, tmp_path / "cut", resume=True, quiet=True)
    assert_same_run(whole, tmp_path / "cut")


def test_a_stage_says_how_its_masks_are_rounded(recipe: config.Run, tmp_path: Path) -> None:
    """14 of 16 squares of 2×2 patches are hidden, the nearest below nine tenths."""
    short = {"masked": {"images": 8}, "whole": {"images": 8}}
    run = changed(changed(recipe, SYSTEMS["hourglass"]), {"stages": short})
    folder = train(run, tmp_path / "run", quiet=True)
    line = "87.5% hidden (block at 0.9, rounded to squares of 2×2 patches), 8 of 64 patches"
    assert line in (folder / "log.txt").read_text()
    starts = [m for m in metrics(folder) if m["kind"] == "stage" and m["event"] == "start"]
    assert [(m["visible"], m["unit"]) for m in starts] == [(8, 2), (64, 2)]
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    masked, whole = summary.stages([json.loads(line) for line in lines], run)
    words = "(blocks of 2×2 patches at random, rounded to squares of 2×2 patches)"
    assert words in sentences().about_stage(masked)
    assert "rounded" not in sentences().about_stage(whole)


def test_learned_weights_stay_out_of_the_model(recipe: config.Run, tmp_path: Path) -> None:
    plain = weights(train(recipe, tmp_path / "plain", quiet=True))
    run = changed(recipe, SYSTEMS["learned weights"] | {"train": {"decay": "all"}})
    learned = weights(train(run, tmp_path / "learned", quiet=True))
    beside = {"loss.uncertainty/value", "loss.uncertainty/exp_avg", "loss.uncertainty/exp_avg_sq"}
    assert learned.keys() - plain.keys() == beside | {"loss.uncertainty/step"}
    assert learned["loss.uncertainty/value"].abs().max() > 0
    name = "model/head.weight"
    assert not torch.equal(plain[name], learned[name])


def test_the_logged_loss_is_that_before_learned_weights(recipe: config.Run) -> None:
    run = changed(recipe, SYSTEMS["learned weights"])
    state, stage = state_and_stage(run)
    batch = draw_batch(stage, run, state.model, 0.5, 0, 8, attempt=0)
    with torch.no_grad():
        state.uncertainty.weight[0] = 0.1  # type: ignore[union-attr]  # u = 1 everywhere
    loss = state.loss(*batch)
    torch.testing.assert_close(loss.mean, (loss.per_image / math.e + 1).mean())


def test_augmentation_is_drawn_by_position_beside_all_else(recipe: config.Run) -> None:
    batches = []
    for p in (0.0, 0.5, 1e-12):
        run = changed(recipe, {"stages": {"masked": {"augment": p}}})
        state, stage = state_and_stage(run)
        batches.append(draw_batch(stage, run, state.model, 0.5, 8, 8, attempt=0))
        assert stage.spec.network.augment == (p > 0)
        again = draw_batch(stage, run, state.model, 0.5, 8, 8, attempt=0)
        assert torch.equal(batches[-1].patches, again.patches)
    plain, augmented, never = batches
    assert plain.condition is None
    assert augmented.condition is not None
    assert never.condition is not None
    assert not never.condition.any()
    assert torch.equal(plain.patches, never.patches)
    for name in ("t", "noise", "labels"):
        assert torch.equal(getattr(plain, name), getattr(augmented, name)), name
    assert torch.equal(plain.mask.visible, augmented.mask.visible)  # type: ignore[arg-type]
    same = (plain.patches == augmented.patches).all(dim=(1, 2))
    assert torch.equal(same, ~augmented.condition.any(dim=1))
    assert not same.all()


def test_the_images_of_a_cool_down_are_not_augmented(recipe: config.Run) -> None:
    changes = {"augment": 0.5, "schedule": "cooldown", "cooldown": 0.5, "images": 32, "batch": 8}
    state, stage = state_and_stage(changed(recipe, {"stages": {"masked": changes}}))
    plain = changed(recipe, {"stages": {"masked": changes | {"augment": 0.0}}})
    _, same = state_and_stage(plain)
    for position, augmented in ((0, True), (16, True), (24, False)):
        batches = [draw_batch(s, recipe, state.model, 0.5, position, 8, 0) for s in (stage, same)]
        assert torch.equal(*(batch.patches for batch in batches)) is not augmented
        assert (batches[0].condition is not None) is augmented


def test_augmentation_zero_is_the_run_without_it(recipe: config.Run, tmp_path: Path) -> None:
    plain = train(recipe, tmp_path / "plain", quiet=True)
    run = changed(recipe, {"stages": {"masked": {"augment": 0}, "whole": {"augment": 0.0}}})
    assert_same_run(plain, train(run, tmp_path / "zero", quiet=True))


def test_weights_move_between_recipes_with_and_without_augmentation(
    recipe: config.Run, tmp_path: Path
) -> None:
    plain = train(recipe, tmp_path / "plain", quiet=True)
    run = changed(recipe, SYSTEMS["augmentation"])
    told = train(run, tmp_path / "told", start=str(plain), quiet=True)
    assert weights(told)["model/augment_embedding.weight"].any()
    assert load(told).spec.network.augment
    back = train(recipe, tmp_path / "back", start=str(told), quiet=True)
    assert "model/augment_embedding.weight" not in weights(back)
    assert load(back).sample(1, steps=2).shape == (1, 16, 16, 3)


def test_samples_are_asked_for_without_augmentation(recipe: config.Run, tmp_path: Path) -> None:
    model = load(train(changed(recipe, SYSTEMS["augmentation"]), tmp_path / "run", quiet=True))
    before = model.sample(2, steps=2)
    with torch.no_grad():
        model.backbone.augment_embedding.weight.fill_(100.0)  # type: ignore[union-attr, operator]
    assert np.array_equal(model.sample(2, steps=2), before)


def state_and_stage(run: config.Run) -> tuple[TrainState, stages.PreparedStage]:
    stage = stages.prepare_stages(run, lambda _: None)[0]
    return TrainState(stage.spec, run.train, distributed.start("cpu")), stage


def test_a_fixed_mask_is_that_of_its_image_for_ever(recipe: config.Run) -> None:
    shown: dict[str, set[tuple[int, ...]]] = {}
    for seed, order in ((0, "masked"), (7, "whole")):  # another run, another stage, all epochs
        run = changed(recipe, SYSTEMS["fixed"])
        run.train = dataclasses.replace(run.train, seed=seed)
        run.stages = {order: run.stages["masked"]}
        state, stage = state_and_stage(run)
        for position in range(0, 180, 8):
            ids = stage.order.at(position, 8)
            mask = draw_batch(stage, run, state.model, 0.5, position, 8, attempt=seed)[2]
            for i, visible in zip(ids, mask.visible.tolist(), strict=True):  # type: ignore[union-attr]
                shown.setdefault(stage.training_set.content(i), set()).add(tuple(visible))
    assert len(shown) > 30
    assert all(len(masks) == 1 for masks in shown.values())
    assert len(set.union(*shown.values())) > 30  # each image has its own


def test_salient_masks_prefer_the_bright_half_with_more_contrast(recipe: config.Run) -> None:
    run = changed(recipe, SYSTEMS["salient"])
    state, stage = state_and_stage(run)
    patches, _, mask, *_ = draw_batch(stage, run, state.model, 0.75, 0, 48, attempt=0)
    assert isinstance(stage.training_set, ImageSet)
    images = stage.training_set.dataset.batch(stage.order.at(0, 48))
    of_all = stage.space.encode(from_uint8(images)).var(dim=2)  # whether mirrored or not
    assert patches.var(dim=2).mean() > of_all.mean()
    assert mask.weights is not None
    assert mask.weights.shape == (48, 4)
    assert patches.shape == (48, 4, stage.space.patch_dim)


def test_the_hidden_loss_is_added_by_its_weight(recipe: config.Run) -> None:
    losses = {}
    for weight in (0.0, 0.1, 0.2):
        run = changed(recipe, SYSTEMS["maskdit"] | {"noise": EDM | {"hidden_weight": weight}})
        state, stage = state_and_stage(run)
        batch = draw_batch(stage, run, state.model, 0.5, 0, 8, attempt=0)
        torch.manual_seed(0)
        losses[weight] = state.loss(*batch)
    without, one, two = losses.values()
    assert torch.equal(without.x0_mse, two.x0_mse)
    added = one.per_image - without.per_image
    assert (added > 0).all()
    torch.testing.assert_close(two.per_image - without.per_image, 2 * added)
    torch.testing.assert_close(two.mean, two.per_image.mean())


def test_maskdit_moves_to_another_size(recipe: config.Run, tmp_path: Path) -> None:
    run = changed(recipe, SYSTEMS["maskdit"] | {"stages": {"whole": {"size": [24]}}})
    folder = train(run, tmp_path / "run", quiet=True)
    assert weights(folder)["model/decoder.positions.rows"].shape == (6,)
    assert load(folder).sample(1, steps=2).shape == (1, 24, 24, 3)
