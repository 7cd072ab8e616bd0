"""The planner: the pace of a machine, its memory, the prior, and the recipe that follows."""

import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from underpaint import backbones, config
from underpaint.errors import UserError
from underpaint.model import load
from underpaint.planning import candidates, devices, evidence, machine, measure, memory, pace, write
from underpaint.planning.candidates import Images
from underpaint.planning.machine import Machine
from underpaint.planning.measure import Probe
from underpaint.planning.pace import Pace
from underpaint.planning.plan import Plan, propose, seconds_of, shown
from underpaint.training import train
from underpaint.training.stages import Level

TRUE = Pace((1e-4, 6e-9, 8e-12, 2e-11, 1e-9, 1e-7))  # about what two cores here do


def of(
    patch: int = 4, width: int = 32, depth: int = 3, size: int = 32, kind: str = "dit"
) -> backbones.Backbone:
    run = config.Run(
        space=config.Space(patch=patch),
        network=config.Network(kind=kind, width=width, depth=depth, heads=2),
    )
    return candidates.counted(run, Images("x", 1, 0, (size, size), 3))


def computed(memory_bytes: float = 16e9, gpu: bool = False, scale: float = 1.0) -> Machine:
    """A machine of known pace, on which nothing is timed."""
    sheet = devices.of_name("h100")
    made = dataclasses.replace(machine.of_sheet(sheet), memory=memory_bytes)
    if gpu:
        return made
    slow = Pace(tuple(scale * c for c in TRUE.coefficients))
    return dataclasses.replace(made, name="slow", pace=slow, bytes_per=4, gpu=False)


