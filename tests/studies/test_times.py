"""The study of training times."""

import math
from pathlib import Path
from typing import Any

import pytest

from studies.times import run as times


def test_laws_of_times_differ_in_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, Any]] = []

    def trained(run: Any, folder: Path, start: str | None = None) -> dict[str, Any]:
        (folder / "checkpoints").mkdir(parents=True)
        seen.append((run, start))
        return {"images": sum(stage.images for stage in run.stages.values())}

    monkeypatch.setattr(times.units, "trained", trained)
    monkeypatch.setattr(times.units, "heads", lambda work: "weights of heads")
    monkeypatch.setattr(
        times.samples, "scored", lambda folder, images, count: {"frechet_B": images / count}
    )
    for law in times.LAWS:
        for task, images in (("fresh", 28_000), ("few", 4_000)):
            found = times.do(f"{task}_{law}_2", tmp_path, 1.0)
            assert found == {"images": images, "frechet_B": images / 500}
    noises = {(run.noise.time, run.noise.stratified) for run, _ in seen}
    assert noises == {(t, s) for t in ("logit-normal", "mixed") for s in (False, True)}
    for run, start in seen:
        few = run.data.source == "avatars:pixel-art"
        assert start == ("weights of heads" if few else None)
        run.noise.time, run.noise.stratified = "logit-normal", False
        assert run == next(other for other, _ in seen if other.data == run.data)


def test_effects_of_times_are_ratios_to_independent_logit_normal_ones() -> None:
    results = {
        f"few_{law}_{seed}": {"frechet_B": seed * ratio, "held_out": 0.05 * ratio**seed}
        for seed in (1, 2, 3)
        for law, ratio in (("logit-normal", 1.0), ("mixed", 0.9), ("mixed-stratified", 0.5))
    }
    del results["few_mixed-stratified_2"], results["few_mixed-stratified_3"]  # one seed: no effect
    (found,) = times.effects(results)
    assert (found["task"], found["law"], found["seeds"]) == ("few", "mixed", 3)
    assert found["frechet_B"] == pytest.approx([0.9, 0.9, 0.9])
    # ratios 0.9, 0.9², 0.9³: mean of logs 2 ln 0.9, standard error |ln 0.9|/√3, t(2 df) = 4.3027
    reach = 4.3027 * abs(math.log(0.9)) / math.sqrt(3)
    assert found["held_out"] == pytest.approx(
        [0.81, 0.81 * math.exp(-reach), 0.81 * math.exp(reach)], rel=1e-4
    )
