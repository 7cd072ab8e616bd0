"""A private step: whom it takes, what one image may add, and the noise."""

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from underpaint import config, hardware
from underpaint.core import spaces
from underpaint.core.masks import MaskSpec
from underpaint.dp import step
from underpaint.dp.step import clipped_sum, draws, gaussian, gradients, poisson
from underpaint.sealed.format import Sealed
from underpaint.sealed.training_set import SealedSet
from underpaint.training import distributed, stages
from underpaint.training.checkpointing import Progress
from underpaint.training.stages import PreparedStage
from underpaint.training.train_state import TrainState
from underpaint.training.training_set import ImageSet

pytest.importorskip("opacus")

NETWORKS = {
    "uvit": {"width": 16, "depth": 3, "heads": 2, "qk_norm": True},
    "dit": {"width": 16, "depth": 2, "heads": 2},
    "hourglass": {"width": 16, "depth": 2, "heads": 2},
    "maskdit": {
        "width": 16,
        "depth": 2,
        "heads": 2,
        "options": {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2},
    },
    "unet": {"width": 8, "depth": 1, "heads": 1, "options": {"multipliers": [1, 2]}},
}
Prepared = tuple[PreparedStage, config.Run, TrainState]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Prepared]:
    """A private stage on 40 images of 8×8, with weights that are nowhere zero."""
    folder = tmp_path_factory.mktemp("private")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    np.savez(folder / "images.npz", images=pixels, labels=np.arange(40) % 2)

    def prepare(kind: str = "uvit", **settings: object) -> Prepared:
        mask = "crop" if kind == "unet" else "patch"
        dp = {"epsilon": 8, "clip": 1.0, "multiplicity": 3, "labels": ["0", "1"]}
        own = {"images": 40, "batch": 10, "mask": mask, "rate": 0.5, "flip": True, "dp": dp}
        recipe = {
            "data": {"source": str(folder / "images.npz"), "held_out": "none"},
            "space": {"patch": 2},
            "network": {"kind": kind, **NETWORKS[kind]},
            "noise": {"hidden_weight": 0.1 if kind == "maskdit" else 0.0},
            "stages": {"private": {**own, **settings}},
        }
        run = config.from_dict(config.Run, recipe, "test: ")
        config.check(run)
        (stage,) = stages.prepare_stages(run, lambda _: None)
        state = TrainState(stage.spec, run.train, distributed.start("cpu"))
        torch.manual_seed(1)
        with torch.no_grad():
            for p in state.backbone.parameters():
                p.add_(0.1 * torch.randn_like(p))
        return stage, run, state

    return prepare


def seeded(seed: int = 0) -> step.Random:
    """In place of the operating system's generator."""
    return random.Random(seed).randbytes


