"""What a plan promises: time, memory, what studies measured, and a recipe that learns."""

import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from studies.ladder import evidence as script
from underpaint import backbones, config
from underpaint.errors import UserError
from underpaint.model import load
from underpaint.planning import candidates, evidence, machine, write
from underpaint.planning.candidates import Images
from underpaint.planning.machine import Machine
from underpaint.planning.plan import Plan, propose, seconds_of, shown
from underpaint.training import cost, train

PRETRAINED = " --from pretrained:lorelei"
KINDS = [  # of the evidence's networks, whatever their width and depth
    (s["network"]["kind"], s["space"]["patch"], s["noise"]["prediction"], s["train"]["optimizer"])
    for s in (n["settings"] for n in evidence.load()["networks"])
]
# places of the network of the preset `default`, and of a DiT on patches of 4
DEFAULT = KINDS.index(("hourglass", 4, "x0", "muon"))
DIT = next(i for i, kind in enumerate(KINDS) if kind[:2] == ("dit", 4))


def slow(flops: float = 6e10, memory: float = 16e9, call: float = 1e-6) -> Machine:
    """A machine of known speed, on which nothing is timed."""
    speed = {"flop_per_s": flops, "utilisation": 1.0, "bytes_per_s": 1e13, "precision": "fp32"}
    taken = {"seconds_a_tensor": call, "seconds_a_value": 0.0}
    memories = {"memory_bytes": memory, "base_bytes": 3e8}
    return machine.of_sheet(machine.of_name("h100") | speed | taken | memories | {"key": "slow"})


H100 = machine.of_sheet(machine.of_name("h100"))


def plan_for(
    count: int = 5000,
    size: tuple[int, int] = (64, 64),
    budget: str = "2h",
    on: Machine | None = None,
    channels: int = 3,
) -> Plan:
    images = Images("photos", count, count // 20, size, channels)
    return propose(images, on or slow(), seconds_of(budget))


def known(monkeypatch: pytest.MonkeyPatch, *kept: int, **changes: Any) -> None:
    """Evidence of the networks `kept` alone, with other values; by their order in the file."""
    found = json.loads(json.dumps(evidence.load()))
    found["networks"] = [found["networks"][i] for i in kept] or found["networks"]
    monkeypatch.setattr(evidence, "load", lambda: found | changes)


# --- budgets ------------------------------------------------------------------------------------

BUDGETS = {"24h": 86400, "90m": 5400, "45min": 2700, "2d": 172800, "1h30m": 5400, "1.5 h": 5400}


@pytest.mark.parametrize("text", BUDGETS)
def test_budgets(text: str) -> None:
    assert seconds_of(text) == BUDGETS[text]


@pytest.mark.parametrize("text", ["90", "h", "soon", "3 weeks", "1h-5m", "0h", "", "nan h"])
def test_budgets_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="give a time"):
        seconds_of(text)


def test_durations_read_back() -> None:
    spelled = ["1s", "1min", "1h30min", "24h", "3d"]
    assert [shown(s) for s in (0.2, 60, 5400, 86400, 260000)] == spelled
    for seconds in (7, 1234, 12345, 123456, 1234567):
        assert seconds_of(shown(seconds)) == pytest.approx(seconds, rel=0.06)


# --- what is known ------------------------------------------------------------------------------


def test_the_evidence_is_what_the_script_writes() -> None:
    found, studies = evidence.load(), script.STUDIES
    where = json.loads((studies / "where" / "results.json").read_text())
    acceleration = json.loads((studies / "acceleration" / "results.json").read_text())
    batches = json.loads((studies / "batches" / "results.json").read_text())
    assert found["masks"] == script.masks(where, acceleration)
    slope = script.slope(acceleration)
    assert found["slope"] == pytest.approx(slope, abs=1e-4)
    assert found["batch"] == pytest.approx(script.batch(batches, slope), abs=1e-4)
    assert 0 < len(found["networks"]) <= script.MOST
    verdict = acceleration["verdicts"]["masked"]
    (tuned,) = [c for c in found["masks"] if c["source"] == "studies/acceleration"]
    assert (tuned["low"], tuned["high"], tuned["seeds"]) == (verdict["low"], verdict["high"], 5)


