"""Every network in every space under every noise process keeps the same promises.

All lists come from the package (`tests/systems.py`): what is registered there joins by itself.
"""

import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests import systems
from tests.toy import toy  # noqa: F401
from tests.training.runs import assert_same_run
from underpaint import config, model
from underpaint.core import masks
from underpaint.core.loss import masked_loss, predict
from underpaint.training import distributed, train
from underpaint.training import loop as looping
from underpaint.training.checkpointing import write_model
from underpaint.training.step import Batch
from underpaint.training.train_state import Learner

torch.set_num_threads(1)
pytestmark = pytest.mark.usefixtures("toy")

B = 4
LABELS = torch.tensor([0, 1, -1, 0])
SYSTEMS = [*product(systems.NETWORKS, systems.SPACES, systems.PROCESSES)]
ALL = pytest.mark.parametrize(("network", "space", "process"), SYSTEMS)
RATES = (0.0, 0.5, 0.75, 0.9)


@pytest.fixture(scope="session")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return systems.save_autoencoder(tmp_path_factory.mktemp("matrix") / "kl")


def build(network: str, space: str, process: str, vae: Path | str = "") -> model.Model:
    """A small model; every weight is moved, since some networks start as zero."""
    torch.manual_seed(0)
    built = model.build(systems.spec(network, space, process, vae))
    with torch.no_grad():
        for parameter in built.denoiser.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return built


def draw(built: model.Model, kind: str, rate: float) -> masks.Mask:
    generator = torch.Generator().manual_seed(1)
    multiple = built.denoiser.stride
    return masks.draw(kind, built.space.grid, B, rate, multiple=multiple, generator=generator)


def batch(built: model.Model, mask: masks.Mask) -> Batch:
    """Patches of standard deviation 1/2, at times of the process."""
    generator = torch.Generator().manual_seed(2)
    h, w = built.space.grid
    patches, noise = torch.randn(2, B, h * w, built.space.patch_dim, generator=generator)
    t = built.denoiser.process.draw_t(B, generator)
    return Batch(patches / 2, LABELS, mask, t, noise, None)


@ALL
@pytest.mark.parametrize(("kind", "rate"), [("patch", 0.75), ("crop", 0.75)])
def test_hidden_patches_change_nothing(
    network: str, space: str, process: str, kind: str, rate: float
) -> None:
    """Neither the visible prediction nor its loss. A decoder's hidden loss is asked for apart."""
    built = build(network, space, process)
    mask = draw(built, kind, rate)
    assert mask.hidden is not None

    def answer(given: Batch) -> list[Tensor]:
        parts = (given.patches, given.labels, mask)
        output = predict(built.denoiser, *parts, t=given.t, noise=given.noise)
        loss = masked_loss(built.denoiser, *parts, t=given.t, noise=given.noise, output=output)
        return [output.visible, *loss]

    with torch.no_grad():
        clean = answer(batch(built, mask))
        poisoned = batch(built, mask)
        hidden = mask.hidden[..., None].expand(-1, -1, built.space.patch_dim)
        for x in (poisoned.patches, poisoned.noise):
            x.scatter_(1, hidden, math.nan)
        for a, b in zip(clean, answer(poisoned), strict=True):
            assert a.isfinite().all()
            assert torch.equal(a, b)


@ALL
def test_a_step_lowers_the_loss_and_is_kept(
    network: str, space: str, process: str, tmp_path: Path
) -> None:
    """One step of the loop's optimiser on a fixed batch; then weights are written and read.

    A step on crops, and another on whole images.
    """
    spec = systems.spec(network, space, process)
    learner = Learner(spec, config.Train(device="cpu"), distributed.start("cpu"))
    for group in learner.optimizer.param_groups:
        group["lr"] = 1e-3
    for mask in (draw(learner.model, "crop", 0.5), masks.whole(learner.model.space.grid)):
        given = batch(learner.model, mask)
        learner.optimizer.zero_grad()
        before = learner.loss(*given).mean
        before.backward()
        learner.optimizer.step()
        learner.ema.update()
        with torch.no_grad():
            assert learner.loss(*given).mean < before
    tensors = dict(zip(("model", "ema"), learner.weights(), strict=True))
    write_model(tmp_path, spec, tensors)
    x = torch.randn(3, *learner.model.space.planes)
    for weights, own in (("model", learner.model), ("ema", learner.averaged)):
        loaded = model.load(tmp_path, weights=weights, device="cpu")  # type: ignore[arg-type]
        x0 = own.denoise(x, 0.5, ["a", "b", -1])
        assert torch.equal(loaded.denoise(x, 0.5, ["a", "b", -1]), x0)


