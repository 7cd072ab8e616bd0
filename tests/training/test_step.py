"""A step as a GPU wants it: nothing is read, all is made there, the next images are ready."""

import dataclasses
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests import systems
from tests.training.runs import assert_same_run, metrics
from tests.training.syncs import NoSync, Sync
from tests.training.test_systems import SYSTEMS, changed
from tests.training.test_trainer import poison
from underpaint import config
from underpaint.errors import Interrupted
from underpaint.training import counts, optim, train
from underpaint.training import step as steps
from underpaint.training.checkpointing import Progress
from underpaint.training.distributed import World
from underpaint.training.stages import PreparedStage, prepare_stages
from underpaint.training.step import Diverged, settle, step
from underpaint.training.train_state import TrainState
from underpaint.training.training_set import ImageSet

CPU = torch.device("cpu")
MUON = {"train": {"optimizer": "muon"}}
STEPS: dict[str, dict[str, Any]] = {
    **{name: SYSTEMS[name] for name in SYSTEMS if name != "hourglass"},  # as "muon" has it
    "dit": {"network": {"kind": "dit"}, "train": {"snapshots": 8}},
    "uvit": {"network": {"kind": "uvit", "options": {"final_conv": True}}},
    "blocks": {"stages": {"masked": {"mask": "block", "rate": 0.9}}},
    "crops": {"stages": {"masked": {"mask": "crop"}}},
    "muon": MUON | SYSTEMS["hourglass"],
    "rgba": {"data": {"channels": "rgba"}},
    "latents": {"space": {"kind": "latents", "patch": 1, "factor": 2}},
    "wavelets": {"space": {"kind": "wavelets", "patch": 2}},
    "discrete": {
        "noise": {"process": "vp-cosine", "prediction": "v", "steps": 200, "time": "uniform"}
    },
}


def prepared(
    recipe: config.Run, name: str, tmp_path: Path
) -> tuple[config.Run, list[PreparedStage]]:
    """The recipe as `STEPS` changes it, and its stages."""
    changes = dict(STEPS[name])
    if name == "latents":
        vae = str(systems.save_autoencoder(tmp_path / "vae"))
        changes = {"space": changes["space"] | {"vae": vae}}
    if name == "rgba":
        pixels = np.random.default_rng(0).integers(0, 256, (60, 16, 16, 4), dtype=np.uint8)
        np.savez(tmp_path / "rgba.npz", images=pixels, labels=np.arange(60) % 2)
        changes = {"data": changes["data"] | {"source": str(tmp_path / "rgba.npz")}}
    run = changed(recipe, changes)
    return run, prepare_stages(run, lambda _: None)


def as_on_a_gpu(state: TrainState) -> TrainState:
    """Nothing is read at once, and images are read ahead, though this is a CPU."""
    state.model.denoiser.process.draw_t(1)  # a schedule's ends are computed once
    state.deferred, state.feed.ahead = True, True
    return state


@pytest.fixture
def recipe(recipe: config.Run) -> config.Run:
    """Of the smallest networks, and without a look at them."""
    network = {"width": 64, "depth": 1, "heads": 2, "dropout": 0.1}
    return changed(recipe, {"network": network, "train": {"check_every": -1, "sample_every": -1}})


@pytest.fixture(autouse=True)
def uncounted(monkeypatch: pytest.MonkeyPatch) -> None:
    """FLOPs are counted on the host, once, and have tests of their own."""
    monkeypatch.setattr(counts, "flops", lambda *_: 1)


@contextmanager
def gpus() -> Iterator[None]:
    """All states of runs are as on a GPU."""
    original = TrainState.__init__

    def init(self: TrainState, *arguments: Any) -> None:
        original(self, *arguments)
        as_on_a_gpu(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainState, "__init__", init)
        yield


