"""A new network is one file: `__init__` and `forward` are all that anything here asks of it."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import underpaint as up
from underpaint import backbones, config
from underpaint.core.masks import Mask
from underpaint.privacy.audit import audit
from underpaint.training import cost, train


# --- the network: at most 40 lines, which the first test counts
class Mixer(backbones.Backbone):
    """Every patch sees the mean of the others."""

    def __init__(
        self, grid: tuple[int, int], patch_dim: int, classes: int, *, width: int, share: float = 0.5
    ) -> None:
        super().__init__(grid, patch_dim, classes)
        self.share = share
        self.embed = nn.Linear(patch_dim, width)
        self.positions = nn.Embedding(grid[0] * grid[1], width)
        self.level = nn.Linear(1, width)
        self.labels = nn.Embedding(classes + 1, width) if classes else None
        self.head = nn.Linear(width, patch_dim)

    def forward(
        self, patches: Tensor, c_noise: Tensor, labels: Tensor | None, mask: Mask
    ) -> backbones.Prediction:
        ids = backbones.position_ids(mask, len(patches), self.grid, patches.device)
        x = self.embed(patches) + self.positions(ids) + self.level(c_noise[:, None] / 1000)[:, None]
        if self.labels is not None and labels is not None:
            x = x + self.labels(torch.where(labels < 0, self.classes, labels))[:, None]
        return backbones.Prediction(self.head(torch.tanh(x + self.share * x.mean(1, keepdim=True))))


# --- and what is done with it


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    backbones.register("mixer", "a network of this file")(Mixer)
    yield
    del backbones.base._KINDS["mixer"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> config.Run:
    source = tmp_path_factory.mktemp("images") / "images.npy"
    np.save(source, np.random.default_rng(0).integers(0, 256, (48, 8, 8, 3), np.uint8))
    length = {"images": 64, "batch": 8, "warmup": 8}
    settings = {
        "data": {"source": str(source), "held_out": "16"},
        "space": {"patch": 2},
        "network": {"kind": "mixer", "width": 16, "options": {"share": 0.25}},
        "stages": {"masked": {**length, "mask": "patch", "rate": 0.5}, "whole": length},
        "train": {"device": "cpu", "threads": 1, "check_every": -1, "sample_every": -1},
    }
    return config.from_dict(config.Run, settings, "test: ")


@pytest.fixture(scope="module")
def run(recipe: config.Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(recipe, tmp_path_factory.mktemp("runs") / "run", quiet=True)


def test_it_is_at_most_forty_lines() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    code = text.split("# --- the network")[1].split("# --- and what")[0].strip().splitlines()[1:]
    assert len(code) <= 40
    assert set(vars(Mixer)) & set(vars(backbones.Backbone)) == {
        *("__init__", "forward", "__module__", "__doc__"),
        *({"__firstlineno__", "__static_attributes__", "__annotations__"} & set(vars(Mixer))),
    }


def test_it_is_planned(recipe: config.Run) -> None:
    masked, whole = cost.describe(recipe, (8, 8), 3)["stages"]
    linears = 2 * 12 * 16  # in and out, 2 FLOPs a multiply-add
    assert masked["flops_per_image"] == 3 * (8 * 2 * linears + 2 * 16)
    assert whole["flops_per_image"] == 3 * (16 * 2 * linears + 2 * 16)
    assert masked["saves"]
    network = cost.network(recipe, (8, 8), 3, 0)
    assert network.activation_bytes(8) > 0
    parameters = sum(p.numel() for p in network.parameters())
    assert masked["memory"] == 20 * parameters + 8 * network.activation_bytes(8)


def test_it_is_trained(run: Path, recipe: config.Run) -> None:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    last = [r for r in map(json.loads, lines) if r["kind"] == "step"][-1]
    assert last["flops"] == cost.describe(recipe, (8, 8), 3)["flops"]
    assert np.isfinite(last["loss"])


def test_it_is_resumed(run: Path, tmp_path: Path) -> None:
    again = Path(shutil.copytree(run, tmp_path / "run"))
    (again / "checkpoints" / "LATEST").write_text("000000000064\n", encoding="utf-8")
    train(None, again, resume=True, quiet=True)
    ours, theirs = (up.load(folder, device="cpu").backbone for folder in (again, run))
    for name, weight in ours.state_dict().items():
        assert torch.equal(weight, theirs.state_dict()[name]), name


def test_it_draws(run: Path) -> None:
    assert up.load(run, device="cpu").sample(2, steps=2).shape == (2, 8, 8, 3)


def test_it_is_audited(run: Path) -> None:
    found = audit(run, names=["loss"], samples=8, control=False, device="cpu")
    assert found.result["membership"]
