"""`train.stop auto`: where a stage ends, with which weights, and that a resumed run does the same.

The checks of most tests are written: what they say depends on the images seen alone.
"""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.training.runs import assert_same_run, metrics
from underpaint import api, config
from underpaint.core.masks import MaskSpec
from underpaint.errors import UserError
from underpaint.evaluation.early_stopping import judge
from underpaint.model_folder import find
from underpaint.training import early, train
from underpaint.training.checkpointing import Progress, RunFolder, read_progress
from underpaint.training.distributed import World
from underpaint.training.monitor import Finding

LEVELS = np.random.default_rng(0).normal(0, 0.1, 32)


class Written:
    """Checks whose held-out error falls until `turn` of the run, then is flat or rises."""

    def __init__(self, turn: int, rise: float, images: int) -> None:
        self.turn, self.rise, self.images = turn, rise, images

    def run(self, model: Any, spec: MaskSpec) -> list[dict[str, Any]]:
        self.images += 8
        seen = min(self.images, self.turn) - self.rise * max(0, self.images - self.turn)
        held_out = LEVELS + 1 - seen / 1000
        return [
            {
                "mask": "whole",
                "rate": 0.0,
                "log_snr_edges": [0.0, 1.0],
                "train": [1 - self.images / 1000],
                "held_out": [float(held_out.mean())],
                "train_mean": 1 - self.images / 1000,
                "held_out_mean": float(held_out.mean()),
                "held_out_se": 0.01,
                "gap": 0.1,
                "held_out_images": held_out.tolist(),
            }
        ]

    def scores(self, model: Any) -> None:
        return None

    def health(self, samples: np.ndarray, progress: tuple[int, int]) -> dict[str, Any]:
        """All samples are noise."""
        assert (samples.dtype, samples.shape[1:]) == (np.uint8, (16, 16, 3))
        return {"verdict": "noise", "sentence": "samples are still noise", "of": progress[1]}

    def finding(self, records: list[dict[str, Any]]) -> Finding:
        return judge(records)


def written(out: Path, turn: int, rise: float = 0.0) -> Any:
    """Makes the check of a stage; `turn` counts the images of the run in `out`."""

    def make(*_: Any) -> Written:
        return Written(turn, rise, read_progress(find(out)).images)

    return make


@pytest.fixture
def one(recipe: config.Run) -> config.Run:
    """One stage of 240 images, checked every 8."""
    stage = dataclasses.replace(recipe.stages["whole"], images=240, schedule="constant")
    recipe.stages = {"whole": stage}
    recipe.train.stop = "auto"
    recipe.train.check_every = 8
    recipe.train.sample_every = -1
    recipe.train.checkpoint_every = 1000
    return recipe


def ema(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "ema.safetensors")


def stops(run: Path) -> list[dict[str, Any]]:
    return [r for r in metrics(run) if r["kind"] == "stop"]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, b[name]) for name, tensor in a.items())


# --- where a stage ends --------------------------------------------------------------------------


@pytest.mark.parametrize(("rise", "end"), [(0.0, 104), (1.0, 96)])
def test_a_stage_ends_with_the_weights_of_its_best_check(
    one: config.Run, tmp_path: Path, rise: float, end: int
) -> None:
    out = train(one, tmp_path / "run", make_check=written(tmp_path / "run", 80, rise), quiet=True)
    checkpoints = out / "checkpoints"
    assert (checkpoints / "LATEST").read_text().strip() == f"{end:012d}"
    assert (checkpoints / "BEST").read_text().strip() == f"{80:012d}"
    assert same(ema(checkpoints / f"{end:012d}"), ema(checkpoints / f"{80:012d}"))
    (told,) = stops(out)
    assert (told["images"], told["back"], told["ends"], told["cooldown"]) == (end, 80, True, 0)
    assert f"ends after {end} of 240 images, with the weights after 80" in told["sentence"]
    log = (out / "log.txt").read_text()
    reason = "memorizing: " if rise else "plateaued for 24 images: "
    assert log.index(reason) < log.index("ends after")
    assert log.count("still improving: ") == 9  # of ten checks to the best one the first says none
    assert log.count("check: ") == (1 if rise else 2)
    assert ("worse than at 80 images" if rise else "no better than at 80 images") in log
    last = metrics(out)[-1]
    assert (last["kind"], last["event"], last["images"]) == ("stage", "end", end)


