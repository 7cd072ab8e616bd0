"""What a run draws: distances to both sides, near copies, and where such records come from."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from underpaint.core.masks import MaskSpec
from underpaint.core.spaces import Pixels
from underpaint.errors import UserError
from underpaint.evaluation.early_stopping import judge
from underpaint.evaluation.sample_metrics import Drawn, comparable, recorded

N = 80
rng = np.random.default_rng(0)
IMAGES = rng.integers(0, 256, (2 * N + 10, 4, 4, 1), dtype=np.uint8)
TRAIN, HELD_OUT = np.arange(N), np.arange(N, 2 * N)


def dataset(train: np.ndarray = TRAIN, held_out: np.ndarray = HELD_OUT) -> Any:
    return SimpleNamespace(
        images=IMAGES,
        labels=np.arange(len(IMAGES)) % 3,
        train_ids=train,
        held_out_ids=held_out,
        pixels=lambda ids: IMAGES[ids],
    )


def extractor(images: np.ndarray) -> np.ndarray:
    """Two features: the images' own first pixels."""
    return images.reshape(len(images), -1)[:, :2].astype(np.float32)


extractor.distance = "FD-pixels"  # type: ignore[attr-defined]


def draws(images: np.ndarray, asked: list[Any] | None = None) -> Any:
    """A model whose samples are `images`."""

    def sample(count: int, *, seed: int, labels: list[int] | None) -> np.ndarray:
        if asked is not None:
            asked.append((count, seed, labels))
        return np.resize(images, (count, *images.shape[1:]))

    return SimpleNamespace(sample=sample, label_names=("a", "b", "c"))


def measured(images: np.ndarray, count: int = 2 * N, **changes: Any) -> dict[str, Any]:
    return Drawn(dataset(**changes), count, 0, extractor).measure(draws(images))  # type: ignore[arg-type]


def test_training_images_are_copies_and_at_distance_0() -> None:
    found = measured(IMAGES[TRAIN], N)
    assert found["copies"] == 1.0
    assert found["frechet_train"] == pytest.approx(0, abs=1e-3)
    assert found["frechet_held_out"] > 1
    assert found["protocol"] == "FD-pixels of 80 images per side"
    near = IMAGES[TRAIN].astype(int) + rng.integers(-2, 3, (N, 4, 4, 1))
    assert measured(near.clip(0, 255).astype(np.uint8))["copies"] == 1.0


def test_held_out_images_are_no_copies() -> None:
    found = measured(IMAGES[HELD_OUT], N)
    assert found["copies"] == 0.0
    assert found["frechet_held_out"] == pytest.approx(0, abs=1e-3)
    half = np.concatenate([IMAGES[HELD_OUT], IMAGES[TRAIN]])
    assert measured(half)["copies"] == 0.5


def test_a_smear_is_near_all_and_a_copy_of_none() -> None:
    assert measured(np.full((N, 4, 4, 1), 128, np.uint8))["copies"] == 0.0


def test_few_images_have_no_distance() -> None:
    found = measured(IMAGES[TRAIN], held_out=HELD_OUT[:20])
    assert (found["frechet_train"], found["frechet_held_out"]) == (None, None)
    assert found["copies"] == 1.0
    alone = measured(IMAGES[TRAIN], held_out=HELD_OUT[:0])
    assert alone["frechet_train"] is not None
    assert alone["frechet_held_out"] is None


def test_samples_have_the_labels_of_training_images_and_fixed_noises() -> None:
    asked: list[Any] = []
    check = Drawn(dataset(), 6, 0, extractor)  # type: ignore[arg-type]
    for _ in range(2):
        check.measure(draws(IMAGES[TRAIN], asked))
    assert asked[0] == asked[1]
    count, seed, labels = asked[0]
    assert (count, seed, len(labels)) == (6, 0, 6)


def test_sealed_data_cannot_be_compared_with() -> None:
    from underpaint.sealed.training_set import SealedSet

    about = {"size": (8, 8), "channels": 1, "labels": np.zeros(4), "label_names": ()}
    sealed: Any = SimpleNamespace(**about, held_out_ids=np.arange(0), key="sealed")
    images = SealedSet(sealed, Pixels((8, 8), 1, 4), MaskSpec("patch", 0.5), np.arange(4))
    with pytest.raises(UserError, match=r"train\.check_samples"):
        Drawn(images, 8, 0)


# --- from `evaluate`, and into the finding -------------------------------------------------------


def evaluated(
    run: Path, images: int | None, train: float, held_out: float, steps: int = 20
) -> None:
    folder = run / "evaluation"
    folder.mkdir(parents=True, exist_ok=True)
    told = {
        "protocol": {
            "images": images,
            "weights": "ema",
            "count": 500,
            "scores": ["FD-MobileNetV2", "KD"],
            "sampling": {"sampler": "heun", "steps": steps},
            "reference": {"source": "faces"},
        },
        "scores": {"train": {"frechet": train}, "held_out": {"frechet": held_out}},
    }
    (folder / f"scores-{images}-{steps}.json").write_text(json.dumps(told))


def test_what_evaluate_found_is_read_and_protocols_are_not_mixed(tmp_path: Path) -> None:
    evaluated(tmp_path, 6000, 20.0, 22.0)
    evaluated(tmp_path, 2000, 30.0, 31.0)
    evaluated(tmp_path, 4000, 5.0, 6.0, steps=50)
    evaluated(tmp_path, None, 1.0, 1.0)
    (tmp_path / "evaluation" / "scores-broken.json").write_text("{")
    found = recorded(tmp_path)
    assert len(found) == 3
    assert [(r["images"], r["frechet_train"]) for r in comparable(found)] == [
        (2000, 30.0),
        (6000, 20.0),
    ]
    assert recorded(tmp_path / "nowhere") == []


def test_the_finding_tells_what_was_drawn(tmp_path: Path) -> None:
    from tests.evaluation.test_early_stopping import FALLING, checks

    evaluated(tmp_path, 6000, 30.0, 31.0)
    evaluated(tmp_path, 8000, 20.0, 36.5)
    copies = [
        {"kind": "scores", "images": n, "copies": share, "frechet_train": None}
        for n, share in ((6000, 0.0), (8000, 0.125))
    ]
    records = checks([*FALLING, 0.19, 0.20], [*FALLING, 0.17, 0.15])
    found = judge([*records, *copies, *recorded(tmp_path)])
    assert found.answer == judge(records).answer == "copying"
    assert found.evidence["copies"] == [0.0, 0.125]
    assert found.evidence["frechet_held_out"] == [31.0, 36.5]
    assert (
        "; Fréchet distance to training images 30 and 20; to held-out images 31 and 36.5; near "
        "copies among samples 0.0% and 12.5%" in found.sentence
    )
