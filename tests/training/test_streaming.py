"""Training from shards is training from the cache, whatever reads them and whatever kills it."""

import time
from pathlib import Path

import numpy as np
import pytest

from tests.data.shards import write_shards, write_tables
from tests.training.conftest import draw_images, small_recipe
from tests.training.runs import assert_same_run, begin, children
from underpaint import config
from underpaint.errors import UserError
from underpaint.training import identities, train


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """60 labelled images in shards of 7, and in one tar."""
    with np.load(draw_images(tmp_path / "images.npz")) as drawn:
        images, labels = drawn["images"], [str(label) for label in drawn["labels"]]
    write_shards(tmp_path / "one", images, 60, labels)
    write_shards(tmp_path / "tar", images, 7, labels)
    write_tables(tmp_path / "parquet", images, 14, labels)
    return tmp_path


def shards(sets: Path, kind: str) -> str:
    return f"{sets / kind}/*.{kind}"


def recipe(source: str | Path, workers: int = 0, window: int = 0) -> config.Run:
    run = small_recipe(Path(source))
    run.data.window, run.train.workers = window, workers
    run.train.check_every = run.train.sample_every = -1
    run.stages["masked"].images, run.stages["whole"].images = 64, 32
    run.stages["whole"].shift = 1
    run.network.depth = 1
    return run


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_any_number_of_workers_and_the_cache(kind: str, sets: Path, tmp_path: Path) -> None:
    """Bit for bit, in microbatches; with window 0 the order is that of the cache."""
    for workers in (0, 1, 3):
        run = recipe(shards(sets, kind), workers)
        run.train.microbatch = 4
        train(run, tmp_path / f"{workers}", quiet=True)
    run = recipe(sets / "one" / "set-0000.tar")
    run.train.microbatch = 4
    plain = train(run, tmp_path / "plain", quiet=True)
    for workers in (0, 1, 3):
        assert_same_run(plain, tmp_path / f"{workers}")
        known = identities.read(tmp_path / f"{workers}")
        assert known.digest() == identities.read(plain).digest()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_killed_and_resumed(kind: str, sets: Path, tmp_path: Path) -> None:
    run = recipe(shards(sets, kind), window=20)
    run.stages["masked"].images, run.train.checkpoint_every = 320, 64
    straight = train(run, tmp_path / "straight", quiet=True)
    out, written = tmp_path / "killed", tmp_path / "recipe.yaml"
    run.train.workers = 1
    written.write_text(config.to_yaml(run))
    process = begin("train", "--config", written, "--out", out, "--quiet", log=tmp_path / "log")
    metrics = out / "metrics.jsonl"
    while process.is_alive() and not (
        metrics.exists() and metrics.read_text().count('"kind": "step"') > 5
    ):
        time.sleep(0.01)
    assert process.is_alive(), (tmp_path / "log").read_text()
    workers = children(process.pid)
    assert workers
    process.kill()
    process.join()
    moved = tmp_path / "moved"
    (sets / kind).rename(moved)
    train(None, out, resume=True, data=f"{moved}/*.{kind}", quiet=True)
    assert_same_run(straight, out)
    while any(worker.exists() for worker in workers):  # else they never end
        time.sleep(0.1)
    (moved / f"set-0003.{kind}").unlink()
    with pytest.raises(UserError, match="the images have changed since the run began"):
        train(None, out, resume=True, quiet=True)
