"""The race against other libraries: equal seconds, and a choice that is not scored on itself."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.peers import diffusers_loop, run
from underpaint.compare import record
from underpaint.evaluation import metrics


def test_lengths_fill_the_seconds_in_the_proportions_of_the_recipe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = run.recipe("heads", "maskdm", 6e-4)
    masked, whole = recipe.stages.values()
    stages = [
        type("Stage", (), {"name": name, "batch": stage.batch, "spec": None})
        for name, stage in recipe.stages.items()
    ]
    seconds = iter([0.32, 0.48])  # a step: 0.01 s an image of the first, 0.03 s of the second
    monkeypatch.setattr(run, "prepare_stages", lambda recipe, say: stages)
    monkeypatch.setattr(run, "TrainState", lambda *given: None)
    monkeypatch.setattr(run, "calibrated", lambda timed: next(seconds))
    found = run.lengths(recipe, 150.0)
    one, two = (stage.images for stage in found.stages.values())
    assert 0.01 * one + 0.03 * two == pytest.approx(150, rel=0.01)
    assert one / two == pytest.approx(masked.images / whole.images, rel=0.01)
    assert dataclasses.replace(found, stages=recipe.stages) == recipe


def test_the_rate_is_chosen_on_half_a_and_reported_on_half_b(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = {half: torch.randn(60, 8) + i for i, half in enumerate("AB")}
    asked: list[Any] = []

    def samples(folder: Path, which: str, arm: str, n: int) -> np.ndarray:
        asked.append((folder.name, n))
        return np.zeros((n, 32, 32, 3), np.uint8)

    drawn = torch.randn(60, 8) + 2
    monkeypatch.setattr(run, "real", lambda which, half, work: features[half])
    monkeypatch.setattr(run, "of", lambda pixels: drawn)
    monkeypatch.setattr(run, "samples", samples)
    about = {"images": 1, "steps": 1, "cpu_seconds": 150.0, "parameters": 1}
    for rate, distance in zip(run.RATES["diffusers"], (90, 80, 85), strict=True):
        with pytest.raises(run.NotYet):
            run.do("heads-diffusers", tmp_path, 1.0)
        unit = tmp_path / f"heads-diffusers-{rate:g}"
        run.units.write_json(unit / "result.json", {"frechet_A": distance, **about})
    found = run.do("heads-diffusers", tmp_path, 1.0)
    best = run.RATES["diffusers"][1]
    assert asked == [(f"heads-diffusers-{best:g}", 500)]
    assert found["learning_rate"] == best
    assert found["frechet"] == pytest.approx(metrics.frechet_distance(features["B"], drawn))
    assert found["frechet_interval"][0] < found["frechet"] < found["frechet_interval"][1]


def test_diffusers_learns_and_its_average_is_what_is_kept_and_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diffusers_loop, "CHANNELS", (32, 32, 32))
    monkeypatch.setattr(diffusers_loop, "STEPS", 2)
    monkeypatch.setattr(diffusers_loop, "AT_ONCE", 2)
    torch.manual_seed(0)
    loop = diffusers_loop.begun(torch.rand(32, 1, 8, 8), 1e-3, 20)
    first = {name: value.clone() for name, value in loop.network.state_dict().items()}
    for _ in range(3):
        loop.step()
    last = {name: value.clone() for name, value in loop.network.state_dict().items()}
    diffusers_loop.keep(loop, tmp_path / "weights.pt")
    kept = torch.load(tmp_path / "weights.pt", weights_only=True)
    for name in ("conv_in.weight", "conv_out.bias"):
        assert not torch.equal(first[name], last[name])
        assert not torch.equal(kept[name], last[name])
        between = (kept[name] - first[name]).norm() + (kept[name] - last[name]).norm()
        assert between < 2 * (last[name] - first[name]).norm()
    drawn = diffusers_loop.samples(tmp_path / "weights.pt", 3, 1, 8)
    assert drawn.shape == (3, 8, 8, 1)
    assert np.array_equal(drawn, diffusers_loop.samples(tmp_path / "weights.pt", 3, 1, 8))


def test_what_is_committed_kept_to_its_seconds_and_its_choice() -> None:
    told = record.read(run.HERE / "results.json")
    for name, unit in told["units"].items():
        which, arm, rate = run.UNITS[name]
        if arm == "real":
            continue
        seconds = run.seconds(which, arm)
        assert 0.8 * seconds < unit["cpu_seconds"] < 1.2 * seconds
        if rate is None:
            trials = {r: told["units"][f"{which}-{arm}-{r:g}"] for r in run.RATES[arm]}
            best = min(trials, key=lambda r: float(trials[r]["frechet_A"]))
            assert unit["learning_rate"] == best
