"""What the checks of a run say about going on: written ones, and two runs that are trained."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from underpaint import api, config
from underpaint.evaluation.early_stopping import PATIENCE, judge
from underpaint.evaluation.records import read

torch.set_num_threads(1)

METRICS = "metrics.jsonl"


def checks(held_out: list[float], train: list[float], noise: float = 0.001) -> list[dict[str, Any]]:
    """Checks of 64 images whose own levels differ by far more than the changes."""
    rng = np.random.default_rng(0)
    levels = rng.normal(0, 0.1, 64)
    levels -= levels.mean()
    found = []
    for i, (unseen, seen) in enumerate(zip(held_out, train, strict=True), 1):
        images = unseen + levels + rng.normal(0, noise, 64)
        found.append(
            {
                "kind": "check",
                "mask": "whole",
                "images": 1000 * i,
                "held_out_images": images.tolist(),
                "held_out_mean": float(images.mean()),
                "held_out": [float(images.mean())] * 8,
                "train_mean": seen,
                "gap": float(images.mean()) - seen,
            }
        )
    return found


FALLING = [0.30, 0.25, 0.22, 0.20, 0.19, 0.185]


def test_a_falling_error_is_improving() -> None:
    found = judge(checks(FALLING, FALLING))
    assert found.answer == "improving"
    assert found.best == 6000
    assert found.sentence == "still improving: held-out error 0.1851 (−3 %), best so far"


def test_a_flat_end_says_stop_and_since_when() -> None:
    found = judge(checks([*FALLING, *[0.185] * PATIENCE], [*FALLING, *[0.184] * PATIENCE]))
    assert found.answer == "stop"
    assert (found.best, found.since) == (6000, 3000)
    assert found.sentence.startswith("plateaued for 3,000 images: held-out error 0.18")
    assert found.sentence.endswith(", best at 6,000 images")


def test_a_slow_steady_fall_is_improving() -> None:
    """Each step is within its error; three of them together are not."""
    slow = [0.2 - 0.00025 * i for i in range(30)]
    assert judge(checks(slow, slow)).answer == "improving"


def test_a_rise_on_held_out_images_alone_is_copying() -> None:
    held_out = [*FALLING, 0.19, 0.20]
    found = judge(checks(held_out, [*FALLING, 0.17, 0.15]))
    assert found.answer == "copying"
    assert found.best == 6000
    assert found.sentence == (
        "memorizing: held-out error 0.2001 (+8 %), best at 6,000 images, while the error on "
        "training images fell from 0.1850 to 0.1500"
    )
    assert len(found.evidence["bins_worse"]) == 8
    assert found.evidence["change"] == pytest.approx(0.015, abs=0.001)


def test_a_rise_on_both_is_not_copying() -> None:
    rising = [*FALLING, 0.19, 0.20, 0.21]
    found = judge(checks(rising, rising))
    assert found.answer == "stop"
    assert found.sentence.startswith("getting worse for 3,000 images: held-out error 0.2")


@pytest.mark.parametrize(
    ("then", "sentence"),
    [
        ([0.193], "check: held-out error 0.1929 (+4 %), worse than at 6,000 images"),
        ([0.193, 0.191], "check: held-out error 0.1911 (+3 %), worse than at 6,000 images"),
        ([0.1853], "check: held-out error 0.1852 (+0.04 %), no better than at 6,000 images"),
    ],
)
def test_a_rising_error_is_not_called_improving(then: list[float], sentence: str) -> None:
    """Within PATIENCE checks of a gain, too; and it is no reason to stop yet."""
    found = judge(checks([*FALLING, *then], [*FALLING, *then]))
    assert (found.answer, found.best, found.sentence) == ("waiting", 6000, sentence)


def test_improving_is_said_of_the_lowest_error_alone() -> None:
    """Whatever the course of a run: of noisy falls and rises, with the words that go with each."""
    rng = np.random.default_rng(0)
    answers = set()
    for _ in range(100):
        errors = np.exp(np.cumsum(rng.normal(0, 0.01, 9))) * 0.2
        found = judge(records := checks(errors.tolist(), errors.tolist(), noise=0.003))
        means = [record["held_out_mean"] for record in records]
        assert ("improving" in found.sentence) == (found.answer == "improving")
        if found.answer == "improving":
            assert means[-1] == min(means)
        answers.add(found.answer)
    assert answers == {"improving", "waiting", "stop"}


def test_checks_of_other_images_are_not_compared() -> None:
    before = checks([0.1, 0.09], [0.1, 0.09])
    for check in before:
        check["held_out_images"] = check["held_out_images"][:10]
    assert judge([*before, *checks(FALLING, FALLING)]).answer == "improving"


def test_too_few_checks_tell_nothing() -> None:
    assert judge([]).answer == "unknown"
    assert judge(checks([0.1], [0.1])).answer == "unknown"
    assert (
        judge([{"kind": "check", "mask": "whole", "images": 1, "held_out_images": None}] * 5).answer
        == "unknown"
    )


def train(folder: Path, images: np.ndarray, held_out: np.ndarray, length: int) -> Path:
    """A run of a second or ten on these images, with eight checks."""
    folder.mkdir()
    np.save(folder / "train.npy", images)
    np.save(folder / "held_out.npy", held_out)
    recipe = {
        "data": {
            "source": str(folder / "train.npy"),
            "channels": 1,
            "held_out": str(folder / "held_out.npy"),
        },
        "network": {"width": 64, "depth": 3, "heads": 2},
        "stages": {
            "whole": {"images": length, "batch": 64, "learning_rate": 5e-3, "warmup": 640},
        },
        "train": {"threads": 1, "sample_every": -1, "check_images": 64, "ema": 0.98},
        "sampling": {"count": 4, "steps": 2, "sampler": "euler"},
    }
    run = config.from_dict(config.Run, recipe, "test: ")
    return api.train(run, folder / "run", quiet=True, write_report=False)


@pytest.mark.slow
def test_a_run_on_64_images_too_long_is_copying_and_a_short_one_on_many_is_not(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(0)

    def noise(n: int) -> np.ndarray:  # nothing to learn but the single images
        return rng.integers(0, 256, (n, 8, 8, 1), dtype=np.uint8)

    def shaded(n: int) -> np.ndarray:  # one number an image
        return np.broadcast_to(rng.integers(0, 256, (n, 1, 1, 1)), (n, 8, 8, 1)).astype(np.uint8)

    over = judge(read(train(tmp_path / "few", noise(64), noise(64), 40_000) / METRICS))
    assert over.answer == "copying"
    assert over.evidence["gap"][1] > over.evidence["gap"][0]
    fair = judge(read(train(tmp_path / "many", shaded(2000), shaded(64), 6400) / METRICS))
    assert fair.answer in ("improving", "waiting")  # the last of few checks may rise a little