def test_units_of_one_network_are_its_points(monkeypatch: pytest.MonkeyPatch) -> None:
    again = {**script.ladder.UNITS, "later": ("dit", {"stages": {"whole": {"warmup": 9}}})}
    monkeypatch.setattr(script.ladder, "UNITS", again)
    monkeypatch.setattr(script.ladder, "CANDIDATES", ("later", "dit", "patch-8"))
    unit = {"flops": 1e13, "frechet": 100.0, "parameters": 10, "images": 4000, "error": 0.05}
    more = unit | {"parameters": 20}
    units = {"dit": unit, "later": unit | {"images": 9000, "error": 0.04}, "patch-8": more}
    dit, coarse = script.networks(units)
    assert [point["error"] for point in dit["measured"]] == [0.05, 0.04]
    assert dit["settings"]["stages"]["whole"]["warmup"] == 9  # of the longest
    assert (coarse["settings"]["space"]["patch"], coarse["parameters"]) == (8, 20)


def test_errors_are_interpolated_and_no_gain_is_made_up() -> None:
    measured = [{"images": 1000, "error": 0.08}, {"images": 4000, "error": 0.04}]

    def expected(images: float) -> float:
        return evidence.expected(measured, images, slope=0.2)

    assert expected(2000) == pytest.approx(0.08 / math.sqrt(2))  # halves over two doublings
    assert expected(4000) == expected(10**9) == pytest.approx(0.04)
    assert expected(500) == pytest.approx(0.08 * math.sqrt(2))  # steeper than the slope: as there
    assert evidence.expected(measured[1:], 2000, 0.2) == pytest.approx(0.04 * 2**0.2)


def test_a_cell_is_that_of_the_nearest_number_of_patches() -> None:
    cells = evidence.load()["masks"]
    assert evidence.nearest(cells, 49)["verdict"] == "undecided"
    assert {evidence.nearest(cells, n)["patches"] for n in (200, 256, 4096)} == {196, 256}
    assert evidence.nearest(cells, 4096)["seeds"] == 5  # of those that pay the best known
    said = evidence.sentence(evidence.nearest(cells, 256))
    assert "needed 0.70 to 0.85 of the compute: a gain (5 seeds" in said


# --- what is proposed ---------------------------------------------------------------------------


def test_patches_divide_the_image_and_keep_its_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    assert candidates.patches_that_fit((64, 64)) == [2, 4, 8, 16]
    assert candidates.patches_that_fit((8, 8)) == [2]  # 4 would leave 4 patches
    for size, better in (((127, 127), "--size 128"), ((47, 61), "--size 48 64")):
        with pytest.raises(UserError, match=f"give {better}"):
            candidates.patches_that_fit(size)
    network = next(n for n in evidence.load()["networks"] if n["settings"]["space"]["patch"] == 8)
    for size, patch in (((32, 32), 4), ((28, 28), 4), ((128, 64), 8), ((256, 256), 32)):
        assert candidates.recipe(Images("x", 5000, 0, size, 3), network).space.patch == patch
    known(monkeypatch, DEFAULT, DIT)
    squares = plan_for(size=(30, 30))  # which an hourglass merges, and 15×15 patches have not
    assert (squares.run.network.kind, squares.run.space.patch) == ("hourglass", 3)
    odd = plan_for(size=(27, 27))
    assert (odd.run.network.kind, odd.run.space.patch) == ("dit", 3)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [28, 32, 64, 128, 256])
def test_no_network_is_too_narrow_for_what_it_predicts(side: int, channels: int) -> None:
    images = Images("x", 5000, 0, (side, side), channels)
    for network in evidence.load()["networks"]:
        run = candidates.recipe(images, network)
        backbone = cost.network(run, images.size, channels, 0)
        backbones.check_features(backbone, run.noise)
        if run.noise.prediction != network["settings"]["noise"]["prediction"]:
            assert (run.noise.prediction, run.noise.weighting) == ("x0", "velocity")


def test_a_longer_budget_never_gets_a_worse_network(monkeypatch: pytest.MonkeyPatch) -> None:
    dits = [n for n in evidence.load()["networks"] if n["settings"]["network"]["kind"] == "dit"]
    first, second = ({"settings": n["settings"]} for n in dits)  # of patches of 4 and of 8
    first["measured"] = [{"images": 30_000, "error": 0.03}, {"images": 90_000, "error": 0.02}]
    second["measured"] = [{"images": 30_000, "error": 0.04}]  # sees more, to less avail
    known(monkeypatch, networks=[first, second])
    found = [plan_for(count=50_000, budget=budget) for budget in ("5m", "20m", "1h", "6h")]
    assert [plan.error for plan in found] == sorted((p.error for p in found), reverse=True)
    assert found[0].run.space != found[-1].run.space
    for plan in found:
        assert "studies/ladder" in plan.reasons[0]
        assert any("next best" in reason for reason in plan.reasons)
        assert plan.seconds == pytest.approx(plan.budget, rel=0.02)
        assert plan.evaluating <= 0.1 * plan.budget or plan.run.train.check_every == -1