def test_without_auto_it_is_said_and_nothing_ends(one: config.Run, tmp_path: Path) -> None:
    one.train.stop = "none"
    out = train(one, tmp_path / "run", make_check=written(tmp_path / "run", 80, 1.0), quiet=True)
    assert "memorizing: " in (out / "log.txt").read_text()
    assert not stops(out)
    assert not (out / "checkpoints" / "BEST").exists()
    assert metrics(out)[-1]["images"] == 240


def test_that_samples_are_noise_is_said_before_the_error_falls(
    one: config.Run, tmp_path: Path
) -> None:
    one.train.sample_every = 80
    out = train(one, tmp_path / "run", make_check=written(tmp_path / "run", 1000), quiet=True)
    said = [line.split(" ", 2)[2] for line in (out / "log.txt").read_text().splitlines()]
    noise = [i for i, line in enumerate(said) if line == "samples are still noise"]
    assert len(noise) == 3
    assert all(said[i + 1].startswith("still improving: ") for i in noise)
    grids = [r for r in metrics(out) if r["kind"] == "sample"]
    assert [r["health"]["verdict"] for r in grids] == ["noise"] * 3


def test_grids_are_judged_also_where_no_check_is_made(one: config.Run, tmp_path: Path) -> None:
    one.train.stop, one.train.check_every, one.train.sample_every = "none", -1, 80
    out = train(one, tmp_path / "run", make_check=written(tmp_path / "run", 1000), quiet=True)
    assert "samples are still noise" in (out / "log.txt").read_text()
    assert not [r for r in metrics(out) if r["kind"] == "check"]


def test_a_stage_that_gains_to_its_end_is_whole(one: config.Run, tmp_path: Path) -> None:
    out = train(one, tmp_path / "run", make_check=written(tmp_path / "run", 1000), quiet=True)
    assert not stops(out)
    assert metrics(out)[-1]["images"] == 240
    names = sorted(p.name for p in (out / "checkpoints").iterdir() if p.is_dir())
    assert names == [f"{n:012d}" for n in (232, 240)]  # the best is not kept beyond the next one


def test_an_end_that_is_worse_gives_way_to_the_best_check(one: config.Run, tmp_path: Path) -> None:
    out = train(one, tmp_path / "run", make_check=written(tmp_path / "run", 232, 1.0), quiet=True)
    (told,) = stops(out)
    assert (told["images"], told["back"], told["ends"]) == (240, 232, False)
    checkpoints = out / "checkpoints"
    assert same(ema(checkpoints / f"{240:012d}"), ema(checkpoints / f"{232:012d}"))


def test_a_cool_down_follows_the_best_weights(one: config.Run, tmp_path: Path) -> None:
    """Of share 0.25 after 72 images: 24, as in a stage of 96."""
    one.stages["whole"].schedule = "cooldown"
    one.train.log_every = 8
    out = train(one, tmp_path / "run", make_check=written(tmp_path / "run", 72), quiet=True)
    (told,) = stops(out)
    assert (told["images"], told["back"], told["cooldown"], told["ends"]) == (96, 72, 24, False)
    rates = {r["images"]: r["lr"] for r in metrics(out) if r["kind"] == "step"}
    assert max(rates) == 120
    assert [rates[n] for n in (96, 104, 112, 120)] == pytest.approx(
        [5e-4, 5e-4, 5e-4 * 2 / 3, 5e-4 / 3]
    )
    assert metrics(out)[-1]["images"] == 120


