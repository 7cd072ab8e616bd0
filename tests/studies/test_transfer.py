"""The study of transfer: effects at the best points, and its runs."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from studies.transfer import page as transfer_page
from studies.transfer import run as transfer


def test_the_effect_of_transfer_is_at_each_arms_best_point_on_the_other_half(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(0)
    results = {}
    for seed in transfer.SEEDS:
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
    found = transfer_page.effects(results)
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
    lines = transfer_page.answer({"effects": json.loads(json.dumps(found)), "units": results})
    assert lines[0].endswith("one from scratch: 50 % better, as much as the 46 % claimed.")
    assert lines[2].endswith("whole images: not worse, at equal compute of the pre-training.")
    assert "0.91 times" in lines[2]
    assert "0.30 times (0.30 to 0.30) after 8 images, 0.50 times" in lines[3]
    told = {"effects": found, "units": results, "design": ["What was done."]}
    page = transfer_page.page(json.loads(json.dumps(told)))
    text = page.write(tmp_path / "t.html").read_text()
    assert lines[0] in text
    assert "0.30 (0.30 to 0.30)" in text
    assert text.count("data:image/png;base64,") == 1


def test_a_stop_in_transfer_pushes_no_point_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each stop leaves a checkpoint more than those that are scored; all are kept."""
    seen: list[Any] = []

    def trained(run: Any, folder: Path, start: str | None = None) -> dict[str, Any]:
        (folder / "checkpoints").mkdir(parents=True)
        seen.append(run)
        return {}

    monkeypatch.setattr(transfer.units, "trained", trained)
    monkeypatch.setattr(transfer.samples, "scored", lambda folder, images, count: {})
    found = transfer.finetune("trial-scratch_100_0.008", tmp_path, 1.0)
    assert [point["images"] for point in found["curve"]] == [4_000]
    (run,) = seen
    stage = run.stages["whole"]
    assert run.train.keep > 100 + stage.images // run.train.checkpoint_every
    assert not run.noise.stratified


def test_a_pre_training_is_done_again_only_where_a_run_that_is_left_begins_from_it() -> None:
    every = [*transfer.PRIMERS, *transfer.TRIALS, *transfer.RUNS]
    done = {name: {} for name in every}

    def left(*names: str) -> list[str]:
        there = {name: done[name] for name in every if name not in names}
        return [name for name in every if transfer.needed(name, there)]

    assert left() == []
    assert left("scratch_1000_3", "trial-scratch_100_0.004") == []
    assert left("masked_100_3", "whole_1000_5") == ["primer-masked_3", "primer-whole_5"]
    assert left("trial-whole_1000_0.002") == ["primer-whole_0"]