def test_masks_only_where_the_evidence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch, DIT)
    found = plan_for()
    masked, whole = found.run.stages.values()
    assert list(found.run.stages) == ["masked", "whole"]
    cell = found.evidence
    assert (masked.mask, masked.rate) == (cell["mask"], cell["rate"])
    assert (whole.mask, masked.batch) == ("none", cell["batch"] * whole.batch)
    first, second = (s["images"] * s["flops_per_image"] for s in found.counted["stages"])
    assert first / (first + second) == pytest.approx(cell["share"], abs=0.01)
    launches = plan_for(on=slow(call=10.0), budget="10d")  # a step takes as long masked
    assert list(launches.run.stages) == ["whole"]
    assert any(r.startswith("no masked stage") and "in time" in r for r in launches.reasons)
    coarse = plan_for(size=(28, 28), count=60_000, channels=1)  # 196 patches
    assert list(coarse.run.stages) == ["whole"]
    assert any("no clear gain" in reason for reason in coarse.reasons)


def test_a_plan_of_minutes_is_the_default_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    found, default = plan_for(budget="10m").run, config.preset("default")
    assert (found.space, found.noise, found.sampling) == (
        default.space,
        default.noise,
        default.sampling,
    )
    assert found.network == default.network  # too few epochs to copy: no dropout
    (stage,), (same,) = found.stages.values(), default.stages.values()
    length = {"images": stage.images, "minutes": 0.0, "warmup": stage.warmup}
    assert stage == dataclasses.replace(same, **length)
    known(monkeypatch, DEFAULT)
    for size, patch in (((32, 32), 2), ((28, 28), 2), ((50, 50), 5), ((128, 128), 8)):
        assert candidates.patch_for(default, size) == patch
    assert plan_for(size=(50, 50), budget="10m").run.space.patch == 5


def test_a_plan_fits_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch, DEFAULT)
    roomy = plan_for()
    needed = cost.describe(slow().on(roomy.run), (64, 64), 3)["memory"]
    assert roomy.counted["memory"] == needed  # as `train --dry-run` says
    assert roomy.run.train.microbatch == 0
    tight = plan_for(on=slow(memory=(needed + 3e8) / 0.9 - 1e6))  # and the process
    assert 0 < tight.run.train.microbatch < tight.run.stages["whole"].batch
    assert tight.counted["memory"] <= needed
    with pytest.raises(UserError, match="give a smaller --size"):
        plan_for(on=slow(memory=3.2e8))


def test_few_images_keep_to_a_small_network_and_few_epochs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known(monkeypatch, DEFAULT)
    found, preset = plan_for(count=300, size=(32, 32), budget="10d"), config.preset("small-300")
    assert (found.start, found.run.network.width) == (PRETRAINED, preset.network.width)
    stage, same = found.run.stages["whole"], preset.stages["whole"]
    assert (stage.images, stage.batch) == (same.images, same.batch)
    assert found.seconds < found.budget / 10
    assert plan_for(count=300, size=(32, 32), channels=1).start == ""  # the weights are coloured
    for side, patch in ((64, 4), (28, 2), (48, 3)):  # as many patches, or patches as large
        (network,) = candidates.packaged(Images("x", 300, 15, (side, side), 3))
        assert (
            candidates.recipe(Images("x", 300, 15, (side, side), 3), network).space.patch == patch
        )
    assert candidates.packaged(Images("x", 300, 15, (50, 50), 3)) == []
    more = plan_for(count=2000, on=H100, budget="10d")
    assert more.counted["stages"][-1]["images"] <= 2500 * 2000
    assert any("copying" in reason for reason in more.reasons)


def test_dropout_goes_by_epochs() -> None:
    """Images alone do not say whether a run has the time to copy them."""
    assert candidates.drops(3.5) == candidates.drops(0.2) == (0.0, 0.1)
    assert candidates.drops(1e6) == (0.1, 0.3)
    few = [plan_for(count=300, size=(32, 32), budget=b).run.network.dropout for b in ("1m", "10d")]
    assert few[0] < few[1] == 0.1


