"""The studies that draw samples: effects of transfer and of the training times, and their runs."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from underpaint import config


def test_the_effect_of_transfer_is_at_each_arms_best_point_on_the_other_half(
    studies: Any, tmp_path: Path
) -> None:
    transfer, page = studies("transfer.py"), studies("transfer_page.py")
    rng = np.random.default_rng(0)
    results = {}
    for seed in transfer["SEEDS"]:
        noise = rng.normal(0, 0.01)
        for arm, level in (("scratch", 200.0), ("masked", 100.0), ("whole", 110.0)):
            curve = [
                {
                    "images": n,
                    "frechet_A": level * worse,
                    "frechet_B": level * worse * math.exp(noise),
                    "kernel_B": level / 1000,
                    "held_out": 0.1,
                    "floor": 18.0,
                }
                for n, worse in ((8, 2.0), (16, 1.0), (32, 1.5))
            ]
            if arm == "masked":
                curve[0]["frechet_B"] *= 0.6  # the lead at equal lengths is another
            # half B alone would have chosen this point
            curve.append({**curve[2], "images": 64, "frechet_B": 1.0})
            results[f"{arm}_1000_{seed}"] = {"learning_rate": 1e-3, "curve": curve}
    results["masked_100_1"] = results["scratch_100_1"] = results["masked_1000_1"]  # one seed
    results["trial-masked_1000_0.001"] = results["masked_1000_1"]
    found = page["effects"](results)
    assert [(f["size"], f["arm"], f["against"]) for f in found] == [
        (1000, "masked", "scratch"),
        (1000, "whole", "scratch"),
        (1000, "masked", "whole"),
    ]
    told = found[0]
    assert told["frechet_B"]["ratio"] == pytest.approx(0.5)
    assert told["frechet_B"]["low"] <= 0.5 <= told["frechet_B"]["high"]
    assert told["seeds"] == [1, 2, 3, 4, 5]
    assert [told["at"][n]["ratio"] for n in (8, 16, 32, 64)] == pytest.approx([0.3, 0.5, 0.5, 1.0])
    lines = page["answer"]({"effects": json.loads(json.dumps(found)), "units": results})
    assert lines[0].endswith("one from scratch: 50 % better, as much as the 46 % claimed.")
    assert lines[2].endswith("whole images: not worse, at equal compute of the pre-training.")
    assert "0.91 times" in lines[2]
    assert "0.30 times (0.30 to 0.30) after 8 images, 0.50 times" in lines[3]
    (tmp_path / "t.json").write_text(
        json.dumps({"effects": found, "units": results, "design": ["What was done."]})
    )
    text = page["page"](tmp_path / "t.json").read_text()
    assert lines[0] in text
    assert "0.30 (0.30 to 0.30)" in text
    assert text.count("data:image/png;base64,") == 1


def test_laws_of_times_differ_in_nothing_else(
    studies: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = studies("times.py")
    seen: list[tuple[Any, Any]] = []

    def trained(run: Any, folder: Path, start: str | None = None) -> dict[str, Any]:
        (folder / "checkpoints").mkdir(parents=True)
        seen.append((run, start))
        return {"images": sum(stage.images for stage in run.stages.values())}

    monkeypatch.setattr(times["units"], "trained", trained)
    monkeypatch.setattr(
        times["samples"], "scored", lambda folder, images, count: {"frechet_B": images / count}
    )
    for law in times["LAWS"]:
        for task, images in (("fresh", 28_000), ("few", 4_000)):
            found = times["do"](f"{task}_{law}_2", tmp_path, 1.0)
            assert found == {"images": images, "frechet_B": images / 500}
    noises = {(run.noise.time, run.noise.stratified) for run, _ in seen}
    assert noises == {(t, s) for t in ("logit-normal", "mixed") for s in (False, True)}
    for run, start in seen:
        few = run.data.source == "avatars:pixel-art"
        assert start == ("primer:lorelei" if few else None)
        run.noise.time, run.noise.stratified = "logit-normal", False
        assert run == next(other for other, _ in seen if other.data == run.data)


def test_effects_of_times_are_ratios_to_independent_logit_normal_ones(studies: Any) -> None:
    times = studies("times.py")
    results = {
        f"few_{law}_{seed}": {"frechet_B": seed * ratio, "held_out": 0.05 * ratio**seed}
        for seed in (1, 2, 3)
        for law, ratio in (("logit-normal", 1.0), ("mixed", 0.9), ("mixed-stratified", 0.5))
    }
    del results["few_mixed-stratified_2"], results["few_mixed-stratified_3"]  # one seed: no effect
    (found,) = times["effects"](results)
    assert (found["task"], found["law"], found["seeds"]) == ("few", "mixed", 3)
    assert found["frechet_B"] == pytest.approx([0.9, 0.9, 0.9])
    # ratios 0.9, 0.9², 0.9³: mean of logs 2 ln 0.9, standard error |ln 0.9|/√3, t(2 df) = 4.3027
    reach = 4.3027 * abs(math.log(0.9)) / math.sqrt(3)
    assert found["held_out"] == pytest.approx(
        [0.81, 0.81 * math.exp(-reach), 0.81 * math.exp(reach)], rel=1e-4
    )


def test_a_stop_in_transfer_pushes_no_point_out(
    studies: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each stop leaves a checkpoint more than those that are scored; all are kept."""
    transfer = studies("transfer.py")
    seen: list[Any] = []

    def trained(run: Any, folder: Path, start: str | None = None) -> dict[str, Any]:
        (folder / "checkpoints").mkdir(parents=True)
        seen.append(run)
        return {}

    monkeypatch.setattr(transfer["units"], "trained", trained)
    monkeypatch.setattr(transfer["samples"], "scored", lambda folder, images, count: {})
    found = transfer["finetune"]("trial-scratch_100_0.008", tmp_path, 1.0)
    assert [point["images"] for point in found["curve"]] == [4_000]
    (run,) = seen
    stage = run.stages["whole"]
    assert run.train.keep > 100 + stage.images // run.train.checkpoint_every
    assert not run.noise.stratified