def test_within_a_cool_down_no_gain_is_no_end_but_copying_is(
    one: config.Run, tmp_path: Path
) -> None:
    one.stages["whole"].schedule = "cooldown"
    flat = train(one, tmp_path / "flat", make_check=written(tmp_path / "flat", 176), quiet=True)
    assert metrics(flat)[-1]["images"] == 240
    rising = train(
        one, tmp_path / "rising", make_check=written(tmp_path / "rising", 192, 1.0), quiet=True
    )
    assert metrics(rising)[-1]["images"] == 208
    assert stops(rising)[0]["back"] == 192


def test_the_next_stage_begins_with_the_best_weights(one: config.Run, tmp_path: Path) -> None:
    """And with weights that the first stage alone would have left."""
    first = dataclasses.replace(one.stages["whole"])
    alone = train(one, tmp_path / "alone", make_check=written(tmp_path / "alone", 80), quiet=True)
    one.stages = {"first": first, "second": dataclasses.replace(first, images=8)}
    one.stages["second"].learning_rate = 1e-30
    both = train(one, tmp_path / "both", make_check=written(tmp_path / "both", 80), quiet=True)
    assert [r["images"] for r in metrics(both) if r["kind"] == "stage"] == [0, 104, 104, 112]
    kept = ema(alone / "checkpoints" / f"{80:012d}")
    own = load_file(both / "checkpoints" / f"{112:012d}" / "model.safetensors")
    first_end = load_file(both / "checkpoints" / f"{104:012d}" / "model.safetensors")
    assert same(own, first_end)
    assert same(ema(both / "checkpoints" / f"{104:012d}"), kept)


def test_a_long_warm_up_is_waited_for() -> None:
    world = World(0, 1, torch.device("cpu"))
    found = Finding("stop", "", 8, 24, False, {})
    settings = config.Stage(batch=8, warmup=64)
    stage: Any = SimpleNamespace(settings=settings, batch=8, images=240)
    at = {
        n: early.decide(found, stage, Progress(stage_images=n, images=n), world) for n in (64, 72)
    }
    assert not at[64].ends
    assert at[72].ends


# --- the same run, however often it is stopped ---------------------------------------------------


@pytest.fixture
def two(one: config.Run) -> config.Run:
    """A stage that cools down early and one that ends early, with averages of any width.

    How often there are lines and grids follows from the length of the run.
    """
    first = dataclasses.replace(one.stages["whole"], images=120, schedule="cooldown")
    one.stages = {"first": first, "second": dataclasses.replace(first, schedule="constant")}
    one.train.keep = 100
    one.train.snapshots = 16
    one.train.log_every = one.train.sample_every = 0
    return one


def test_resuming_where_something_was_decided(two: config.Run, tmp_path: Path) -> None:
    straight = train(
        two, tmp_path / "straight", make_check=written(tmp_path / "straight", 48), quiet=True
    )
    assert [(s["back"], s["cooldown"], s["ends"]) for s in stops(straight)] == [
        (48, 16, False),
        (96, 0, True),
    ]
    out = train(two, tmp_path / "again", make_check=written(tmp_path / "again", 48), quiet=True)
    # at the second decision, the first stage's end, the first decision, the best check
    for images in (120, 88, 72, 48):
        name = f"{images:012d}"
        (out / "checkpoints" / "LATEST").write_text(name + "\n")
        train(None, out, resume=True, make_check=written(out, 48), quiet=True)
        assert_same_run(straight, out)
        for kind in ("checkpoints", "snapshots"):
            assert sorted(p.name for p in (out / kind).iterdir()) == sorted(
                p.name for p in (straight / kind).iterdir()
            )


@pytest.mark.parametrize("written_first", [False, True])
def test_killed_at_the_decision(
    two: config.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written_first: bool
) -> None:
    """Before or after its checkpoint is on the disk; the weights given up are gone for good."""
    two.train.keep = 1
    straight = train(
        two, tmp_path / "straight", make_check=written(tmp_path / "straight", 48), quiet=True
    )
    save = RunFolder.save

    class Killed(BaseException):
        pass

    for image in (stop["images"] for stop in stops(straight)):
        out = tmp_path / f"killed-{image}"

        def dying(self: RunFolder, *arguments: Any, at: int = image) -> Path:
            here = arguments[3].images == at
            if not here or written_first:
                saved = save(self, *arguments)
            if here:
                raise Killed
            return saved

        monkeypatch.setattr(RunFolder, "save", dying)
        with pytest.raises(Killed):
            train(two, out, make_check=written(out, 48), quiet=True)
        monkeypatch.setattr(RunFolder, "save", save)
        train(None, out, resume=True, make_check=written(out, 48), quiet=True)
        assert_same_run(straight, out)
        assert (out / "checkpoints" / "BEST").read_text() == (
            straight / "checkpoints" / "BEST"
        ).read_text()


