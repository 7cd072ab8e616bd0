"""Processes that share weights, moments and EMA are one process that has all of them."""

import dataclasses
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

import underpaint
from tests.training.conftest import draw_images, small_recipe
from tests.training.runs import (
    SERVER,
    assert_near,
    assert_same_run,
    begin,
    environment,
    join,
    launched,
    world,
)
from underpaint import config, io
from underpaint.errors import UserError
from underpaint.model_folder import damage_of, find, newest, read_card, read_weights
from underpaint.training import distributed, train
from underpaint.training.checkpointing import WRITTEN, Progress, RunFolder, read_optimizer
from underpaint.training.stages import prepare_stages
from underpaint.training.step import step
from underpaint.training.train_state import prepare_state

STEPS = 5


# --- steps ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    """A network and its optimiser, in so many processes."""

    kind: str
    optimizer: Literal["adamw", "muon"] = "adamw"
    size: int = 2
    within: float = 1e-6


NETWORKS: dict[str, dict[str, Any]] = {
    "dit": {},
    "hourglass": {},
    "maskdit": {"decoder_width": 64, "decoder_depth": 1, "decoder_heads": 2},
    "uvit": {"final_conv": True},
    "unet": {"multipliers": [1, 2], "attention": [1]},
}


def kit(images: Path, case: Case) -> config.Run:
    """Dropout, learned weights, clipped gradients, and microbatches that are added up."""
    run = small_recipe(images)
    run.network = dataclasses.replace(run.network, kind=case.kind, options=NETWORKS[case.kind])
    if case.kind == "unet":  # whose masks of dropout go by the strides of a single image
        run.network.width, run.network.depth, run.network.dropout = 32, 1, 0.0
    if case.kind == "maskdit":
        run.noise.hidden_weight = 0.1
    run.train = dataclasses.replace(
        run.train, optimizer=case.optimizer, microbatch=1, parallel="fsdp"
    )
    run.train.checkpoint_every = 10**6
    run.noise.learned_weights = True
    run.stages["masked"].clip = 0.5
    return run


def several_steps(images: Path, case: Case, out: Path, said: dict[str, str]) -> None:
    """STEPS steps, a checkpoint, one step more while that is written; then back to it."""
    os.environ.update(environment(**said))
    torch.set_num_threads(1)
    run = kit(images, case)
    here = distributed.start("cpu")
    stage = prepare_stages(run, lambda _: None)[0]
    state, progress, folder = prepare_state(stage.spec, run.train, here), Progress(), RunFolder(out)
    if here.first:
        folder.create()
    for _ in range(STEPS):
        step(stage, run, state, progress)
    now = {"weights": state.weights(), "optimizer": state.optimizer_state()}
    norm = progress.sums["grad_norm"]
    state.save(folder, progress, 1)
    step(stage, run, state, progress)
    state.finish()
    state.fill_averaged()
    if here.first:
        moved = state.averaged.denoiser.backbone.state_dict()
        torch.save(now | {"norm": norm, "next": dict(moved)}, out / "now.pt")
    state.restore(folder.latest().folder)
    again = {"weights": state.weights(), "optimizer": state.optimizer_state()}
    a, b = flat(now), flat(again)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    here.close()


def flat(nested: Any, place: str = "") -> dict[str, Tensor]:
    if isinstance(nested, Tensor):
        return {place: nested}
    found: dict[str, Tensor] = {}
    for name, value in nested.items():
        found |= flat(value, f"{place}/{name}")
    return found


long = pytest.mark.long
CASES = [
    Case("dit"),
    Case("hourglass", "muon", within=1e-4),
    Case("maskdit"),
    pytest.param(Case("uvit"), marks=long),
    pytest.param(Case("unet", within=2e-6), marks=long),
    pytest.param(Case("dit", size=4), marks=long),
    pytest.param(Case("hourglass", "muon", 4, 1e-4), marks=long),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}-{case.size}")