def plan_for(
    count: int = 5000,
    size: int = 64,
    budget: str = "2h",
    on: Machine | None = None,
    channels: int = 3,
) -> Plan:
    images = Images("photos", count, count // 20, (size, size), channels)
    return propose(images, on or computed(), seconds_of(budget))


# --- time --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "more"), [("dit", 0), ("uvit", 1)])  # a token of the time
def test_work_is_counted_by_the_network(kind: str, more: int) -> None:
    backbone, V, batch = of(kind=kind), 16, 8
    found = pace.work(backbone, V, batch)
    assert found.linear + found.attention == 3 * batch * backbone.flops(V)
    tokens = V + more
    assert found.attention == 3 * batch * 3 * 4 * tokens**2 * 32  # in each of three blocks
    assert found.parameters == sum(p.numel() for p in backbone.parameters())
    assert found.tensors == len(list(backbone.parameters()))
    assert found.activations == batch * backbone.activation_bytes(V)
    assert found.values == batch * 32 * 32 * 3
    halves = pace.work(backbone, V, batch, microbatch=4)
    assert halves == found._replace(tensors=2 * found.tensors)  # twice the calls, the same sums


def test_the_pace_of_a_machine_is_found_from_its_steps() -> None:
    """Unseen widths, patches, rates and batches of a machine that follows the formula."""
    seen = [(of(4, 32), V, b) for V in (64, 16, 4) for b in (2, 16)]
    seen += [(of(4, 128), V, b) for V in (64, 8) for b in (2, 16)]
    seen += [(of(4, 64, 5, 64), V, b) for V in (256, 64) for b in (1, 4)]
    works = [pace.work(*case) for case in seen]
    fitted = pace.fit(works, [TRUE.seconds(work) for work in works])
    for case in ((of(8, 96, 7), 16, 8), (of(4, 256), 32, 4), (of(2, 48), 100, 3)):
        work = pace.work(*case)
        assert fitted.seconds(work) == pytest.approx(TRUE.seconds(work), rel=1e-3)


def test_noise_never_makes_a_larger_step_faster() -> None:
    rng = np.random.default_rng(0)
    works = [pace.work(of(4, w), V, b) for w in (32, 64) for V in (64, 8) for b in (2, 8)]
    fitted = pace.fit(works, [TRUE.seconds(w) * rng.uniform(0.5, 2) for w in works])
    assert min(fitted.coefficients) >= 0
    with pytest.raises(ValueError, match="positive seconds"):
        pace.fit(works, [0.0] * len(works))


def test_steps_take_turns_and_the_least_counts() -> None:
    order: list[str] = []
    told: list[tuple[int, int]] = []

    def step(name: str, times: list[float]) -> float:
        order.append(name)
        return times.pop(0)

    a, b = [3.0, 1.0, 2.0], [5.0, 6.0, 4.0]
    least = measure.take(
        {"a": lambda: step("a", a), "b": lambda: step("b", b)},
        0.0,
        lambda *t: told.append(t),
        rounds=3,
    )
    assert (least, order) == ([1.0, 4.0], ["a", "b"] * 3)
    assert len(told) == 6


def test_a_machine_is_measured_by_real_steps() -> None:
    probes = (Probe(16, 1, 2, 16, 0.0, 2), Probe(16, 1, 2, 16, 0.5, 4))
    found = machine.here(torch.device("cpu"), 0.0, lambda *_: None, probes)
    assert found.measured
    assert [t.work.values for t in found.probes] == [2 * 768, 4 * 768]
    assert all(t.seconds > 0 for t in found.probes)
    assert found.base > 50e6  # torch is loaded
    assert found.memory > 0


def test_a_timed_stage_is_a_stage_of_the_recipe() -> None:
    run = config.preset("small-300")
    stage = measure.timed_stage(run, (64, 64), 0.75, 8, "patch", classes=3)
    assert stage.levels == (Level(0, 0.75, 0.75, 64),)
    assert stage.spec.network.augment  # the layer that is told of augmentation is timed, too
    assert stage.settings.augment == 0.4
    assert len(stage.spec.label_names) == 3
    seen = stage.training_set.visible(np.arange(8), 0.75, 0, torch.Generator().manual_seed(0))
    assert seen.patches.shape == (8, 64, 48)
    assert seen.condition is not None  # images are augmented as in training


# --- memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [5, 32, 100, 256])
def test_the_largest_batch_is_found_by_trial(most: int) -> None:
    for limit in range(300):
        asked: list[int] = []

        def fits(batch: int, limit: int = limit, asked: list[int] = asked) -> bool:
            asked.append(batch)
            return batch <= limit

        found = memory.largest(fits, most)
        best = min(limit, most)
        expected = best // 8 * 8 if best >= 8 else max([b for b in (4, 2, 1) if b <= best] or [0])
        assert found == expected, (limit, most)
        assert max(asked) <= most
        assert len(asked) == len(set(asked)) <= 12


def test_peak_memory_is_its_formula() -> None:
    backbone = of(depth=3)
    parameters = sum(p.numel() for p in backbone.parameters())
    values, activations = 32 * 32 * 3, backbone.activation_bytes(16, bytes_per=2)
    expected = 1e6 + 22 * parameters + 8 * (activations * 4 / 3 + 28 * values)
    found = memory.peak(backbone, 3, 16, 8, base=1e6, bytes_per=2)
    assert found == pytest.approx(expected)


def test_memory_of_this_machine() -> None:
    held = memory.resident()
    assert 10e6 < held < memory.available(torch.device("cpu"))


# --- what is known ------------------------------------------------------------------------------


def test_the_prior_is_cited_from_the_nearest_number_of_patches() -> None:
    found = evidence.load()
    assert all(cell.verdict in ("pays", "does not pay", "undecided") for cell in found.cells)
    assert found.nearest(49).verdict == "undecided"
    assert {found.nearest(n).patches for n in (200, 256, 4096)} == {196, 256}
    assert found.nearest(1).patches == 49


def test_a_study_can_replace_the_prior(tmp_path: Path) -> None:
    a, b = (evidence.load().nearest(n) for n in (256, 49))
    cells = (
        dataclasses.replace(b, patches=100, verdict="does not pay", low=1.1, high=1.4, seeds=3),
        dataclasses.replace(a, patches=100, verdict="pays", low=0.5, high=0.9, seeds=3),
        dataclasses.replace(a, patches=100, verdict="pays", low=0.4, high=0.8, seeds=3),
        dataclasses.replace(a, patches=100, verdict="pays", low=0.3, high=0.7, seeds=1),
    )
    evidence.write(evidence.Evidence("three seeds", cells), tmp_path / "prior.json")
    read = json.loads((tmp_path / "prior.json").read_text())
    assert (
        evidence.Evidence(read["about"], tuple(evidence.Cell(**c) for c in read["cells"])).cells
        == cells
    )
    assert evidence.Evidence("", cells).nearest(90) == cells[2]  # pays, most seeds, least end
    assert "pays, 0.40 to 0.80 of the compute" in cells[2].sentence()
    assert "does not pay" in cells[0].sentence()


def test_known_gpus() -> None:
    assert devices.peak_flops("NVIDIA H200") == devices.of_name("h200").flop_per_s == 989e12
    assert devices.peak_flops("NVIDIA GeForce RTX 4090") == 165.2e12
    assert devices.peak_flops("some GPU") is None
    assert machine.of_sheet(devices.of_name("t4")).bytes_per == 4  # has no bf16
    assert {"rtx-3090", "rtx-4090", "a100-40", "a100-80", "h100", "h200", "l4", "t4"} <= set(
        devices.known()
    )
    for device in devices.known().values():
        assert 0 < device.utilisation < 1


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("24h", 86400),
        ("90m", 5400),
        ("45min", 2700),
        ("2d", 172800),
        ("1h30m", 5400),
        ("1.5 h", 5400),
    ],
)
def test_budgets(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["90", "h", "soon", "3 weeks", "1h-5m", "0h", "", "nan h"])
def test_budgets_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="give a time"):
        seconds_of(text)


