"""What makes a start quick: nothing is prepared or counted twice, no compiler is imported."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import underpaint as up
from tests.data.pictures import noise, write_folder
from underpaint import backbones, config, data
from underpaint.backbones import counting
from underpaint.data import preparation
from underpaint.errors import UserError
from underpaint.handing_on import handing_on
from underpaint.training import counts, identities
from underpaint.training.uncompiled import AdamW


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNDERPAINT_CACHE", str(tmp_path / "cache"))
    return write_folder(tmp_path / "photos", noise(24))


def test_a_source_is_prepared_once_a_command(
    recipe: config.Run, cache: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By two stages and by the report."""
    looked, real = [], preparation.find
    monkeypatch.setattr(preparation, "find", lambda source: looked.append(source) or real(source))
    recipe.train.check_every = recipe.train.sample_every = -1
    assert len(recipe.stages) == 2
    up.train(recipe, tmp_path / "run", quiet=True)
    assert looked == [recipe.data.source]
    known = identities.read(tmp_path / "run")
    assert min(map(len, known)) > 0
    assert len((tmp_path / "run" / "images.bin").read_bytes()) == 32 * sum(map(len, known))


def test_what_is_handed_on_ends_with_its_command(photos: Path) -> None:
    wanted = config.Data(source=str(photos), size=(8,))
    with handing_on():
        first = data.prepare(wanted)
        with handing_on():  # as of a command that calls the library
            assert data.prepare(wanted) is first
        assert data.prepare(wanted) is first
        assert data.prepare(wanted, verify=True) is not first
        assert data.prepare(config.Data(source=str(photos), size=(4,))).size == (4, 4)
    write_folder(photos, noise(25))
    assert len(data.prepare(wanted)) == 25


def test_images_of_other_stages_are_no_held_out_ones(photos: Path) -> None:
    """An image that one stage trains on is not held out, whatever another does."""
    sums = np.arange(5, dtype=np.uint8)[:, None].repeat(32, 1)

    class Set:
        def __init__(self, trained: list[int], held_out: list[int]) -> None:
            self.train_ids, self.held_out_ids = np.array(trained), np.array(held_out)
            self.training_set = self

        def identities(self, ids: np.ndarray) -> data.digests.Identities:
            return data.digests.Identities(sums[ids], sums[ids])

    found = identities.of([Set([3, 0], [1]), Set([1, 3], [4, 2])])  # type: ignore[list-item]
    assert found.trained[:, 0].tolist() == [0, 1, 3]
    assert found.held_out[:, 0].tolist() == [2, 4]
    moved = identities.Images(np.concatenate(found), found.held_out[:0])
    assert moved.digest() != found.digest()


@pytest.mark.parametrize(
    "text", ['{"trained": ["zz"], "held_out": []}', '{"trained": 1, "held_out": 0, "sha256": ""}']
)
def test_identities_that_nobody_wrote(tmp_path: Path, text: str) -> None:
    (tmp_path / "images.json").write_text(text)
    with pytest.raises(UserError, match="is missing or damaged"):
        identities.read(tmp_path)


def test_flops_are_counted_once_for_all_runs(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = backbones.build(
        config.preset("default").network, grid=(4, 4), patch_dim=12, classes=0, patch=2
    )
    counts.flops.cache_clear()
    expected = network.flops(4)
    assert counts.flops(*network.built, 4, "patch") == expected
    counts.flops.cache_clear()  # as in another process
    monkeypatch.setattr(counting, "flops", None)
    assert counts.flops(*network.built, 4, "patch") == expected
    counts.flops.cache_clear()
    (remembered,) = (photos.parent / "cache" / "counts").iterdir()
    assert json.loads(remembered.read_text()) == {"flops": expected}
    remembered.write_text("{}")
    with pytest.raises(TypeError):  # it is counted again
        counts.flops(*network.built, 4, "patch")


def test_the_optimiser_is_torchs(tmp_path: Path) -> None:
    """The same steps, states and files."""
    torch.manual_seed(0)
    ours, theirs = nn.Linear(4, 3), nn.Linear(4, 3)
    theirs.load_state_dict(ours.state_dict())
    pair = [(ours, AdamW), (theirs, torch.optim.AdamW)]
    made = [(m, kind(m.parameters(), lr=0.1, fused=True)) for m, kind in pair]
    for _ in range(3):
        for model, optimizer in made:
            model(torch.ones(2, 4)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            assert model.weight.grad is None
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=0, atol=0)
    states = [optimizer.state_dict() for _, optimizer in made]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    made[0][1].load_state_dict(states[1])
    assert made[0][1].state[ours.weight]["step"] == 3
