"""Networks, spaces and masks beyond the plain ones, through the whole loop."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.runs import assert_same_run, metrics, weights
from underpaint import config
from underpaint.core.masks import gather
from underpaint.core.spaces import from_uint8
from underpaint.model import load
from underpaint.training import distributed, stages, train
from underpaint.training import loop as looping
from underpaint.training.learner import Learner
from underpaint.training.step import draw_batch

MASKDIT = {
    "kind": "maskdit",
    "options": {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2},
}
EDM = {"process": "edm", "prediction": "edm", "time": "log-normal"}
SYSTEMS: dict[str, dict[str, Any]] = {
    "maskdit": {"network": MASKDIT, "noise": EDM | {"hidden_weight": 0.1}},
    "score": {
        "noise": {"process": "ve", "prediction": "score", "time": "log-uniform"},
        "preview": {"sampler": "pc"},
    },
    "wavelets": {"space": {"kind": "wavelets", "patch": 2}},
    "salient": {"stages": {"masked": {"mask": "salient", "reweight": True, "temperature": 0.5}}},
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

    original = looping.step

    def step(plan, run, learner, progress):  # type: ignore[no-untyped-def]
        if progress.images >= 80:
            raise Cut
        original(plan, run, learner, progress)

    monkeypatch.setattr(looping, "step", step)
    with pytest.raises(Cut):
        train(run, tmp_path / "cut", quiet=True)
    monkeypatch.setattr(looping, "step", original)
    train(None, tmp_path / "cut", resume=True, quiet=True)
    assert_same_run(whole, tmp_path / "cut")


def learner_and_plan(run: config.Run) -> tuple[Learner, stages.Plan]:
    plan = stages.plans(run, lambda _: None, None)[0]
    return Learner(plan.spec, run.train, distributed.start("cpu")), plan


def test_a_fixed_mask_is_that_of_its_image_for_ever(recipe: config.Run) -> None:
    shown: dict[str, set[tuple[int, ...]]] = {}
    for seed, order in ((0, "masked"), (7, "whole")):  # another run, another stage, all epochs
        run = changed(recipe, SYSTEMS["fixed"])
        run.train = dataclasses.replace(run.train, seed=seed)
        run.stages = {order: run.stages["masked"]}
        learner, plan = learner_and_plan(run)
        for position in range(0, 180, 8):
            ids = plan.order.at(position, 8)
            mask = draw_batch(plan, run, learner.model, 0.5, position, 8, attempt=seed)[2]
            for i, visible in zip(ids, mask.visible.tolist(), strict=True):  # type: ignore[union-attr]
                shown.setdefault(plan.dataset.pixel_sha256[i], set()).add(tuple(visible))
    assert len(shown) > 30
    assert all(len(masks) == 1 for masks in shown.values())
    assert len(set.union(*shown.values())) > 30  # each image has its own


def test_salient_masks_prefer_the_bright_half_with_more_contrast(recipe: config.Run) -> None:
    run = changed(recipe, SYSTEMS["salient"])
    learner, plan = learner_and_plan(run)
    patches, _, mask, _, _ = draw_batch(plan, run, learner.model, 0.75, 0, 48, attempt=0)
    variance = patches.var(dim=2)
    assert gather(variance, mask.visible).mean() > variance.mean()
    assert mask.weights is not None
    assert mask.weights.shape == (48, 4)
    assert patches.shape == plan.space.encode(from_uint8(plan.dataset.batch(np.arange(48)))).shape


def test_the_hidden_loss_is_added_by_its_weight(recipe: config.Run) -> None:
    losses = {}
    for weight in (0.0, 0.1, 0.2):
        run = changed(recipe, SYSTEMS["maskdit"] | {"noise": EDM | {"hidden_weight": weight}})
        learner, plan = learner_and_plan(run)
        batch = draw_batch(plan, run, learner.model, 0.5, 0, 8, attempt=0)
        torch.manual_seed(0)
        losses[weight] = learner.loss(*batch)
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