def test_durations_read_back() -> None:
    assert [shown(s) for s in (0.2, 60, 5400, 86400, 260000)] == [
        "1s",
        "1min",
        "1h30min",
        "24h",
        "3d",
    ]
    for seconds in (7, 1234, 12345, 123456, 1234567):
        assert seconds_of(shown(seconds)) == pytest.approx(seconds, rel=0.06)


# --- what is proposed ----------------------------------------------------------------------------


def test_patches_divide_the_image() -> None:
    assert candidates.patches_that_fit((64, 64)) == [4, 8, 16]
    assert candidates.patches_that_fit((48, 36)) == [4, 6]  # 12 would leave 12 patches
    assert candidates.patches_that_fit((30, 30)) == [5, 6]
    assert candidates.patches_that_fit((8, 8)) == [2]  # 4 would leave 4 patches
    with pytest.raises(UserError, match="give --size 128"):
        candidates.patches_that_fit((127, 127))
    with pytest.raises(UserError, match="give --size 48 64"):
        candidates.patches_that_fit((47, 61))


def test_where_masking_does_not_pay_no_masked_stage_is_proposed() -> None:
    found = plan_for(size=28, count=60_000)
    assert found.patches == 49
    assert list(found.run.stages) == ["whole"]
    (reason,) = [r for r in found.reasons if r.startswith("no masked stage")]
    assert "undecided" in reason
    assert "49 patches" in reason


def test_where_it_pays_the_priors_stage_comes_first() -> None:
    found = plan_for()
    masked, whole = found.run.stages.values()
    assert list(found.run.stages) == ["masked", "whole"]
    assert (masked.mask, masked.rate) == (found.cell.mask, found.cell.rate)
    assert whole.mask == "none"
    assert masked.batch == found.cell.batch * whole.batch
    backbone = candidates.counted(found.run, found.images)
    first, second = (row.images * backbone.flops(row.visible) for row in found.rows)
    assert first / (first + second) == pytest.approx(found.cell.share, abs=0.01)
    assert found.seconds == pytest.approx(found.budget, rel=0.02)