def test_a_pre_training_is_done_again_only_where_a_run_that_is_left_begins_from_it(
    studies: Any,
) -> None:
    transfer = studies("transfer.py")
    every = [*transfer["PRIMERS"], *transfer["TRIALS"], *transfer["RUNS"]]
    done = {name: {} for name in every}

    def left(*names: str) -> list[str]:
        there = {name: done[name] for name in every if name not in names}
        return [name for name in every if transfer["needed"](name, there)]

    assert left() == []
    assert left("scratch_1000_3", "trial-scratch_100_0.004") == []
    assert left("masked_100_3", "whole_1000_5") == ["primer-masked_3", "primer-whole_5"]
    assert left("trial-whole_1000_0.002") == ["primer-whole_0"]


def test_small_presets_are_tried_with_other_steps_and_nothing_else(
    studies: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = studies("small.py")
    seen: dict[str, Any] = {}

    def trained(run: Any, folder: Path, start: str) -> dict[str, Any]:
        (folder / "checkpoints").mkdir(parents=True)
        seen[folder.name] = run
        assert start == "primer:lorelei"
        return {"images": sum(stage.images for stage in run.stages.values())}

    monkeypatch.setattr(small["units"], "trained", trained)
    monkeypatch.setattr(small["samples"], "scored", lambda folder, images, count: {"of": images})
    for unit in small["UNITS"]:
        length = {"300": 24_000, "3000": 72_000}[unit.split("_")[1]]
        assert small["do"](unit, tmp_path, 1.0) == {"images": length, "of": length}
    for size in (300, 3000):
        preset = config.preset(f"small-{size}")
        steps = {}
        for arm in small["ARMS"]:
            run = seen[f"{arm}_{size}"]
            assert (run.data.limit, run.data.source) == (size, "avatars:pixel-art")
            steps[arm] = [(s.batch, s.learning_rate) for s in run.stages.values()]
            for name, stage in run.stages.items():
                assert 4 * stage.images == preset.stages[name].images
                stage.batch, stage.learning_rate = 8, 1e-3
            assert run == seen[f"large_{size}"]
        was = {300: 2e-4, 3000: 5e-4}[size]
        assert steps["large"] == [(32, was), (32, was)]
        assert steps["small"] == [(16, 2e-3), (8, 2e-3)]