@pytest.mark.parametrize("count", [300, 3000, 30_000])
def test_small_presets_are_met_where_they_are(count: int) -> None:
    preset = config.preset(f"small-{count}")
    images = candidates.length(count)
    assert images == pytest.approx(preset.last.images)
    given = (preset.network.dropout, preset.network.label_drop)
    assert candidates.drops(images / count) == pytest.approx(given)


def test_a_gpu_that_is_not_here_is_computed_and_takes_larger_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert {"rtx-4090", "a100-80", "h100", "l4", "t4"} <= set(machine.known())
    small = [n["settings"]["stages"]["whole"]["batch"] for n in evidence.load()["networks"]]
    known(monkeypatch, small.index(4))
    found = plan_for(count=20_000, on=H100)
    assert "computed, not measured" in write.text(found, "plan.yaml")
    assert found.run.stages["whole"].batch > plan_for().run.stages["whole"].batch
    assert found.run.train.ema == 0.9999  # of a long run


def test_a_budget_too_small_for_one_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch, DEFAULT)
    with pytest.raises(UserError, match="too small for one checkpoint") as caught:
        plan_for(budget="1s", on=slow(flops=1e9))
    plan_for(budget=str(caught.value).rpartition(" ")[2], on=slow(flops=1e9))  # as it advises


@pytest.mark.parametrize(("count", "side"), [(5000, 64), (300, 32), (60_000, 28)])
def test_the_yaml_is_the_recipe(
    count: int, side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(monkeypatch, DEFAULT, DIT)
    found, path = plan_for(count=count, size=(side, side)), tmp_path / "plan.yaml"
    path.write_text(write.text(found, str(path)))
    assert config.load(path) == found.run
    lines = path.read_text().splitlines()
    assert any("images/s" in line for line in lines)
    assert all(len(line) <= 100 for line in lines if str(path) not in line)


def test_this_machine_is_timed_by_real_steps(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((64, 8, 8, 3), np.uint8))
    run = config.preset("small-300")
    run = candidates.changed(
        run,
        data={"source": str(tmp_path / "x.npy"), "size": [8]},
        space={"patch": 2},
        network={"width": 16, "depth": 1, "heads": 2},
        stages={"whole": {"images": 16}},
    )
    began, here = time.monotonic(), machine.find("cpu")
    taken = here.an_image(run, Images("", 64, 0, (8, 8), 3), "whole", 0.05)
    assert 0 < 3 * 16 * taken < time.monotonic() - began  # three steps of 16 at least
    assert 0 < here.memory < 1.1 * machine.USABLE * machine.free_memory(here.device)


@pytest.mark.parametrize("index", [KINDS.index(kind) for kind in dict.fromkeys(KINDS)])
def test_a_plan_learns_to_draw(index: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of plan, cut to one block and some steps, loses more noise than 32 of 48 numbers.

    Through 32 features a velocity n − x0 of 48 numbers keeps a third of its noise: at sigma 1, by
    x0 = (x − F)/2, an error of 1/12 a number.
    """
    known(monkeypatch, index)
    flat = np.random.default_rng(0).integers(0, 256, (64, 1, 1, 3), np.uint8)
    np.save(tmp_path / "flat.npy", np.broadcast_to(flat, (64, 32, 32, 3)))
    run = plan_for(size=(32, 32), budget="4h").run
    images = 560 if run.network.kind == "hourglass" else 320  # learns slower in its first steps
    length = {"images": images, "batch": 8, "warmup": 40, "augment": 0.0, "learning_rate": 2e-3}
    run = candidates.changed(
        run,
        data={"source": str(tmp_path / "flat.npy"), "held_out": "8"},
        stages=dict.fromkeys(run.stages, length),
        train={"threads": 1, "check_every": -1, "sample_every": -1, "ema": 0.9},
        network={"depth": 1, "width": 32, "heads": 2, "dropout": 0.0},
    )
    learned = load(train(run, tmp_path / "run", quiet=True), device="cpu")
    x0 = torch.from_numpy(flat[:16] / 127.5 - 1).float().movedim(3, 1).expand(-1, -1, 32, 32)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    assert (learned.denoise(x0 + noise, 1.0) - x0).square().mean() < 1 / 12
    drawn = learned.sample(4, steps=10).astype(float)
    assert np.abs(np.diff(drawn, axis=1)).mean() < 255 / 3 / 2  # half of uniform noise's