def test_the_other_processes_hear_the_decision(one: config.Run) -> None:
    """They have made no check, and are told by the first (a real pair is in test_distributed)."""

    class Other(World):
        def from_first(self, values: list[float]) -> list[float]:
            assert values == [0.0, 0.0, 0.0]
            return [80.0, 2.0, 0.0]

    stage: Any = SimpleNamespace(settings=one.stages["whole"], batch=8, images=240)
    at = Progress(stage_images=104, images=104)
    first = World(0, 1, torch.device("cpu"))
    found = Finding("stop", "", 80, 24, False, {})
    heard = early.decide(None, stage, at, Other(1, 2, torch.device("cpu")))
    assert heard == early.decide(found, stage, at, first) == early.Decision(back=80, ends=True)


# --- real checks ---------------------------------------------------------------------------------


def real(
    folder: Path, images: np.ndarray, held_out: np.ndarray, length: int, check_every: int, seed: int
) -> Path:
    """A run of about a second."""
    folder.mkdir()
    np.save(folder / "train.npy", images)
    np.save(folder / "held_out.npy", held_out)
    recipe = {
        "data": {
            "source": str(folder / "train.npy"),
            "channels": 1,
            "held_out": str(folder / "held_out.npy"),
        },
        "network": {"kind": "uvit", "width": 32, "depth": 1, "heads": 2},
        "stages": {
            "whole": {"images": length, "batch": 64, "learning_rate": 1e-2, "warmup": 320},
        },
        "train": {
            "stop": "auto",
            "check_every": check_every,
            "seed": seed,
            "threads": 1,
            "sample_every": -1,
            "log_every": 10**6,
            "check_images": 64,
            "ema": 0.98,
        },
        "sampling": {"count": 4, "steps": 2, "sampler": "euler"},
    }
    run = config.from_dict(config.Run, recipe, "test: ")
    return api.train(run, folder / "run", quiet=True, write_report=False)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.long) for s in (1, 2))])
def test_64_images_are_enough_and_many_are_not(tmp_path: Path, seed: int) -> None:
    """Noise has nothing to learn but single images; of shaded squares more can be learnt."""
    rng = np.random.default_rng(seed)

    def noise(n: int) -> np.ndarray:
        return rng.integers(0, 256, (n, 8, 8, 1), dtype=np.uint8)

    def shaded(n: int) -> np.ndarray:
        return np.broadcast_to(rng.integers(0, 256, (n, 1, 1, 1)), (n, 8, 8, 1)).astype(np.uint8)

    few = real(tmp_path / "few", noise(64), noise(64), 128_000, 2560, seed)
    (told,) = stops(few)
    assert told["ends"]
    assert told["images"] < 64_000
    checks = [r for r in metrics(few) if r["kind"] == "check"]
    best = next(r for r in checks if r["images"] == told["back"])
    assert checks[-1]["gap"] > best["gap"]
    many = real(tmp_path / "many", shaded(2000), shaded(64), 6400, 640, seed)
    assert not stops(many)
    assert metrics(many)[-1]["images"] == 6400


# --- wrong use -----------------------------------------------------------------------------------


def test_nothing_to_go_by(one: config.Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.stop auto needs checks"):
        train(one, tmp_path / "run", quiet=True)
    one.data.held_out = "none"
    with pytest.raises(UserError, match="goes by held-out images, and stage whole has none"):
        api.train(one, tmp_path / "run", quiet=True)
    one.train.check_every = -1
    with pytest.raises(UserError, match=r"leave train\.check_every -1 out"):
        api.train(one, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
