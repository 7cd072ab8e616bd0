"""The study of every system: equal compute, and pictures that are kept."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from studies.batches import run as batches
from studies.systems import page
from studies.systems import run as systems
from underpaint.training import cost

STUDY = Path(__file__).parents[2] / "studies" / "systems"


def test_both_arms_of_every_system_get_the_same_compute(tmp_path: Path) -> None:
    for system, about in systems.SYSTEMS.items():
        spent, parameters = [], []
        for arm in systems.ARMS:
            run = systems.recipe(f"{system}_{arm}", 1.0, tmp_path)
            assert not run.noise.stratified  # as when it was measured
            told = cost.describe(run, (32, 32), 3, 8)
            spent.append(told["flops"])
            parameters.append(told["parameters"])
            assert (list(run.stages) == ["whole"]) == (arm == "whole")
        assert spent == pytest.approx([about.get("budget", systems.BUDGET)] * 2, rel=1e-3)
        assert parameters[0] == parameters[1]
        assert 1e6 < parameters[0] < 2.1e6, system


def test_units_of_the_committed_json_are_not_done_again(tmp_path: Path) -> None:
    work, out = tmp_path / "work", tmp_path / "results.json"
    result = {"held_out": 0.1, "images": 32}
    colours = {"uvit_whole": "red", "maskdm_two-stage": "blue"}

    def done(folder: Path, unit: str) -> None:
        (folder / unit).mkdir(parents=True)
        (folder / unit / "result.json").write_text(json.dumps(result))
        Image.new("RGB", page.GRID, colours[unit]).save(folder / unit / "grid.png")

    done(work, "uvit_whole")
    systems.restore(work, out, 1.0)  # nothing is committed yet
    systems.gathered(work, out, 1.0)
    other = tmp_path / "other"
    systems.restore(other, out, 1.0)
    assert json.loads((other / "uvit_whole" / "result.json").read_text()) == result
    assert [path.name for path in other.iterdir()] == ["uvit_whole"]
    done(other, "maskdm_two-stage")  # what is committed keeps its picture beside the new one
    systems.gathered(other, out, 1.0)
    sheet = Image.open(page.samples(out))
    for unit, row in (("uvit_whole", 0), ("maskdm_two-stage", 1)):
        grid = sheet.crop(page.place(row, unit.split("_")[1]))
        assert grid.getcolors() == [(grid.width * grid.height, ImageColor.getrgb(colours[unit]))]
    with pytest.raises(SystemExit, match="--scale 1; give another --out"):
        systems.restore(work, out, 0.1)


def test_the_committed_picture_has_the_samples_of_every_system() -> None:
    about = json.loads((STUDY / "results.json").read_text())["systems"]
    assert list(about) == list(systems.SYSTEMS)  # the rows
    sheet = Image.open(STUDY / "samples.png")
    drawn = [row for row, unit in enumerate(about.values()) if "scores" in unit["units"]["whole"]]
    assert len(drawn) == 7
    for row in drawn:
        for arm in systems.ARMS:
            assert np.asarray(sheet.crop(page.place(row, arm))).std() > 30


def test_studies_draw_their_samples_as_when_they_began(tmp_path: Path) -> None:
    runs = [systems.recipe(f"{name}_whole", 1.0, tmp_path) for name in ("dit", "uvit", "unet")]
    runs += [batches.recipe(way, 1.0) for way in batches.WAYS.values()]
    assert {(run.sampling.sampler, run.sampling.steps) for run in runs} == {("euler", 30)}