@contextmanager
def one_of_two(tmp_path: Path) -> Iterator[World]:
    """The first of two processes, of which the second is missing in the exchange."""
    dist.init_process_group(
        "gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    try:
        yield World(0, 2, CPU)
    finally:
        dist.destroy_process_group()


# --- nothing is waited for -----------------------------------------------------------------------


@pytest.mark.parametrize("name", STEPS)
def test_no_step_waits_for_the_device(name: str, recipe: config.Run, tmp_path: Path) -> None:
    run, stages = prepared(recipe, name, tmp_path)
    state, progress = (
        as_on_a_gpu(TrainState(stages[0].spec, run.train, World(0, 1, CPU))),
        Progress(),
    )
    for stage in stages:
        with NoSync():
            step(stage, run, state, progress)
            step(stage, run, state, progress)
        settle(state, progress)
        assert progress.sums["steps"] > 0
        assert progress.skipped == 0
    state.feed.close()


@pytest.mark.parametrize("name", ["maskdit", "muon"])
def test_nor_does_one_of_several_processes(name: str, recipe: config.Run, tmp_path: Path) -> None:
    run, (stage, _) = prepared(recipe, name, tmp_path)
    run.train.microbatch = 2
    with one_of_two(tmp_path) as world:
        state, progress = as_on_a_gpu(TrainState(stage.spec, run.train, world)), Progress()
        with NoSync():
            step(stage, run, state, progress)
        settle(state, progress)
        state.feed.close()
    assert np.isfinite(progress.sums["loss"])


PLANTS: dict[str, Callable[[Tensor], object]] = {
    "aten._local_scalar_dense": lambda x: x.sum().item(),
    "aten._local_scalar_dense of float": lambda x: float(x.sum()),
    "aten._local_scalar_dense of bool": lambda x: bool(x.any()),
    "aten.nonzero": lambda x: x.nonzero(),
    "aten.nonzero of where": lambda x: torch.where(x > 0),
    "aten.masked_select": lambda x: x.masked_select(x > 0),
    "aten.index.Tensor by a boolean": lambda x: x[x > 0],
    "aten.index_put": lambda x: x.clone().__setitem__(x > 0, torch.ones(1)[0]),
    "aten._to_copy": lambda x: x.to("meta"),
    "aten.copy_": lambda x: torch.empty_like(x, device="meta").copy_(x),
    "aten.equal": lambda x: torch.equal(x, x + 1),
    "aten._unique2": lambda x: x.unique(),
    "Tensor.tolist": lambda x: x.tolist(),
    "Tensor.numpy": lambda x: x.numpy(),
    "Tensor.cpu": lambda x: x.cpu(),
}


@pytest.mark.parametrize("kind", PLANTS)
def test_a_planted_wait_is_found(
    kind: str, recipe: config.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, (stage, _) = prepared(recipe, "dit", tmp_path)
    state, progress = as_on_a_gpu(TrainState(stage.spec, run.train, World(0, 1, CPU))), Progress()
    original = steps.draw_batch

    def draw(*arguments: Any) -> Any:
        batch = original(*arguments)
        PLANTS[kind](batch.patches)
        return batch

    monkeypatch.setattr(steps, "draw_batch", draw)
    with NoSync(), pytest.raises(Sync, match=kind.partition(" of ")[0]):
        step(stage, run, state, progress)
    state.feed.close()


def test_what_is_sent_to_a_device_is_not_waited_for() -> None:
    with NoSync():
        torch.ones(3).to("meta", non_blocking=True)
        torch.empty(3, device="meta").copy_(torch.ones(3), non_blocking=True)


# --- what is decided on the device is what the host would have decided ----------------------------


def test_a_run_as_on_a_gpu_is_the_run_on_a_cpu(
    recipe: config.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Skipped steps, norms, averages, a learned weighting and all that is logged."""
    monkeypatch.setattr(optim, "FIRST", 4)
    poison(monkeypatch, lambda stage, position, attempt: position in (8, 24, 32))
    changes = {
        "network": {"kind": "hourglass"},
        "space": {"patch": 2},
        "noise": {"learned_weights": True},
        "stages": {"masked": {"clip_percentile": 40, "images": 72}, "whole": {"images": 48}},
        "train": {"optimizer": "muon", "microbatch": 4, "snapshots": 64, "log_every": 48},
    }
    for more in (changes, {"train": {"log_every": 24, "weight_decay": 0.1}}):
        run = changed(recipe, more)
        cpu = train(run, tmp_path / f"cpu-{len(more)}", quiet=True)
        with gpus():
            gpu = train(run, tmp_path / f"gpu-{len(more)}", quiet=True)
        assert metrics(cpu)[-1]["kind"] == "stage"
        assert [m["skipped"] for m in metrics(cpu) if m["kind"] == "step"][-1] == 6
        assert_same_run(gpu, cpu)


def test_divergence_is_seen_when_the_device_is_read(
    recipe: config.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After three such steps and good ones again: the run goes back all the same."""
    poison(monkeypatch, lambda stage, position, attempt: attempt == 0 and 40 <= position < 64)
    recipe.train.log_every = recipe.train.checkpoint_every = 32
    with gpus():
        out = train(recipe, tmp_path / "run", quiet=True)
    (rollback,) = [m for m in metrics(out) if m["kind"] == "rollback"]
    assert (rollback["images"], rollback["to"]) == (64, 32)


def test_a_row_of_skipped_steps_that_has_ended_counts(recipe: config.Run, tmp_path: Path) -> None:
    run, (stage, _) = prepared(recipe, "dit", tmp_path)
    state, progress = as_on_a_gpu(TrainState(stage.spec, run.train, World(0, 1, CPU))), Progress()
    with pytest.MonkeyPatch.context() as patch:
        poison(patch, lambda stage, position, attempt: position < 24)
        for _ in range(4):
            step(stage, run, state, progress)
    with pytest.raises(Diverged):
        settle(state, progress)
    assert (progress.skipped, progress.skipped_in_row, progress.sums["steps"]) == (3, 0, 1)
    state.feed.close()


# --- images are read ahead -----------------------------------------------------------------------


def readers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("underpaint-feed")]


def test_a_stopped_run_has_read_nothing_that_it_has_not_trained_on(
    recipe: config.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in its middle and resumed, with images of another thread, then without one."""
    straight = train(recipe, tmp_path / "straight", quiet=True)
    original, drawn = steps.draw_batch, []

    def interrupting(*arguments: Any) -> Any:
        drawn.append(arguments)
        assert len(readers()) == 1
        if len(drawn) == 7:
            raise Interrupted
        return original(*arguments)

    with gpus(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "draw_batch", interrupting)
        with pytest.raises(Interrupted):
            train(recipe, tmp_path / "stopped", quiet=True)
    assert not readers()
    assert_same_run(straight, train(None, tmp_path / "stopped", resume=True, quiet=True))


def test_what_goes_wrong_in_reading_is_raised_where_it_is_asked_for(
    recipe: config.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, asked = ImageSet.gather, []

    def gather(self: ImageSet, *arguments: Any) -> Any:
        asked.append(threading.current_thread())
        if len(asked) == 6:
            raise OSError("the disk is gone")
        return original(self, *arguments)

    monkeypatch.setattr(ImageSet, "gather", gather)
    with gpus(), pytest.raises(OSError, match="the disk is gone"):
        train(recipe, tmp_path / "run", quiet=True)
    assert threading.main_thread() not in asked
    assert not readers()
    last = metrics(tmp_path / "run")[-1]
    assert last["images"] == 32  # four lines of two steps: the sixth had been read ahead


def test_a_wrong_guess_is_read_again(recipe: config.Run, tmp_path: Path) -> None:
    run, stages = prepared(recipe, "augmentation", tmp_path)
    feed = as_on_a_gpu(TrainState(stages[0].spec, run.train, World(0, 1, CPU))).feed
    guessed, asked = (steps.request(stages[1], run, 0.0, position, 8, 0) for position in (0, 56))
    feed.take(guessed, guessed)
    found = feed.take(asked)
    for a, b in zip(found.tensors(), asked.read().tensors(), strict=True):
        assert torch.equal(a, b)
    feed.close()
    assert not readers()


# --- nothing is made on another device -----------------------------------------------------------


class Elsewhere(torch.Generator):
    """A generator of a device that this build of torch does not have."""

    place: torch.device

    def __new__(cls, device: torch.device | str = "cpu") -> Self:
        made = super().__new__(cls)
        made.place = torch.device(device)
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.place


@contextmanager
def without_memory() -> Iterator[None]:
    """The device `meta`, whose tensors have shapes alone, has generators and a fused AdamW."""
    with pytest.MonkeyPatch.context() as patch:
        fused = "_get_fused_kernels_supported_devices"
        patch.setattr(sys.modules["torch.optim.optimizer"], fused, lambda: ["meta"])
        patch.setattr(steps, "autocast", lambda *_: nullcontext())  # which it does not have
        patch.setattr(torch, "Generator", Elsewhere)
        yield


# what differs in the others is drawn by the host, or is not in a step
ELSEWHERE = ("maskdit", "muon", "augmented crops", "percentile clip", "uvit", "salient")
ELSEWHERE += ("learned weights", "fixed", "discrete")


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_step_is_made_on_one_device(name: str, recipe: config.Run, tmp_path: Path) -> None:
    """Forward, backward and the optimiser; torch's device `meta`, for want of another."""
    run, stages = prepared(recipe, name, tmp_path)
    device = torch.device("meta")
    with without_memory():
        state, progress = TrainState(stages[0].spec, run.train, World(0, 1, device)), Progress()
        as_on_a_gpu(state).reads_on = device
        for group in state.optimizer.param_groups:
            group["fused"] = True  # as on a GPU
        for stage in stages:
            with NoSync():
                step(stage, run, state, progress)
        assert {w.device.type for w in state.model.denoiser.parameters()} == {"meta"}
        state.feed.close()


def test_what_is_made_on_the_host_is_found(
    recipe: config.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = steps.draw_batch

    def draw(*arguments: Any) -> Any:
        batch = original(*arguments)
        return dataclasses.replace(batch, patches=batch.patches + torch.ones(batch.patches.shape))

    monkeypatch.setattr(steps, "draw_batch", draw)
    with pytest.raises(RuntimeError, match="not on the expected device"):
        test_a_step_is_made_on_one_device("discrete", recipe, tmp_path)