@ALL
def test_samples_are_finite_and_in_range(
    network: str,
    space: str,
    process: str,
    autoencoder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the network draws is bounded by the clip, where there is one; latents are not."""
    built = build(network, space, process, autoencoder)
    drawn: list[Tensor] = []
    images = model.Model.images

    def kept(self: model.Model, patches: Tensor) -> Tensor:
        drawn.extend((patches, images(self, patches)))
        return drawn[-1]

    monkeypatch.setattr(model.Model, "images", kept)
    samples = built.sample(2, labels=["a", "b"], guidance=2)
    patches, decoded = drawn
    assert (samples.shape, samples.dtype) == ((2, 16, 16, 3), np.uint8)
    assert decoded.isfinite().all()
    assert patches.std() > 0
    if built.spec.sampling.clip == "static":
        assert patches.abs().max() <= 1


@ALL
@pytest.mark.parametrize("kind", ["patch", "crop"])
def test_flops_are_those_counted(network: str, space: str, process: str, kind: str) -> None:
    """Of what the denoiser runs; the CPU's own attention would count as nothing."""
    built = build(network, space, process)
    for rate in RATES:
        given = batch(built, draw(built, kind, rate))
        V = masks.visible_count(kind, built.space.grid, rate, multiple=built.denoiser.stride)
        with (
            torch.no_grad(),
            FlopCounterMode(display=False) as counter,
            sdpa_kernel(SDPBackend.MATH),
        ):
            predict(built.denoiser, *given[:3], t=given.t, noise=given.noise)
        computed = built.backbone.flops(V, kind)
        assert computed == counter.get_total_flops() / B, rate


# --- runs


PAIRS = [  # see test_a_run_resumes_bit_for_bit
    (network, systems.SPACES[(i + j) % len(systems.SPACES)], process)
    for i, network in enumerate(systems.NETWORKS)
    for j, process in enumerate(systems.PROCESSES)
]


def test_the_pairs_cover_all_pairs() -> None:
    lists = (systems.NETWORKS, systems.SPACES, systems.PROCESSES)
    for one, two in ((0, 1), (0, 2), (1, 2)):
        assert {(p[one], p[two]) for p in PAIRS} == {*product(lists[one], lists[two])}


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("matrix") / "images.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), dtype=np.uint8)
    np.savez(path, images=pixels, labels=np.arange(24) % 2)
    return path


def recipe(images: Path, spec: config.ModelSpec) -> config.Run:
    """Three steps on crops, three on whole images."""
    stages: dict[str, dict[str, Any]] = {
        "masked": {"images": 12, "mask": "crop", "rate": 0.5, "batch": 4},
        "whole": {"images": 12, "batch": 4, "flip": True},
    }
    never = {"log_every": 4, "sample_every": -1, "check_every": -1, "checkpoint_every": 8}
    run = config.from_dict(config.Run, {"stages": stages, "train": never}, "test: ")
    run.data = config.Data(source=str(images), held_out="none")
    run.space, run.network, run.noise, run.sampling = (
        spec.space,
        spec.network,
        spec.noise,
        spec.sampling,
    )
    run.network.dropout = 0.1
    return run


@pytest.mark.parametrize(("network", "space", "process"), PAIRS)
def test_a_run_resumes_bit_for_bit(
    network: str,
    space: str,
    process: str,
    images: Path,
    autoencoder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The real loop, cut between two checkpoints and resumed: weights, averages, optimiser, log.

    Not all systems but all pairs: every network in every space, every network under every process,
    every process in every space.
    """
    run = recipe(images, systems.spec(network, space, process, autoencoder))
    whole = train(run, tmp_path / "whole", quiet=True)

    class Cut(Exception):
        pass

    original = looping.step

    def step(plan, run, learner, progress):  # type: ignore[no-untyped-def]
        if progress.images >= 20:  # the last checkpoint is that at 16
            raise Cut
        original(plan, run, learner, progress)

    monkeypatch.setattr(looping, "step", step)
    with pytest.raises(Cut):
        train(run, tmp_path / "cut", quiet=True)
    monkeypatch.setattr(looping, "step", original)
    train(None, tmp_path / "cut", resume=True, quiet=True)
    assert_same_run(whole, tmp_path / "cut")
