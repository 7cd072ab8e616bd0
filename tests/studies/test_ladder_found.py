"""What the ladder finds: ratios of compute with intervals, seconds a step, and the page."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from studies.ladder import page, speed, verdicts
from studies.ladder import run as ladder
from underpaint.compare import record

FULL, SLOPE, T = 3e13, 0.2, 4.302652729911275  # T: t(0.975) of two degrees of freedom
BUDGETS = {f"{ladder.BEST}-tenth": 0.1, f"{ladder.BEST}-quarter": 0.25, ladder.BEST: 1.0}


def a_run(flops: float, error: float) -> dict[str, Any]:
    scores = {"error": error, "frechet": 1e3 * error, "frechet_converged": 2e3 * error}
    return {"flops": flops, "images": 1000, **scores}


def ends(ratios: list[float], baseline: str = "dit") -> dict[str, Any]:
    """Ends whose curves are power laws, each off by a factor of its seed, with these ratios."""
    found = {}
    for seed, ratio in enumerate(ratios, 1):
        level = 0.03 * 1.1**seed
        for name, share in BUDGETS.items():
            found[f"end-{name}-{seed}"] = a_run(share * FULL, level * share**-SLOPE)
        found[f"end-{baseline}-{seed}"] = a_run(FULL, level * ratio**-SLOPE)
    return found


@pytest.mark.parametrize(("middle", "below", "above"), [(0.2, 0, 0), (0.05, 3, 0), (1.5, 0, 3)])
def test_a_power_law_gives_its_ratio_and_interval(middle: float, below: int, above: int) -> None:
    done = ends([middle * math.exp(d) for d in (-0.1, 0.0, 0.1)])
    told = verdicts.compared(ladder.BEST, "dit", done, slope=9.0)
    assert told["seeds"] == 3
    assert told["missing"] == []
    half = T * 0.1 / math.sqrt(3)
    for score in verdicts.SCORES:
        found = told[score]
        assert found["ratio"] == pytest.approx(middle)
        assert found["low"] == pytest.approx(middle * math.exp(-half))
        assert found["high"] == pytest.approx(middle * math.exp(half))
        assert (found["below"], found["above"]) == (below, above)
    said = verdicts.words(told | {"pace": [2.0, 3.0]})
    assert said.startswith(
        "compute: < 0.10 (extrapolated: 0.050, 0.039 to 0.064) by error, "
        if below
        else "compute: > 1.00 (extrapolated: 1.50, 1.17 to 1.92) by error, "
        if above
        else "compute: 0.20 (0.16 to 0.26) by error, "
    )
    for share in (2 * middle, 3 * middle):
        assert f"{share:.2f}" in said.rpartition("; ")[2]


def test_between_budgets_a_curve_is_a_line_in_logarithms() -> None:
    curve = [(1e12, 0.08), (4e12, 0.04), (16e12, 0.03)]
    assert verdicts.crossing(curve, 0.08 / math.sqrt(2)) == (pytest.approx(2e12), 0)
    # beyond them: the slope from first to last
    fall = math.log(8 / 3) / math.log(16)
    assert verdicts.crossing(curve, 0.015) == (pytest.approx(16e12 * 2 ** (1 / fall)), 1)
    assert verdicts.crossing([(1.0, 2.0), (2.0, 3.0)], 1.0) is None
    assert verdicts.reached({1: [(1.0, 2.0), (2.0, 3.0)]}, {1: (1.0, 1.0)}) == {}


def test_what_is_far_apart_has_no_ratio() -> None:
    done = {"maskdm": a_run(FULL, 2.3), "ddpm": a_run(FULL, 11.0)}
    told = verdicts.compared("maskdm", "ddpm", done, SLOPE) | {"pace": [1.0, 1.0]}
    assert verdicts.words(told) == (
        "no ratio by error: 2.3 and 11 are too far apart; FD-MobileNetV2 2300 against 11000"
    )
    assert "the batch of 128 that `ddpm` was published with makes 65 steps here" in (
        verdicts.conditions(told, "CPU")
    )
    far = ends([1e-4, 1e-4, 1e-4], "ddpm")
    told = verdicts.compared(ladder.BEST, "ddpm", far, SLOPE) | {"pace": None}
    assert verdicts.words(told).startswith("compute: < 0.10 by error, ")


def test_without_all_seeds_a_verdict_says_what_is_missing() -> None:
    done = ends([0.2, 0.2])
    told = verdicts.compared(ladder.BEST, "dit", done, slope=9.0)
    assert told["seeds"] == 2
    assert sorted(told["missing"]) == sorted(f"end-{n}-3" for n in ("dit", *BUDGETS))
    assert verdicts.words({**verdicts.compared(ladder.BEST, "dit", {}, 9.0), "pace": None}) == ""
    # rungs stand in for ends, by the slope; an eighth less FLOPs for as much error is an eighth
    done = {ladder.BEST: a_run(7e12, 0.03), "dit": a_run(8e12, 0.03 * 2**SLOPE)}
    told = verdicts.compared(ladder.BEST, "dit", done, SLOPE)
    assert told["error"]["ratio"] == pytest.approx(7 / 16)
    assert told["seeds"] == 0
    assert "end-dit-1" in told["missing"]
    assert "by the slope" in verdicts.conditions({**told, "pace": None}, "")


def test_the_best_plain_dit_is_found_among_rungs() -> None:
    done = {name: a_run(1, e) for name, e in (("dit", 0.04), ("patch-8", 0.03), ("ddpm", 0.01))}
    done["patch-8-muon"] = done[ladder.BEST] = a_run(1, 0.02)
    assert verdicts.plain(done) == "patch-8"


def test_what_is_told_follows_from_the_committed_runs() -> None:
    results, speeds, told = (
        record.read(ladder.HERE / f"{n}.json") for n in ("results", "speed", "verdicts")
    )
    assert verdicts.found(results, speeds) == told


def test_seconds_of_two_stages_are_weighted_by_their_flops() -> None:
    # 3/4 of 8 FLOPs at 1 an image, 1/4 at 2: six images of 1 s (3 s), and one of 5 s
    flops, seconds = speed.an_image([(0.75, 1.0, [1.0, 3.0]), (0.25, 2.0, [5.0, 5.0])])
    assert flops == pytest.approx(8 / 7)
    assert seconds == pytest.approx([11 / 7, 23 / 7])
    assert speed.median([3, 1, 2, 9, 4, 5, 6, 7, 8]) == {"ratio": 5, "low": 2, "high": 8}
    units = {"dit": {"flops_an_image": 2.0}, "new": {"flops_an_image": 1.0}}
    units["dit"] |= {"fp32": {"rounds": [4.0, 8.0, 2.0]}, "bf16": {"rounds": [2.0, 4.0, 1.0]}}
    units["new"] |= {"fp32": {"rounds": [1.0, 2.0, 9.0]}}
    assert speed.by_flops({"units": units}, "new", "dit") == 0.5
    assert speed.by_flops({"units": units}, "new", "dit", "bf16") == 1.0
    assert speed.by_flops({"units": units}, "new", "ddpm") is None


def test_units_are_timed_by_what_their_steps_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert speed.step("patch-8", "whole") == speed.step("patch-8-min-snr", "whole")
    assert speed.step("patch-8", "whole") != speed.step("patch-8-batch-8", "whole")
    monkeypatch.setattr(speed, "LEAST", 1e-9)  # a step a turn
    half = f"{ladder.ADAMW}-half-resolution"
    told = speed.measure(["dit", half, ladder.BEST], rounds=1)
    assert told["cpu"]
    found = told["units"]
    assert found["dit"]["fp32"]["ratio"] == 1
    for unit in found:
        results = record.read(ladder.HERE / "results.json")["units"]
        if unit in results:
            an_image = results[unit]["flops"] / results[unit]["images"]
            # a stage's images are whole batches
            assert found[unit]["flops_an_image"] == pytest.approx(an_image, rel=1e-4)
    # a fifth of the FLOPs on images of a quarter of the tokens
    assert found[half]["flops_an_image"] < found[ladder.BEST]["flops_an_image"]


def test_a_change_stays_where_it_pays_in_compute_and_in_time() -> None:
    done = {"dit": a_run(1e13, 0.04), "patch-8": a_run(1e13, 0.03)}
    assert page.rung("patch-8", done, {}, SLOPE)[-1] == "stays"
    slow = {"flops_an_image": 1.0, "fp32": {"rounds": [1.0], "seconds_an_image": 1.0}}
    fast = {"flops_an_image": 1.0, "fp32": {"rounds": [0.2], "seconds_an_image": 0.2}}
    speeds = {"units": {"patch-8": slow, "dit": fast}}
    row = page.rung("patch-8", done, speeds, SLOPE)
    assert row[3] == f"{0.03 * 5**SLOPE:.4f}"  # more than 0.04
    assert row[-1] == "goes"
    done["patch-8"]["frechet"] = 50.0
    assert page.rung("patch-8", done, {}, SLOPE)[-1] == "goes"
    other = next(name for name in ladder.UNITS if name.startswith("photographs-dit"))
    assert page.rung(other, done | {other: a_run(1e13, 0.01)}, {}, SLOPE)[-1] == "–"


def test_the_page_shows_ends_and_grids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder, "HERE", tmp_path)
    done = ends([0.2, 0.2, 0.2]) | {"dit": a_run(1e13, 0.04)}
    fp32 = {"rounds": [1.0], "seconds_an_image": 1.0}
    speeds = {"units": {n: {"flops_an_image": 1.0, "fp32": fp32} for n in ("dit", ladder.BEST)}}
    speeds |= {"cpu": "A CPU", "flags": []}  # type: ignore[dict-item]
    told = verdicts.found({"units": done}, speeds)
    for name, value in (("speed", speeds), ("verdicts", told)):
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    grids = {name: tmp_path / f"{name}.png" for name in ("dit", ladder.BEST)}
    for path in grids.values():
        Image.new("RGB", (40, 30), "red").save(path)
    monkeypatch.setattr(page, "SAMPLES", tmp_path / "samples.png")
    page.sheet(grids, page.SAMPLES)
    found = page.page({"units": done})
    text = found.write(tmp_path / "results.html").read_text(encoding="utf-8")
    assert "compute: 0.20 (0.20 to 0.20) by error" in text
    assert "time on one core: 0.20 (0.20 to 0.20)" in text
    assert "A CPU" in text
    assert Image.open(tmp_path / "results.png").size == (20, 2 * (10 + page.LABEL))
    assert "end-ddpm-1" in found.markdown()  # not done yet
