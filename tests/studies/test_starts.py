"""The study of the packaged weights as a start."""

from pathlib import Path
from typing import Any

import pytest

from studies.lib import units
from studies.starts import run as starts
from underpaint import config


def test_arms_differ_by_their_start_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, tuple[Any, Any]] = {}

    def trained(run: Any, folder: Path, start: str | None = None) -> dict[str, Any]:
        (folder / "checkpoints").mkdir(parents=True)
        seen[folder.name] = run, start
        return {"images": run.last.images, "flops": 1.0}

    def scored(folder: Path, images: int) -> dict[str, float]:
        scores = {"frechet_A": abs(images - 4000), "frechet_B": images / 100}
        return scores | {"held_out": 0.1}

    monkeypatch.setattr(units, "trained", trained)
    monkeypatch.setattr(starts, "scored", scored)
    found = {unit: starts.do(unit, tmp_path, 1.0) for unit in starts.UNITS}
    for task, (_, patch, points) in starts.TASKS.items():
        (one, start), (other, nothing) = (seen[f"{task}-{arm}"] for arm in starts.ARMS)
        assert one == other
        assert (start, nothing) == ("pretrained:lorelei", None)
        assert (one.space.patch, one.last.images) == (patch, points[-1])
        assert one.last.learning_rate == config.preset("default").last.learning_rate
        assert all(point % one.train.checkpoint_every == 0 for point in points)
        assert [point["images"] for point in found[f"{task}-scratch"]["curve"]] == list(points)
    half, start = seen["100-packaged-half"]
    assert (half.last.learning_rate, start) == (one.last.learning_rate / 2, "pretrained:lorelei")
    best = found["100-scratch"]  # by half A, reported on half B
    assert (best["best"], best["frechet"]) == (4000, 40.0)


def test_the_answer_follows_from_the_units() -> None:
    def unit(*distances: float) -> dict[str, Any]:
        points = enumerate(distances, 1)
        pairs = [(1000 * i, {"frechet_A": d - 1, "frechet_B": d}) for i, d in points]
        return {"curve": [{"images": n, "floor": 8.0, **scores} for n, scores in pairs]}

    done = {"100-packaged": unit(30.0, 20.0), "100-scratch": unit(60.0, 50.0)}
    said = starts.answer(done)
    assert (
        "100 heads, from weights of heads: 0.40 of the distance from scratch (20.0 against 50.0, "
        "real images 8.0" in said
    )
    assert "0.50 after 1,000, 0.40 after 2,000 images" in said
    other = unit(15.0, 25.0)
    other["curve"][0]["frechet_A"] = 28.0  # half A chooses the rate of each point, B is said
    said = starts.answer(done | {"100-packaged-half": other})
    assert "0.25 after 1,000, 0.40 after 2,000 images" in said
    assert "heads: 0.40 of the distance from scratch (20.0 against 50.0" in said
    assert starts.answer({"100-packaged": unit(1.0)}) == "Too few units are done."