def flat(gradient: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([g.flatten() for g in gradient.values()])


def taken(monkeypatch: pytest.MonkeyPatch, state: TrainState) -> list[torch.Tensor]:
    """The gradients with which the optimiser's next steps are made."""
    found: list[torch.Tensor] = []
    state.optimizer.register_step_pre_hook(
        lambda *_: found.append(flat({n: p.grad for n, p in state.loss.named_parameters()}))
    )
    return found


# --- one image's gradient ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NETWORKS)
def test_it_is_the_mean_over_draws_one_by_one_clipped_once(
    kind: str, prepared: Callable[..., Prepared]
) -> None:
    if kind == "unet":
        pytest.importorskip("diffusers")
    stage, run, state = prepared(kind, **({} if kind == "unet" else {"augment": 0.3}))
    level = stage.level(0)
    batches = [draws(stage, run, state, level, image, 0) for image in (3, 7, 8)]
    means = []
    for batch in batches:
        single = []
        for k in range(3):
            one = [None if x is None else x[k : k + 1] for x in step._tensors(batch)]
            patches, labels, t, noise, condition, hidden, hidden_noise, *mask = one
            own = batch.mask._replace(**dict(zip(batch.mask._fields[1:], mask, strict=True)))
            arguments = (patches, labels, own, t, noise, condition, hidden, hidden_noise)
            loss = state.loss(*arguments).mean
            single.append(
                torch.cat(
                    [g.flatten() for g in torch.autograd.grad(loss, list(state.loss.parameters()))]
                )
            )
        assert not torch.allclose(single[0], single[1], rtol=0.1)  # the draws differ
        means.append(torch.stack(single).mean(0))
    norms = sorted(float(m.norm()) for m in means)
    clip = (norms[0] + norms[1]) / 2  # clips two of the three
    expected = sum(m * min(1.0, clip / float(m.norm())) for m in means)
    found = flat(clipped_sum(gradients(state, batches), clip))
    assert float((found - expected).norm()) < 1e-4 * float(expected.norm())


def test_its_draws_depend_on_itself_and_the_step_alone(prepared: Callable[..., Prepared]) -> None:
    stage, run, state = prepared()
    level = stage.level(0)

    def noise(image: int, number: int) -> torch.Tensor:
        return draws(stage, run, state, level, image, number).noise

    assert torch.equal(noise(5, 0), noise(5, 0))
    assert not torch.equal(noise(5, 0), noise(5, 1))
    assert not torch.equal(noise(5, 0), noise(6, 0))
    # without image 3 the others are numbered anew, and still draw the same
    images = stage.training_set
    assert isinstance(images, ImageSet)
    pixels = np.roll(images.dataset.pixel_digests, 1, axis=0)
    other = dataclasses.replace(images.dataset, pixel_digests=pixels)
    moved = dataclasses.replace(stage, training_set=dataclasses.replace(images, dataset=other))
    there = draws(moved, run, state, level, 6, 0).noise
    assert torch.equal(there, noise(5, 0))


def test_no_image_adds_more_than_the_clip() -> None:
    rng = torch.Generator().manual_seed(0)
    sizes = 10.0 ** torch.arange(-4, 16).float()  # squares of the largest still are finite
    found = {
        "a": sizes[:, None, None] * torch.randn(20, 30, 7, generator=rng),
        "b": sizes[:, None] * torch.randn(20, 11, generator=rng),
    }
    for clip in (1e-3, 1.0, 50.0):
        for i in range(20):
            one = {name: g[i : i + 1] for name, g in found.items()}
            norm = float(flat(one).double().norm())
            kept = float(flat(clipped_sum(one, clip)).double().norm())
            assert kept <= clip
            assert kept == pytest.approx(min(norm, clip), rel=1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_a_gradient_that_is_not_finite_is_zero(value: float) -> None:
    found = {"a": torch.ones(3, 4), "b": torch.ones(3, 2)}
    found["a"][1, 2] = value
    kept = clipped_sum(found, 100.0)
    assert torch.equal(kept["a"], torch.full((4,), 2.0))
    assert torch.equal(kept["b"], torch.full((2,), 2.0))


# --- who is taken --------------------------------------------------------------------------------


def test_the_sizes_of_batches_have_the_binomial_law() -> None:
    ids, rate, times = np.arange(30), 0.2, 4000
    source = seeded()
    batches = [poisson(ids, rate, source) for _ in range(times)]
    sizes = np.bincount([len(b) for b in batches], minlength=31)
    law = stats.binom(30, rate).pmf(np.arange(31)) * times
    common = law > 5
    observed = [*sizes[common], sizes[~common].sum()]
    expected = [*law[common], law[~common].sum()]
    assert stats.chisquare(observed, expected).pvalue > 1e-3
    # and every image is as likely as any other
    each = np.bincount(np.concatenate(batches), minlength=30)
    assert stats.chisquare(each).pvalue > 1e-3
    assert all((np.diff(b) > 0).all() for b in batches)  # nobody twice


def test_all_and_none() -> None:
    ids = np.arange(5, 25)
    assert np.array_equal(poisson(ids, 1.0, seeded()), ids)
    assert len(poisson(ids, 0.0, seeded())) == 0


# --- the noise -----------------------------------------------------------------------------------


def test_numbers_are_standard_normal_and_independent() -> None:
    numbers = gaussian(2 * step.BLOCK + 5, seeded())
    assert numbers.dtype == np.float32
    assert stats.kstest(numbers, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(numbers[1:], numbers[:-1])[0, 1]) < 4 / np.sqrt(len(numbers))
    assert np.isfinite(gaussian(4, lambda n: b"\xff" * n)).all()
    assert np.isfinite(gaussian(4, lambda n: b"\x00" * n)).all()


def within(noise: torch.Tensor, deviation: float) -> bool:
    """Whether the sum of squares is in the 99.9 % interval of its chi-square law."""
    low, high = stats.chi2(noise.numel()).interval(0.999)
    return bool(low < float((noise.double() / deviation).square().sum()) < high)


def test_a_step_that_meets_no_image_is_noise_of_the_stated_size(
    prepared: Callable[..., Prepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, run, state = prepared()
    assert stage.guarantee is not None
    empty = dataclasses.replace(stage.guarantee, sampling_rate=0.0, clip=0.25)
    stage = dataclasses.replace(stage, guarantee=empty)
    found, progress = taken(monkeypatch, state), Progress()
    for _ in range(2):
        step.private_step(stage, run, state, progress, seeded(progress.images))
    deviation = empty.noise_multiplier * 0.25 / 10
    assert within(torch.cat(found), deviation)
    assert not torch.equal(found[0], found[1])
    assert progress.images == 20
    assert progress.privacy["private"]["spent_steps"] == 2
    assert state.ema.steps == 2


def test_a_step_is_the_clipped_sum_and_the_noise_over_the_expected_batch(
    prepared: Callable[..., Prepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, run, state = prepared()
    run = dataclasses.replace(run, train=dataclasses.replace(run.train, microbatch=4))
    own = stage.guarantee
    assert own is not None
    chosen = poisson(stage.order.ids, own.sampling_rate, seeded(3))
    assert len(chosen) not in (0, stage.batch)  # divided by the expected size all the same
    one = [draws(stage, run, state, stage.level(0), i, 0) for i in chosen]
    signal = flat(clipped_sum(gradients(state, one), own.clip))
    found = taken(monkeypatch, state)
    step.private_step(stage, run, state, Progress(), seeded(3))
    noise = found[0] * stage.batch - signal
    assert within(noise, own.noise_multiplier * own.clip)
    # and along the signal it is the signal: a single normal number beside it
    length = float(signal.norm())
    along = float(found[0] @ signal) * stage.batch / length
    assert abs(along - length) < 4 * own.noise_multiplier < length


def test_the_seed_decides_neither_noise_nor_batch(prepared: Callable[..., Prepared]) -> None:
    stage, run, state = prepared()
    start = {name: tensor.clone() for name, tensor in state.weights()["model"].items()}

    def after(*source: step.Random) -> torch.Tensor:
        state.load({"model": start, "ema": start}, 0)
        state.optimizer.state.clear()
        step.private_step(stage, run, state, Progress(), *source)
        return flat(dict(state.backbone.named_parameters())).detach().clone()

    assert torch.equal(after(seeded()), after(seeded()))
    assert not torch.equal(after(), after())  # the operating system's
    assert not torch.equal(after(seeded(0)), after(seeded(1)))


def test_an_image_that_breaks_the_network_does_not_stop_the_stage(
    prepared: Callable[..., Prepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, run, state = prepared()
    real = step.draws

    def broken(*arguments: object) -> object:
        batch = real(*arguments)  # type: ignore[arg-type]
        return batch._replace(noise=batch.noise * float("nan"))

    monkeypatch.setattr(step, "draws", broken)
    found, progress = taken(monkeypatch, state), Progress()
    for _ in range(4):  # more than what an ordinary stage would bear
        step.private_step(stage, run, state, progress, seeded(progress.images))
    assert stage.guarantee is not None
    assert within(torch.cat(found), stage.guarantee.noise_multiplier / 10)
    assert (progress.skipped, progress.skipped_in_row) == (0, 0)


def test_gradients_are_in_float32_whatever_the_precision(
    prepared: Callable[..., Prepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    single = after_step(prepared, monkeypatch, 2**30)
    monkeypatch.setattr(hardware, "bf16_speedup", lambda width: 2.0)
    assert prepared()[2].bf16
    assert torch.equal(single, after_step(prepared, monkeypatch, 2**30))


def test_many_images_are_met_in_parts_that_fit(
    prepared: Callable[..., Prepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, run, state = prepared()
    level = stage.level(0)
    assert step._at_once(state, run, stage, level) == stage.batch
    monkeypatch.setattr(step, "MEMORY", 1)
    assert step._at_once(state, run, stage, level) == 1
    whole = after_step(prepared, monkeypatch, 1)
    monkeypatch.undo()
    assert torch.allclose(whole, after_step(prepared, monkeypatch, 2**30), atol=1e-5)


def after_step(
    prepared: Callable[..., Prepared], monkeypatch: pytest.MonkeyPatch, memory: int
) -> torch.Tensor:
    monkeypatch.setattr(step, "MEMORY", memory)
    stage, run, state = prepared()
    found = taken(monkeypatch, state)
    step.private_step(stage, run, state, Progress(), seeded())
    return found[0]


def test_sealed_images_are_known_by_their_patches(tmp_path: Path) -> None:
    patches = np.random.default_rng(0).integers(0, 256, (3, 2, 9), dtype=np.uint8)
    positions = np.tile(np.array([0, 3], np.uint16), (3, 1))
    none = np.zeros(0, np.int64)
    about = {"size": [6, 6], "channels": 1, "label_names": []}
    sealed = Sealed(patches, positions, about, (6, 6), 1, (), none, none, none, "key")

    def content(sealed: Sealed, image: int) -> str:
        space, spec = spaces.Pixels((6, 6), 1, 3), MaskSpec("patch", 0.5)
        return SealedSet(sealed, space, spec, none).content(image)

    names = [content(sealed, i) for i in range(3)]
    assert len(set(names)) == 3
    alone = dataclasses.replace(sealed, patches=patches[:1], positions=positions[:1])
    assert names[0] == content(alone, 0)
    assert names[0] != content(dataclasses.replace(sealed, positions=positions + 1), 0)
