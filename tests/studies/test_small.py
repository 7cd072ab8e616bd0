"""The study of batches and rates for few images."""

from pathlib import Path
from typing import Any

import pytest

from studies.small import run as small


@pytest.mark.parametrize("size", [300, 3000])
def test_presets_of_few_images_had_the_steps_and_lengths_that_were_measured(size: int) -> None:
    stages = small.units.base(f"small-{size}").stages
    for name, steps in small.steps("small", size).items():
        own = stages[name]
        assert {"batch": own.batch, "learning_rate": own.learning_rate} == steps
        assert own.images == pytest.approx(4 * small.LENGTH[size][name], rel=0.01)


def test_small_presets_are_tried_with_other_steps_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def trained(run: Any, folder: Path, start: str) -> dict[str, Any]:
        (folder / "checkpoints").mkdir(parents=True)
        seen[folder.name] = run
        assert start == "weights of heads"
        return {"images": sum(stage.images for stage in run.stages.values())}

    monkeypatch.setattr(small.units, "trained", trained)
    monkeypatch.setattr(small.units, "heads", lambda work: "weights of heads")
    monkeypatch.setattr(small.samples, "scored", lambda folder, images, count: {"of": images})
    for unit in small.UNITS:
        length = {"300": 24_000, "3000": 72_000}[unit.split("_")[1]]
        assert small.do(unit, tmp_path, 1.0) == {"images": length, "of": length}
    for size in (300, 3000):
        preset = small.units.base(f"small-{size}")
        steps = {}
        for arm in small.ARMS:
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