def test_masks_that_pay_in_flops_alone_are_not_proposed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where calls are slow, masked images take nearly as long as whole ones."""
    known = evidence.Cell(256, "block", 0.9, 2, 0.4, 4, 0.65, 0.8, 5, "pays", "a study")
    monkeypatch.setattr(evidence, "load", lambda: evidence.Evidence("", (known,)))
    for call, proposed, verdict in (
        (0.0, True, "pays"),
        (1e-3, True, "pays"),  # in FLOPs; in time it is likelier than not
        (3e-3, False, "undecided"),
        (1e-2, False, "does not pay"),
    ):
        pace = Pace((call, *TRUE.coefficients[1:]))
        found = plan_for(budget="6h", on=dataclasses.replace(computed(), pace=pace))
        assert found.cell.verdict == verdict
        assert ("masked" in found.run.stages) == proposed
        (reason,) = [r for r in found.reasons if "masked stage" in r]
        assert reason.startswith("no ") != proposed
        low, high = map(float, re.findall(r"in time ([\d.]+) to ([\d.]+)", reason)[0])
        assert (low * high < 1) == proposed
        assert (high < 1) == (call == 0)
        assert (low > 1) == (verdict == "does not pay")
        assert low / high == pytest.approx(0.65 / 0.8, abs=0.02)
        if proposed:
            backbone = candidates.counted(found.run, found.images)
            first, second = (row.images * backbone.flops(row.visible) for row in found.rows)
            assert first / (first + second) == pytest.approx(0.4, abs=0.01)


def test_stages_take_what_the_pace_says() -> None:
    found = plan_for()
    backbone = candidates.counted(found.run, found.images)
    for row in found.rows:
        stage = found.run.stages[row.name]
        seconds = found.machine.pace.seconds(pace.work(backbone, row.visible, stage.batch))
        assert row.seconds == pytest.approx(stage.images / stage.batch * seconds)
        assert stage.images % stage.batch == 0


def test_a_longer_budget_gets_a_finer_patch_or_a_wider_network() -> None:
    short, long = plan_for(size=128, budget="30m"), plan_for(size=128, budget="10d")
    assert short.run.space.patch > long.run.space.patch == 4
    wide = plan_for(count=200_000, on=computed(gpu=True), budget="2d")
    assert wide.run.network.width > 256
    assert wide.run.stages["whole"].batch > 32
    found = wide.run.stages  # both stages' batches grow alike
    assert found["masked"].batch == wide.cell.batch * found["whole"].batch
    assert wide.run.stages["whole"].learning_rate < 1e-3


def test_a_short_budget_keeps_the_quick_starts_grid() -> None:
    found = plan_for(budget="5m", on=computed(scale=10))
    assert found.patches == 64
    assert any(reason.startswith("the budget is small") for reason in found.reasons)


def test_what_a_network_is_too_narrow_to_predict_as_noise_is_planned_as_x0() -> None:
    seen = set()
    cases = [(size, budget, 3) for size in (32, 64, 128) for budget in ("10m", "3h", "4d")]
    for size, budget, channels in [*cases, (64, "10m", 1), (256, "4d", 3)]:
        found = plan_for(size=size, budget=budget, channels=channels, on=computed(scale=3))
        run, backbone = found.run, candidates.counted(found.run, found.images)
        backbones.check_features(backbone, run.noise)
        few = backbone.features <= backbone.patch_dim
        asked = ("x0", "velocity") if few else ("flow", "output")
        assert (run.noise.prediction, run.noise.weighting) == asked
        assert any(r.startswith("prediction x0: a patch has") for r in found.reasons) == few
        seen.add(few)
    assert seen == {True, False}


@pytest.mark.parametrize(
    ("size", "budget", "asked"),
    [
        (64, "10m", ("x0", 8, ["whole"])),
        (32, "10m", ("flow", 4, ["whole"])),
        (64, "2d", ("flow", 4, ["masked", "whole"])),
    ],
)
def test_a_plan_learns_to_draw(
    size: int, budget: str, asked: tuple[str, int, list[str]], tmp_path: Path
) -> None:
    """Each kind of plan, cut to one block and some steps, loses more noise than 128 of 192 numbers.

    Through 128 features a velocity n − x0 of 192 numbers keeps a third of its noise: at sigma 1, by
    x0 = (x − F)/2, an error of 1/12 a number.
    """
    run = plan_for(size=size, budget=budget, on=computed(scale=3)).run
    assert (run.noise.prediction, run.space.patch, list(run.stages)) == asked
    flat = np.random.default_rng(0).integers(0, 256, (64, 1, 1, 3), np.uint8)
    np.save(tmp_path / "flat.npy", np.broadcast_to(flat, (64, size, size, 3)))
    run.data = config.Data(source=str(tmp_path / "flat.npy"), held_out="8")
    run.network = dataclasses.replace(run.network, depth=1, width=128, heads=4, dropout=0.0)
    length = {"images": 320, "batch": 8, "warmup": 40, "augment": 0.0, "learning_rate": 2e-3}
    run.stages = {k: dataclasses.replace(stage, **length) for k, stage in run.stages.items()}
    run.train = dataclasses.replace(run.train, threads=1, check_every=-1, sample_every=-1, ema=0.9)
    learned = load(train(run, tmp_path / "run", quiet=True), device="cpu")
    x0 = torch.from_numpy(flat[:16] / 127.5 - 1).float().movedim(3, 1).expand(-1, -1, size, size)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    assert (learned.denoise(x0 + noise, 1.0) - x0).square().mean() < 1 / 12
    drawn = learned.sample(4, steps=10).astype(float)
    assert np.abs(np.diff(drawn, axis=1)).mean() < 255 / 3 / 2  # half of uniform noise's


def test_few_images_keep_a_small_network_whatever_the_budget() -> None:
    found = plan_for(count=2000, on=computed(gpu=True), budget="10d")
    assert found.parameters <= 2000 * 64 * 64 * 3 / 10
    epochs = sum(row.images for row in found.rows) / 2000
    assert epochs <= 2500
    assert any("copying" in reason for reason in found.reasons)


def test_very_few_images_start_from_a_primer_and_stop_early() -> None:
    found = plan_for(count=300, size=32, budget="10d")
    preset = config.preset("small-300")
    assert found.start == "pretrained:lorelei"
    assert found.run.network.width == preset.network.width
    assert found.run.stages["whole"].augment == preset.stages["whole"].augment
    assert found.run.stages["whole"].images == preset.stages["whole"].images
    assert found.seconds < found.budget / 10
    assert plan_for(count=300, size=32, channels=1).start is None  # the primer is coloured


@pytest.mark.parametrize("count", [300, 3000, 30_000])
def test_small_presets_are_met_where_they_are(count: int) -> None:
    found, preset = candidates.small(count), config.preset(f"small-{count}")
    whole = preset.stages["whole"]
    assert found.learning_rate == pytest.approx(whole.learning_rate)
    assert (found.augment, found.dropout) == pytest.approx((whole.augment, preset.network.dropout))
    assert found.label_drop == pytest.approx(preset.network.label_drop)
    assert found.whole_images == pytest.approx(whole.images, abs=1)
    assert found.masked_images == pytest.approx(preset.stages["masked"].images, abs=1)


def test_a_batch_that_does_not_fit_becomes_microbatches() -> None:
    roomy, tight = plan_for(), plan_for(on=computed(memory_bytes=1.55e9))
    assert roomy.run.train.microbatch == 0
    batches = {stage.batch for stage in tight.run.stages.values()}
    micro = tight.run.train.microbatch
    assert 0 < micro < min(batches)
    assert {batch % micro for batch in batches} == {0}
    assert max(row.memory for row in tight.rows) <= 1.55e9
    with pytest.raises(UserError, match="give a smaller --size"):
        plan_for(on=computed(memory_bytes=1.5e9))


def test_a_budget_too_small_for_one_checkpoint() -> None:
    with pytest.raises(UserError, match="too small for one checkpoint") as caught:
        plan_for(budget="1s", on=computed(scale=20))
    least = str(caught.value).rpartition(" ")[2]
    plan_for(budget=least, on=computed(scale=20))  # what it advises works


def test_grids_and_checks_do_not_eat_a_short_budget() -> None:
    short, long = plan_for(budget="10m"), plan_for(budget="24h")
    assert short.evaluating <= 0.2 * short.budget
    assert short.run.train.sample_every > 0
    assert long.run.train.sample_every == 0  # as by itself
    assert math.isclose(long.seconds, long.budget, rel_tol=0.01)


@pytest.mark.parametrize(
    ("count", "size", "gpu"), [(5000, 64, False), (300, 32, False), (60_000, 28, True)]
)
def test_the_yaml_is_the_recipe(count: int, size: int, gpu: bool, tmp_path: Path) -> None:
    found = plan_for(count=count, size=size, on=computed(gpu=gpu))
    path = tmp_path / "plan.yaml"
    write.write(found, path)
    assert config.load(path) == found.run
    text = path.read_text()
    assert "images/s" in text
    told = [line for line in text.splitlines() if str(path) not in line]
    assert all(len(line) <= 100 for line in told)
    if gpu:
        assert "computed, not measured" in text