def test_steps_of_several_processes_are_those_of_one(
    images: Path, tmp_path: Path, case: Case
) -> None:
    """And what is written is what was there then, whatever steps are taken meanwhile."""
    if case.kind == "unet":
        pytest.importorskip("diffusers")
    run = kit(images, case)
    stage = prepare_stages(run, lambda _: None)[0]
    state, progress = prepare_state(stage.spec, run.train, distributed.start("cpu")), Progress()
    begun = {name: w.clone() for name, w in state.weights()["model"].items()}
    for _ in range(STEPS):
        step(stage, run, state, progress)
    expected: dict[str, Any] = {"weights": state.weights(), "optimizer": state.optimizer_state()}
    out = tmp_path / "run"
    processes = [
        SERVER.Process(target=several_steps, args=(images, case, out, said))
        for said in world(case.size)
    ]
    for process in processes:
        process.start()
    join(processes, tmp_path / "log")
    found = torch.load(out / "now.pt", weights_only=True)
    ours, theirs = (flat({k: x[k] for k in expected}) for x in (expected, found))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, atol=case.within, rtol=0, msg=name)
    moved = max(float((expected["weights"]["model"][k] - begun[k]).abs().max()) for k in begun)
    assert moved > 1e-3  # the steps did something
    assert found["norm"] == pytest.approx(progress.sums["grad_norm"], rel=1e-5)
    checkpoint = find(out)
    written = {
        "weights": {name: read_weights(checkpoint, name) for name in ("model", "ema")},
        "optimizer": read_optimizer(checkpoint),
    }
    stored = flat(written)
    assert stored.keys() == theirs.keys()
    assert all(torch.equal(stored[name], theirs[name]) for name in stored)
    loaded = underpaint.load(out).backbone.state_dict()
    assert all(torch.equal(loaded[name], written["weights"]["ema"][name]) for name in loaded)
    step(stage, run, state, progress)
    for name, tensor in state.averaged.denoiser.backbone.state_dict().items():
        torch.testing.assert_close(found["next"][name], tensor, atol=case.within, rtol=0)


# --- whole runs ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe as a file."""
    folder = tmp_path_factory.mktemp("sharded")
    run = small_recipe(draw_images(folder / "images.npz"))
    run.stages["masked"].images, run.stages["whole"].images = 320, 160
    run.train = dataclasses.replace(run.train, parallel="fsdp", microbatch=2, keep=100, ema=0.9)
    run.train.checkpoint_every, run.train.check_every, run.train.sample_every = 80, 160, 160
    path = folder / "recipe.yaml"
    path.write_text(config.to_yaml(run))
    return path


