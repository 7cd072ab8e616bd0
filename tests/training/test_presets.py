"""Every recipe of the package trains: one step of each stage, at a reduced width and size."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tests.training.runs import metrics
from underpaint import config
from underpaint.training import train

LATENT = {"maskdit-xl2-imagenet256", "maskdit-xl2-imagenet512"}  # need an autoencoder: test_vae


@pytest.mark.parametrize("name", sorted(set(config.preset_names()) - LATENT))
def test_a_preset_takes_a_step_in_each_stage(name: str, tmp_path: Path) -> None:
    run = config.preset(name)
    side = 64 if "256" in name else 32
    images = np.random.default_rng(0).integers(0, 256, (24, side, side, 3), np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=np.arange(24) % 2)
    data = config.Data(source=str(tmp_path / "images.npz"))
    small = {"decoder_width": 48, "decoder_depth": 1, "decoder_heads": 2}
    options = {k: small.get(k, v) for k, v in run.network.options.items()}
    if run.network.kind == "maskdit":
        options |= small
    width = 192 if run.space.kind == "wavelets" else 48  # as many as a patch has numbers
    run.network = dataclasses.replace(
        run.network, width=width, heads=2, depth=min(run.network.depth, 3), options=options
    )
    run.data = data
    run.stages = {
        key: dataclasses.replace(stage, images=4, minutes=0.0, batch=4, data=None, size=())
        for key, stage in run.stages.items()
    }
    run.train = dataclasses.replace(run.train, microbatch=0, check_every=-1, sample_every=-1)
    out = train(run, tmp_path / "run", quiet=True)
    steps = [m for m in metrics(out) if m["kind"] == "step"]
    assert [m["stage"] for m in steps] == list(run.stages)
    assert all(np.isfinite(m["loss"]) and m["grad_norm"] > 0 for m in steps)
    assert [m["skipped"] for m in steps] == [0] * len(run.stages)
