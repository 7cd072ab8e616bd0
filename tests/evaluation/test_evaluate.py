"""`underpaint evaluate` on a run and on images, with a feature network of a few lines."""

import io
import json
import re
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.training.runs import environment
from underpaint import config
from underpaint.cli import main
from underpaint.data import prepare
from underpaint.errors import UserError
from underpaint.evaluation import feature_cache
from underpaint.evaluation.evaluate import _count, _labels, evaluate
from underpaint.evaluation.features import load
from underpaint.evaluation.metrics import frechet_distance
from underpaint.evaluation.results import SAMPLING, differences
from underpaint.model import load as load_model
from underpaint.training import train
from underpaint.training.distributed import World

torch.set_num_threads(1)

BLOCK = feature_cache.BLOCK
ONE = World(0, 1, torch.device("cpu"))


class Pooled(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(x, 4).flatten(1)


def pictures(n: int, seed: int, size: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels; a quarter has the label 1 and is bright."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 4 == 0
    pixels = rng.integers(0, 100, (n, size, size, 3)) + 120 * labels[:, None, None, None]
    return pixels.astype(np.uint8), labels.astype(np.int64)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`real.npz` of 300 images, `pooled.pt`, and a `run` on them of which 100 are held out."""
    place = tmp_path_factory.mktemp("evaluate")
    pixels, labels = pictures(300, 0)
    np.savez(place / "real.npz", images=pixels, labels=labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(Pooled()).save(str(place / "pooled.pt"))
    recipe = config.from_dict(
        config.Run,
        {
            "data": {"source": str(place / "real.npz"), "held_out": "100"},
            "network": {"width": 64, "depth": 3, "heads": 2},
            "stages": {"whole": {"images": 64, "batch": 8}},
            "train": {"threads": 1, "check_every": -1, "sample_every": -1, "ema": 0.9},
            "sampling": {"steps": 2, "sampler": "euler"},
        },
        "test: ",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNDERPAINT_CACHE", str(place / "cache"))
        train(recipe, place / "run", quiet=True)
    return place


@pytest.fixture(autouse=True)
def cache(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERPAINT_CACHE", str(place / "cache"))
    monkeypatch.setattr(feature_cache, "BLOCK", 32)


def judged(place: Path, source: object, *arguments: Any, **options: Any) -> dict[str, Any]:
    options = {"extractor": "torchscript", "weights_file": place / "pooled.pt", **options}
    result = evaluate(str(source), *arguments, **options)
    assert result is not None
    return result


def flags(place: Path) -> list[str]:
    return ["--features", "torchscript", "--weights-file", str(place / "pooled.pt"), "--quiet"]


# --- a run ---------------------------------------------------------------------------------------


def test_a_run_is_scored_with_floor_and_protocol(place: Path) -> None:
    result = judged(place, place / "run")
    assert set(result["scores"]) == {"train", "held_out", "floor"}
    for side, scores in result["scores"].items():
        assert all(np.isfinite(scores[k]) for k in ("frechet", "kernel", "density"))
        assert all(0 <= scores[k] <= 1 for k in ("precision", "recall", "coverage"))
        if side != "floor":
            low, high = scores["frechet_interval"]
            assert 0 <= low <= scores["frechet"] <= high
    # eight steps of training give noise: far off, while real images are as near as they get
    assert result["scores"]["held_out"]["frechet"] > 5 * result["scores"]["floor"]["frechet"]
    protocol = result["protocol"]
    assert protocol["count"] == 100
    assert protocol["scores"] == ["FD-pooled", "KD-pooled"]
    assert protocol["seeds"] == [0, 99]
    assert protocol["sampling"]["steps"] == 2
    assert set(SAMPLING) < set(protocol["sampling"])
    assert (protocol["weights"], protocol["ema"], protocol["images"]) == ("ema", 0.9, 64)
    assert len(protocol["extractor_sha256"]) == len(protocol["weights_sha256"]) == 64
    assert json.loads(Path(result["file"]).read_text()) == result
    assert Path(result["file"]).parent == place / "run" / "evaluation"


def test_a_second_time_nothing_is_drawn_and_the_numbers_are_the_same(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = judged(place, place / "run")
    monkeypatch.setattr("underpaint.model.Model.sample", None)
    assert judged(place, place / "run") == first


def test_it_goes_on_where_it_stopped(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from underpaint.model import Model

    draw, seeds, stops = Model.sample, [], [2]

    def sample(self: Model, n: int, *, seed: int, **options: Any) -> np.ndarray:
        if len(seeds) in stops:
            raise KeyboardInterrupt
        seeds.append((seed, n))
        return draw(self, n, seed=seed, **options)

    monkeypatch.setattr(Model, "sample", sample)
    with pytest.raises(KeyboardInterrupt):
        judged(place, place / "run", seed=1000)
    assert seeds == [(1000, 32), (1032, 32)]
    seeds.clear(), stops.clear()
    stopped = judged(place, place / "run", seed=1000)
    assert seeds == [(1064, 32), (1096, 4), (1000, 32), (1032, 18)]  # the last: in twice the steps
    monkeypatch.setattr(Model, "sample", draw)
    for folder in (place / "run" / "evaluation").glob("*/"):
        if folder.is_dir():
            for block in folder.glob("*.npy"):
                block.unlink()
    assert judged(place, place / "run", seed=1000)["scores"] == stopped["scores"]


def test_scores_say_how_far_they_move_with_twice_the_steps(place: Path) -> None:
    found = judged(place, place / "run", n=80)["twice"]
    assert (found["steps"], found["count"], found["side"]) == (4, 40, "held_out")
    # drawn and compared by hand: the same seeds and labels, and the first of the held-out images
    network = load("torchscript", place / "pooled.pt")
    real = prepare(config.Data(source=str(place / "real.npz"), held_out="100"))
    held_out = np.random.default_rng(0).permutation(np.sort(real.held_out_ids))[:40]
    model = load_model(place / "run", device="cpu")
    labels, _ = _labels(model, real, seed=0)
    assert labels is not None
    chosen = labels(0, 32) + labels(32, 8)
    distances = [
        frechet_distance(
            torch.from_numpy(network(model.sample(40, seed=0, labels=chosen, steps=steps))),
            torch.from_numpy(network(real.batch(held_out))),
        )
        for steps in (2, 4)
    ]
    assert [found["frechet"], found["frechet_twice"]] == pytest.approx(distances, rel=1e-4)
    assert found["difference"] == found["frechet_twice"] - found["frechet"]
    low, high = found["interval"]
    assert low < found["difference"] < high


def test_labels_are_as_frequent_as_in_the_real_images(place: Path) -> None:
    data = config.Data(source=str(place / "real.npz"), held_out="100")
    real = prepare(data)
    draw, rule = _labels(load_model(place / "run", device="cpu"), real, seed=0)
    assert draw is not None
    assert "as frequent" in rule
    drawn = [label for start in range(0, 3200, 32) for label in draw(start, 32)]
    share = real.labels[real.train_ids].mean()  # about a quarter, of two labels
    assert np.mean(drawn) == pytest.approx(share, abs=0.03)
    assert draw(64, 7) == draw(64, 32)[:7]  # more images later begin with the same ones


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["evaluate", str(place / "run"), "--seed", "50", "--json", *flags(place)]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    monkeypatch.setattr(feature_cache, "BLOCK", BLOCK)  # as it is in the processes
    alone = json.loads(json.dumps(judged(place, place / "run", seed=50)))
    for block in (place / "run" / "evaluation").glob("*/*.npy"):
        block.unlink()
    done = subprocess.run(
        [sys.executable, *torchrun, "underpaint", *arguments],
        capture_output=True,
        text=True,
        env=environment(UNDERPAINT_CACHE=str(place / "cache")),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (together,) = json.loads(done.stdout)["results"]
    assert together == alone


def test_processes_share_the_blocks_without_overlap(place: Path, tmp_path: Path) -> None:
    extractor = load("torchscript", place / "pooled.pt")
    pixels, _ = pictures(200, 1)
    whole = extractor(pixels)
    drawn: list[int] = []

    class Other(World):
        def barrier(self) -> None: ...

    def draw(start: int, count: int) -> np.ndarray:
        drawn.append(start)
        return pixels[start : start + count]

    stores = [feature_cache.Store(tmp_path / str(rank), draw, extractor) for rank in range(2)]
    # both see an empty folder, as they do before the first barrier
    for rank, store in enumerate(stores):
        store.fill(200, Other(rank, 2, torch.device("cpu")))
    assert sorted(drawn) == list(range(0, 200, 32))
    for block in (tmp_path / "1").glob("*.npy"):
        block.rename(tmp_path / "0" / block.name)
    np.testing.assert_array_equal(stores[0].read(200), whole)
    (tmp_path / "0" / "000000064.npy").write_bytes(b"cut short")
    drawn.clear()
    stores[0].fill(200, ONE)
    assert drawn == [64]


# --- images --------------------------------------------------------------------------------------


def test_images_of_the_same_law_score_like_the_floor_and_others_do_not(place: Path) -> None:
    options = {"held_out": "100"}
    np.save(place / "same.npy", pictures(120, 5)[0])
    np.save(place / "other.npy", 255 - pictures(120, 5)[0])
    reference = str(place / "real.npz")
    same, other = (
        judged(place, place / f"{name}.npy", reference, **options) for name in ("same", "other")
    )
    assert same["protocol"]["count"] == 100
    assert same["protocol"]["sampling"] is None
    floor = same["scores"]["floor"]
    assert floor == other["scores"]["floor"]
    assert same["scores"]["held_out"]["frechet"] < 3 * floor["frechet"]
    assert other["scores"]["held_out"]["frechet"] > 10 * floor["frechet"]
    assert other["scores"]["held_out"]["kernel_interval"][0] > floor["kernel"]


def test_the_training_images_themselves_are_seen_as_copies(place: Path) -> None:
    reference = str(place / "real.npz")
    result = judged(place, reference, reference, held_out="100", n=64)["scores"]
    assert result["train"]["precision"] >= result["held_out"]["precision"]


def test_counts_are_equal_and_told() -> None:
    assert _count(None, 950, 50, None)[0] == 475  # too few held out: halves of the training set
    assert _count(None, 950, 200, None) == (200, [])
    assert _count(None, 90_000, 50_000, None)[0] == 10_000
    assert _count(50_000, 90_000, 50_000, None) == (50_000, [])
    count, notes = _count(500, 950, 200, None)
    assert count == 200
    assert notes == [
        "200 of 500: there are no more held-out images, and counts are equal; "
        "--held-out none compares with more"
    ]


def test_fewer_images_than_features_are_warned_of(place: Path) -> None:
    np.save(place / "large.npy", pictures(200, 3, size=32)[0])  # 192 features
    result = judged(place, place / "large.npy", str(place / "large.npy"), held_out="none", n=64)
    assert any("biased upwards" in note for note in result["warnings"])
    assert result["scores"]["train"]["frechet"] >= 0


# --- comparing -----------------------------------------------------------------------------------


def test_numbers_with_different_protocols_are_not_shown_without_a_warning(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = judged(place, place / "run")["protocol"]
    assert differences(one, one) == []
    assert differences(one, judged(place, place / "run", seed=7)["protocol"]) == []
    two = judged(place, place / "run", sampling={"steps": 3}, n=64)["protocol"]
    assert differences(one, two) == ["count: 100 and 64", "sampling.steps: 2 and 3"]
    fast = judged(place, place / "run", precision="bf16")["protocol"]
    assert differences(one, fast) == ["sampling.precision: fp32 and bf16"]

    np.save(place / "same.npy", pictures(120, 5)[0])
    reference = ["--reference", str(place / "real.npz"), "--held-out", "100", "--no-interval"]
    sources = [str(place / "run"), str(place / "same.npy")]
    assert main(["evaluate", *sources, *reference, *flags(place)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "guidance 1; fp32; seeds 0 to 99" in text
    assert "with twice the steps (4): FD-pooled" in text
    assert text.count("of 50 samples of the same seeds against held-out images") == 1
    assert "same.npy cannot be compared with" in text
    assert "sampling.steps: 2 and unknown" in text
    assert "FD-pooled" in text
    assert "FID" not in text


def test_json_is_one_object(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ["-n", "64", "--precision", "bf16", "--json"]
    assert main(["evaluate", str(place / "run"), *short, *flags(place)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["results"][0]["protocol"]["count"] == 64
    assert printed["results"][0]["protocol"]["sampling"]["precision"] == "bf16"
    assert printed["warnings"] == []


def test_size_serves_both_sides(place: Path) -> None:
    rng = np.random.default_rng(1)
    with zipfile.ZipFile(place / "mixed.zip", "w") as archive:
        for i in range(80):
            height, width = rng.integers(6, 20, 2)
            file = io.BytesIO()
            pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(file, "PNG")
            archive.writestr(f"{i}.png", file.getvalue())
    options = {"reference": str(place / "real.npz"), "size": (12,)}
    found = judged(place, place / "mixed.zip", **options)
    assert np.isfinite(found["scores"]["train"]["frechet"])
    with pytest.raises(UserError, match="several sizes"):
        judged(place, place / "mixed.zip", reference=str(place / "real.npz"))


# --- a run that has moved ------------------------------------------------------------------------


def moved_to(place: Path, folder: Path, count: int) -> tuple[Path, Path]:
    """The run in `folder`, and there the first `count` of its images, beside new ones."""
    shutil.copytree(place / "run", folder / "run", ignore=shutil.ignore_patterns("evaluation"))
    config_file = folder / "run" / "config.yaml"
    gone = config_file.read_text().replace(str(place / "real.npz"), str(folder / "gone.npz"))
    config_file.write_text(gone)
    pixels, labels = pictures(300, 0)
    more, names = pictures(80, 9)
    pixels, labels = np.concatenate([pixels[:count], more]), np.concatenate([labels[:count], names])
    np.savez(folder / "there.npz", images=pixels, labels=labels)
    return folder / "run", folder / "there.npz"


def test_a_moved_run_is_scored_by_the_split_it_recorded(
    place: Path, tmp_path: Path, wrong: Any
) -> None:
    run, there = moved_to(place, tmp_path, 300)
    assert "gone.npz: the images of" in (line := wrong("evaluate", run, *flags(place)))
    assert "add --data DATA" in line
    found, usual = judged(place, run, data=str(there)), judged(place, place / "run")
    assert found["scores"] == usual["scores"]  # the new images count for nothing
    assert found["warnings"] == usual["warnings"]


def test_what_a_moved_run_lacks_is_said(place: Path, tmp_path: Path, wrong: Any) -> None:
    run, there = moved_to(place, tmp_path, 280)
    found = judged(place, run, data=str(there), interval=False)
    said = next(note for note in found["warnings"] if "lacks" in note)
    counts = [
        int(n) for n in re.findall(r"(\d+) of (?:200|100) (?:training|held-out) images", said)
    ]
    assert sum(counts) == 20
    np.save(tmp_path / "other.npy", pictures(200, 4)[0])
    line = wrong("evaluate", run, "--data", tmp_path / "other.npy", *flags(place))
    assert "holds none of the images that" in line
    (run / "images.json").unlink()
    notes = judged(place, run, data=str(there), interval=False)["warnings"]
    assert any("holds no images.json" in note for note in notes)


# --- wrong use -----------------------------------------------------------------------------------


def test_wrong_use_is_one_line(place: Path, wrong: Any) -> None:
    np.save(place / "few.npy", pictures(20, 0)[0])
    np.save(place / "large.npy", pictures(200, 3, size=32)[0])
    run, real, empty = place / "run", place / "real.npz", place / "empty"
    empty.mkdir()
    for arguments, words in (
        ((run, "-n", 20), "at least 64"),
        ((place / "few.npy", "--reference", real), "few.npy has 20 images: a score needs at least"),
        ((real, "--reference", place / "few.npy"), "at least 64"),
        ((place / "large.npy", "--reference", real), "sizes differ: "),
        ((real,), "add --reference"),
        ((place / "gone",), "there is no such run or folder"),
        ((run, "--reference", place / "gone"), "gone"),
        ((run, "--reference", empty), "the folder holds no images"),
        ((empty, "--reference", real), "the folder holds no images"),
        ((run, "--data", place / "gone"), "gone: there are no images"),
        ((run, "--data", real, "--reference", real), "leave it out"),
        ((run, "--size", 16), "this model draws 8×8"),
        ((run, "--steps", 0), "--steps 0"),
        ((), "evaluate needs RUN|FOLDER"),
    ):
        assert words in wrong("evaluate", *arguments, *flags(place))
    assert "sha256" in wrong("evaluate", run, "--weights-file", place / "pooled.pt")
    assert "--weights-file" in wrong("evaluate", run, "--features", "torchscript")
    assert "no such file" in wrong("evaluate", run, "--weights-file", place / "gone.pth")