@pytest.fixture(scope="module")
def straight(written: Path) -> Path:
    """The sharded run of that recipe which nothing stops."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNDERPAINT_CACHE", str(written.parent / "cache"))
        out, log = written.parent / "straight", written.parent / "log"
        join(launched(out, log, "--config", written, "--quiet"), log)
    return out


@pytest.mark.slow
def test_killed_it_goes_on_by_itself_when_torchrun_starts_it_again(
    written: Path, straight: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "killed", tmp_path / "log"
    torchrun = {"TORCHELASTIC_RUN_ID": "job"}
    command = ("--config", written, "--quiet")
    first, other = launched(out, log, *command, **torchrun, TORCHELASTIC_RESTART_COUNT="0")
    while not (out / "checkpoints" / f"{160:012d}").exists():
        assert first.is_alive(), log.read_text()
        time.sleep(0.02)
    assert other.pid is not None
    os.kill(other.pid, signal.SIGKILL)
    first.join()
    other.join()
    assert first.exitcode == 1
    said = [line for line in log.read_text().splitlines() if line.startswith("underpaint: ")]
    assert len(said) == 1
    assert "another process of this run is gone" in said[0]
    assert newest(out).note == ""  # the last checkpoint is whole
    assert newest(out).folder.name < f"{480:012d}"
    again = launched(out, log, *command, **torchrun, TORCHELASTIC_RESTART_COUNT="1")
    join(again, log)
    assert_same_run(straight, out)
    # another call of torchrun is refused, restarted or not: the run is not its
    for count in ("0", "1"):
        refused = begin(
            *("train", *command, "--out", out),
            log=log,
            TORCHELASTIC_RUN_ID="another",
            TORCHELASTIC_RESTART_COUNT=count,
        )
        refused.join()
        assert refused.exitcode == 2
    assert log.read_text().count("a run is there already") == 2


@pytest.mark.slow
def test_it_goes_on_with_another_number_of_processes(straight: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "moved", tmp_path / "log"
    shutil.copytree(straight, out)
    latest = out / "checkpoints" / "LATEST"
    latest.write_text(f"{80:012d}\n")
    train(None, out, resume=True, quiet=True)  # one process has nobody to share with
    assert (find(out) / "optimizer.pt").is_file()
    assert_near(straight, out)
    latest.write_text(f"{160:012d}\n")  # which that process wrote
    join(launched(out, log, "--resume", "--quiet"), log)
    assert (find(out) / "optimizer").is_dir()
    assert_near(straight, out)


@pytest.mark.slow
def test_a_model_is_loaded_from_shards(straight: Path, tmp_path: Path) -> None:
    model = underpaint.load(straight)
    expected = read_weights(find(straight), "ema")
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, expected[name])
    model.save(tmp_path / "export")
    assert (tmp_path / "export" / "model.safetensors").is_file()
    alone = underpaint.load(tmp_path / "export")
    assert np.array_equal(alone.sample(2, seed=1), model.sample(2, seed=1))
    # a run of another kind begins with them
    run = small_recipe(draw_images(tmp_path / "images.npz"))
    run.train.check_every = run.train.sample_every = -1
    run.stages = {"whole": dataclasses.replace(run.stages["whole"], images=8)}
    train(run, tmp_path / "next", start=str(straight), quiet=True)


@pytest.mark.slow
def test_damaged_shards_are_passed_over(straight: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(straight, out)
    last, before = (out / "checkpoints" / f"{images:012d}" for images in (480, 400))
    shard = sorted((last / "optimizer").iterdir())[1]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert "its checksum differs" in damage_of(last)
    assert newest(out).folder == before
    sorted((before / "ema").iterdir())[0].unlink()
    assert "is missing" in damage_of(before)
    with pytest.raises(UserError, match="checksum"):
        read_weights(before, "ema")
    assert newest(out).folder.name == f"{320:012d}"
    # what names files elsewhere is refused
    card = out / "checkpoints" / f"{320:012d}" / "config.json"
    values = json.loads(card.read_text())
    values["sha256"]["../model/shard-00001-model-00001-of-00001.safetensors"] = "0" * 64
    card.write_text(json.dumps(values))
    with pytest.raises(UserError, match="no file of weights"):
        read_card(card.parent)


@pytest.mark.slow
def test_what_clears_shards_clears_nothing_else(straight: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(straight, out)
    checkpoint = find(out)
    assert io.holds_only(checkpoint, WRITTEN)
    note = checkpoint / "ema" / "note.txt"
    note.write_text("mine")
    assert not io.holds_only(checkpoint, WRITTEN)
    with pytest.raises(UserError, match="holds more than underpaint wrote"):
        RunFolder(out).check(overwrite=True)
    note.unlink()
    RunFolder(out).check(overwrite=True)


# --- without torchrun ----------------------------------------------------------------------------


def test_one_process_has_nobody_to_share_with(recipe: config.Run, tmp_path: Path) -> None:
    recipe.train.parallel = "fsdp"
    recipe.stages = {"masked": dataclasses.replace(recipe.stages["masked"], images=8)}
    out = train(recipe, tmp_path / "run", quiet=True)
    assert "one process has nobody to share with" in (out / "log.txt").read_text()
    assert (find(out) / "optimizer.pt").is_file()


@pytest.mark.parametrize("kind", ["dit", "uvit", "maskdit", "hourglass"])
def test_recomputing_blocks_changes_nothing_but_memory(recipe: config.Run, kind: str) -> None:
    """With dropout: what is computed again drops the same."""
    recipe.network.kind = kind
    found, kept = [], []
    for recompute in (False, True):
        recipe.train.recompute = recompute
        stage = prepare_stages(recipe, lambda _: None)[0]
        state = prepare_state(stage.spec, recipe.train, distributed.start("cpu"))
        progress = Progress()
        for _ in range(2):
            step(stage, recipe, state, progress)
        found.append(state.weights()["model"])
        backbone = state.model.backbone
        kept.append(backbone.activation_bytes(16, recompute=recompute))
    plain, again = found
    assert plain.keys() == again.keys()
    assert all(torch.equal(plain[name], again[name]) for name in plain)
    assert kept[1] < 0.75 * kept[0]


def test_what_cannot_be_shared_is_refused(recipe: config.Run) -> None:
    recipe.train.parallel, recipe.train.snapshots = "fsdp", 16
    with pytest.raises(UserError, match="leave one of the two out"):
        config.check(recipe)
    recipe.train = dataclasses.replace(recipe.train, parallel="auto", recompute=True, compile=True)
    with pytest.raises(UserError, match="give one of them"):
        config.check(recipe)
