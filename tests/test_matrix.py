"""Every network in every space under every noise process keeps the same promises.

All lists come from the package (`tests/systems.py`): what is registered there joins by itself.
"""

import dataclasses
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
from underpaint import config, data, model
from underpaint.core import masks, spaces
from underpaint.core.denoiser import Prediction
from underpaint.core.loss import DenoisingLoss
from underpaint.core.masks import MaskSpec
from underpaint.training import distributed, step_rule, train
from underpaint.training.batch import Batch
from underpaint.training.checkpointing import write_model
from underpaint.training.train_state import TrainState
from underpaint.training.training_set import Array, ImageSet, Visible

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
    spec = MaskSpec(kind, rate, multiple=built.denoiser.stride, unit=built.denoiser.unit)
    return masks.draw(spec, built.space.grid, B, torch.Generator().manual_seed(1))


def batch(built: model.Model, mask: masks.Mask, hidden: float | None = None) -> Batch:
    """Patches of standard deviation 1/2, at times of the process.

    `hidden`: what stands in the place of all hidden numbers, of the images and of their noise.
    """
    generator = torch.Generator().manual_seed(2)
    h, w = built.space.grid
    patches, noise = torch.randn(2, B, h * w, built.space.patch_dim, generator=generator)
    t = built.denoiser.process.draw_t(B, generator)
    if hidden is not None and mask.hidden is not None:
        for x in (patches, noise):
            x.scatter_(1, mask.hidden[..., None].expand(-1, -1, built.space.patch_dim), hidden)
    patches, noise = (masks.gather(x, mask.visible) for x in (patches / 2, noise))
    return Batch(patches, LABELS, mask, t, noise)


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
        output = predict(built, given)
        return [output.visible, *DenoisingLoss(built.denoiser)(*given)]

    with torch.no_grad():
        clean = answer(batch(built, mask))
        for a, b in zip(clean, answer(batch(built, mask, hidden=math.nan)), strict=True):
            assert a.isfinite().all()
            assert torch.equal(a, b)


def predict(built: model.Model, given: Batch) -> Prediction:
    sigma = built.denoiser.process.sigma(given.t)
    x = given.patches + sigma[:, None, None] * given.noise
    return built.denoiser.predict(x, sigma, given.labels, given.mask)


MASKED = pytest.mark.parametrize("kind", ["patch", "block", "crop"])


@MASKED
@pytest.mark.parametrize("space", systems.SPACES)
def test_what_is_hidden_in_the_images_is_not_in_the_patches(space: str, kind: str) -> None:
    """Not a number in pixels, coefficients' pixels or latents: nothing of it is left."""
    built = build("dit", space, "flow")
    h, w = built.space.grid
    patches = torch.randn(B, h * w, built.space.patch_dim)

    def seen(patches: Tensor) -> tuple[Tensor, masks.Mask]:
        images = Array(built.space.decode(patches).numpy(), built.space)
        return images.batch(slice(0, B), MaskSpec(kind, 0.5), torch.Generator().manual_seed(0))

    clean, mask = seen(patches)
    assert mask.hidden is not None
    assert clean.isfinite().all()
    patches.scatter_(1, mask.hidden[..., None].expand(-1, -1, built.space.patch_dim), math.nan)
    poisoned, same = seen(patches)
    assert torch.equal(same.visible, mask.visible)
    assert torch.equal(poisoned, clean)


@MASKED
def test_a_step_reads_hidden_pixels_for_the_hidden_loss_alone(images: Path, kind: str) -> None:
    dataset = data.prepare(config.Data(source=str(images), held_out="none"))
    space, ids = spaces.Pixels((16, 16), 3, 2), np.arange(B)
    stage, spec = config.Stage(mask=kind, rate=0.5), MaskSpec(kind, 0.5)

    def seen(pixels: np.ndarray, keep_hidden: bool = False) -> Visible:
        given = dataclasses.replace(dataset, images=pixels)
        training_set = ImageSet(given, stage, space, spec, keep_hidden=keep_hidden)
        gathered = training_set.gather(ids, 0.5, 0.0, 0)
        return training_set.visible(gathered, 0.5, torch.Generator().manual_seed(0))

    pixels = np.array(dataset.images)
    clean = seen(pixels)
    hidden = clean.mask.hidden
    assert hidden is not None
    assert clean.hidden is None
    patches = space.encode(spaces.from_uint8(pixels[ids]))
    shown = masks.gather(patches, clean.mask.visible)
    patches.scatter_(1, hidden[..., None].expand(-1, -1, 12), 1.0)
    pixels[ids] = spaces.to_uint8(space.decode(patches)).numpy()
    for keep_hidden in (False, True):
        changed = seen(pixels, keep_hidden)
        assert torch.equal(changed.patches, clean.patches)
        assert torch.equal(changed.patches, shown)
    assert changed.hidden is not None
    assert torch.equal(changed.hidden, torch.ones(B, hidden.shape[1], 12))


@ALL
def test_a_step_lowers_the_loss_and_is_kept(
    network: str, space: str, process: str, tmp_path: Path
) -> None:
    """One step of the loop's optimiser on a fixed batch; then weights are written and read.

    A step on crops, and another on whole images.
    """
    spec = systems.spec(network, space, process)
    state = TrainState(spec, config.Train(device="cpu"), distributed.start("cpu"))
    for group in state.optimizer.param_groups:
        group["lr"] = 1e-3
    for mask in (draw(state.model, "crop", 0.5), masks.Mask(state.model.space.grid)):
        given = batch(state.model, mask)
        state.optimizer.zero_grad()
        before = state.loss(*given).mean
        before.backward()
        state.optimizer.step()
        state.ema.update()
        with torch.no_grad():
            assert state.loss(*given).mean < before
    write_model(tmp_path, spec, state.weights())
    x = torch.randn(3, *state.model.space.planes)
    for weights, own in (("model", state.model), ("ema", state.averaged)):
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
        V = given.patches.shape[1]
        with (
            torch.no_grad(),
            FlopCounterMode(display=False) as counter,
            sdpa_kernel(SDPBackend.MATH),
        ):
            predict(built, given)
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
    run.network.dropout = 0.0 if spec.network.kind == "toy" else 0.1  # the toy has none
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

    original = step_rule.step

    def step(stage, run, state, progress):  # type: ignore[no-untyped-def]
        if progress.images >= 20:  # the last checkpoint is that at 16
            raise Cut
        original(stage, run, state, progress)

    monkeypatch.setattr(step_rule, "step", step)
    with pytest.raises(Cut):
        train(run, tmp_path / "cut", quiet=True)
    monkeypatch.setattr(step_rule, "step", original)
    train(None, tmp_path / "cut", resume=True, quiet=True)
    assert_same_run(whole, tmp_path / "cut")
