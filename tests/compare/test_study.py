"""Studies: what their YAML means, and a whole one with runs of a second."""

import dataclasses
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scipy import linalg

from underpaint import config
from underpaint.cli import main
from underpaint.compare import runner as conducting
from underpaint.compare import split_scoring, study, timing
from underpaint.compare.runner import _verdicts, conduct
from underpaint.compare.split_scoring import half
from underpaint.errors import RunFailed, UserError
from underpaint.evaluation import features as feature_networks
from underpaint.training import cost, train

torch.set_num_threads(1)

RECIPE = {
    "network": {"width": 64, "depth": 3, "heads": 2},
    "stages": {
        "masked": {"minutes": 1, "mask": "patch", "rate": 0.5, "batch": 8, "warmup": 1000},
        "whole": {"minutes": 1, "batch": 8, "schedule": "cooldown"},
    },
    "train": {"sample_every": -1, "check_images": 8},
    "sampling": {"count": 4, "steps": 2, "sampler": "euler"},
}
STUDY: dict[str, Any] = {
    "recipe": "recipe.yaml",
    "budget": 1.2e9,
    "points": [0.5, 1.0],
    "seeds": [1, 2],
    "arms": {
        "unmasked": {"settings": {"stages": {"masked": None}}},
        "masked": {"shares": {"masked": 0.5, "whole": 0.5}},
    },
}


@pytest.fixture(autouse=True)
def quick_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speeds are measured as ever, but in one pass and not for long."""
    for name, value in {"WARM": 0, "PASSES": 1, "SECONDS": 0.0}.items():
        monkeypatch.setattr(timing, name, value)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """60 images of 16×16, the left or the right half bright."""
    pixels = np.random.default_rng(0).integers(0, 60, (60, 16, 16, 3), dtype=np.uint8)
    pixels[::2, :, :8] += 150
    pixels[1::2, :, 8:] += 150
    np.save(tmp_path / "images.npy", pixels)
    return tmp_path / "images.npy"


def write(folder: Path, images: Path | None = None, **changes: Any) -> Path:
    """A study's YAML with its recipe beside it."""
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    values = {**STUDY, **changes}
    if images:
        values["settings"] = {"data": {"source": str(images), "held_out": "12"}}
    (folder / "study.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return folder / "study.yaml"


def test_the_example_of_the_docs_runs(images: Path, tmp_path: Path) -> None:
    """As it stands there, but for images, budget and seeds."""
    page = (Path(__file__).parents[2] / "docs" / "studies.md").read_text(encoding="utf-8")
    values = yaml.safe_load(page.partition("```yaml\n")[2].partition("```")[0])
    values["settings"]["data"] = {"source": str(images), "size": 16, "held_out": "12"}
    values |= {"budget": 4e9, "points": [1.0], "seeds": [1], "images": 6}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    found = conduct(
        study.load(tmp_path / "study.yaml"), tmp_path / "out", workers=1, say=lambda _: None
    )
    assert {run["arm"] for run in found["runs"]} == {"adamw", "muon"}
    assert found["baseline"] == "adamw"


def test_a_budget_in_minutes_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="budget 2min: a study is measured in training FLOPs"):
        study.load(write(tmp_path, budget="2min"))


# --- what a study means ------------------------------------------------------------------------


@pytest.mark.parametrize("point", [0.25, 1.0])
def test_stages_spend_their_share_of_the_budget(point: float, tmp_path: Path) -> None:
    found = study.load(write(tmp_path))
    run = study.recipe(found, "masked")
    scaled = study.scaled(run, {"masked": 0.3, "whole": 0.7}, 1e11, point, (16, 16), 3)
    for told, share in zip(cost.describe(scaled, (16, 16), 3)["stages"], (0.3, 0.7), strict=True):
        batch = told["flops_per_image"] * told["batch"]
        assert told["flops"] == pytest.approx(share * point * 1e11, abs=0.5 * batch + 1)
        assert told["images"] % told["batch"] == 0
    masked = scaled.stages["masked"]
    assert masked.warmup == min(round(1000 * point), masked.images // 5)
    assert run.stages["masked"].minutes == 1  # the recipe itself is as it was


def test_an_arm_is_its_overrides(tmp_path: Path) -> None:
    found = study.load(write(tmp_path))
    assert found.baseline == "unmasked"
    assert list(study.recipe(found, "unmasked").stages) == ["whole"]
    tuned = study.recipe(found, "masked", {"learning_rate": 3e-4, "batch": 4, "patch": 2})
    assert {s.learning_rate for s in tuned.stages.values()} == {3e-4}
    assert {s.batch for s in tuned.stages.values()} == {4}
    assert tuned.space.patch == 2


def test_what_makes_an_arm_is_not_tuned_away(tmp_path: Path) -> None:
    arms = STUDY["arms"] | {"small": {"settings": {"stages": {"masked": {"batch": 2}}}}}
    found = study.load(write(tmp_path, arms=arms))
    trial = {"batch": 16, "learning_rate": 0.5}
    small = study.recipe(found, "small", trial).stages
    assert (small["masked"].batch, small["whole"].batch) == (2, 16)
    assert small["masked"].learning_rate == small["whole"].learning_rate == 0.5
    assert study.recipe(found, "masked", trial).stages["masked"].batch == 16


def test_trials_are_the_same_for_all_arms_and_all_different() -> None:
    tuning = study.Tuning(trials=4, learning_rate=(1e-3, 3e-4, 1e-4), batch=(8, 16))
    found = study.trials(tuning)
    assert found == study.trials(tuning)
    assert len({json.dumps(trial) for trial in found}) == 4
    assert all(set(trial) == {"learning_rate", "batch"} for trial in found)
    assert len(study.trials(dataclasses.replace(tuning, trials=6))) == 6


def test_a_best_value_at_the_edge_of_the_grid_is_said() -> None:
    tuning = study.Tuning(trials=6, learning_rate=(3e-4, 1e-3, 1e-4), batch=(8, 16), patch=(4,))
    for rate, batch, expected in ((3e-4, 8, ["batch"]), (1e-3, 16, ["learning_rate", "batch"])):
        chosen = {"learning_rate": rate, "batch": batch, "patch": 4}
        assert study.at_the_edge(tuning, chosen) == expected


# --- a whole study -----------------------------------------------------------------------------


def test_a_study_from_end_to_end_and_again(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuning = {"trials": 2, "point": 0.5, "learning_rate": [1e-3, 1e-5]}
    found = study.load(write(tmp_path, images, tuning=tuning))
    said: list[str] = []
    out = tmp_path / "out"
    results = conduct(found, out, workers=1, say=said.append)
    assert results == json.loads((out / "results.json").read_text())
    assert len(results["runs"]) == 2 * 2 * 2
    for run in results["runs"]:
        folder = out / run["run"]
        assert config.load(folder / "config.yaml").train.seed == run["seed"]
        assert (folder / "checkpoints" / "LATEST").is_file()
        assert run["flops"] == pytest.approx(run["point"] * 1.2e9, rel=0.1)
        assert run["seconds_alone"] > 0
    for name, own in results["tuning"].items():
        best = min(own, key=lambda trial: trial["score"])
        assert results["chosen"][name] == {"learning_rate": best["learning_rate"]}
        assert {path.name for path in (out / "tuning" / name).iterdir()} == {
            "learning_rate-0.001",
            "learning_rate-1e-05",
        }
        rates = {r["arm"]: config.load(out / r["run"] / "config.yaml") for r in results["runs"]}
        assert rates[name].stages["whole"].learning_rate == best["learning_rate"]
    assert [note.split(" lies at the edge")[0] for note in results["notes"]] == [
        f"the best learning_rate {results['chosen'][name]['learning_rate']:g} of {name}"
        for name in results["tuning"]
    ]
    assert set(results["verdicts"]) == {"masked"}
    assert results["verdicts"]["masked"]["seeds"] == [1, 2]
    # again, as if it was killed in one run, before its results were written: that run goes on to
    # the same weights, the rest stays
    victim = out / results["runs"][0]["run"]
    (victim / "study.json").unlink()
    (out / "results.json").unlink()
    before, last = sorted(path for path in (victim / "checkpoints").iterdir() if path.is_dir())
    (victim / "checkpoints" / "LATEST").write_text(before.name + "\n")
    shutil.rmtree(last)
    recipe = (victim / "config.yaml").read_text()
    (victim / "config.yaml").write_text(recipe.replace("  stop: none\n", ""))  # of an older version
    other = out / results["runs"][1]["run"] / "study.json"
    stamp = other.stat().st_mtime_ns
    again = conduct(found, out, workers=1, say=said.append)
    assert "going on after" in (victim / "log.txt").read_text()
    assert [run["score"] for run in again["runs"]] == [run["score"] for run in results["runs"]]
    assert again["verdicts"] == results["verdicts"]
    assert other.stat().st_mtime_ns == stamp
    # and from results.json alone, which keeps a trial that is no longer asked for
    for name in ("runs", "tuning"):
        shutil.rmtree(out / name)
    monkeypatch.setattr(conducting, "_one", lambda task: pytest.fail(f"{task} is run again"))
    alone = conduct(found, out, workers=1, say=said.append)
    assert alone == again
    found.tuning.trials, found.tuning.learning_rate = 1, (1e-3,)
    assert all(chosen == {"learning_rate": 1e-3} for chosen in again["chosen"].values())
    fewer = conduct(found, out, workers=1, say=said.append)
    assert [run["run"] for run in fewer["earlier"]] == [
        f"tuning/{name}/learning_rate-1e-05" for name in found.arms
    ]
    assert fewer["runs"] == again["runs"]


def test_speeds_are_measured_where_the_record_has_none_of_these_settings(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []

    def speed(plan: Any, run: config.Run, *_: Any) -> float:
        measured.append(run.stages[plan.name].batch)
        return 10.0

    monkeypatch.setattr(timing, "speed", speed)
    found, out = study.load(write(tmp_path, images)), tmp_path / "out"

    def told(batch: int, before: dict[str, Any]) -> dict[str, Any]:
        """What results.json has of it."""
        best = {name: {"batch": batch} for name in found.arms}
        seconds, timed = conducting._speeds(found, best, out, lambda _: None, before)
        recorded = {"settings": timed, "timed": {name: {} for name in timed}}
        return {"seconds_an_image": seconds, **json.loads(json.dumps(recorded))}

    first = told(8, {})
    assert first["seconds_an_image"]["unmasked"] == {"whole": pytest.approx(0.1)}
    assert set(measured) == {8}
    measured.clear()
    assert told(8, first) == first
    assert not measured
    told(4, first)
    assert set(measured) == {4}


@pytest.mark.slow
def test_ctrl_c_and_the_same_command_again(
    images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two runs beside each other, of one thread each; what is done is not done again."""
    path, out = write(tmp_path, images, points=[1.0]), tmp_path / "out"

    def press() -> None:
        while not list(out.glob("runs/*/*/*/study.json")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press, daemon=True)
    thread.start()
    assert main(["compare", str(path), "--out", str(out), "--workers", "2"]) == 130
    thread.join()
    errors = capfd.readouterr().err  # of the runs' processes, too
    assert "the same command goes on with it" in errors
    assert "Traceback" not in errors
    done = {path: path.stat().st_mtime_ns for path in out.rglob("study.json")}
    assert 1 <= len(done) < 4
    results = conduct(study.load(path), out, workers=1, say=lambda _: None)
    assert len(results["runs"]) == 4
    assert {path: path.stat().st_mtime_ns for path in done} == done
    for run in results["runs"]:
        assert config.load(out / run["run"] / "config.yaml").train.threads == 1


def test_a_run_that_cannot_go_on_is_named(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverges(*_: Any, **__: Any) -> None:
        raise RunFailed("stage whole: 3 steps in a row had no finite gradient")

    monkeypatch.setattr(conducting, "train", diverges)
    found, out = study.load(write(tmp_path, images)), tmp_path / "out"
    monkeypatch.setattr(conducting, "_speeds", lambda *_: ({}, {}))
    with pytest.raises(RunFailed) as error:
        conduct(found, out, workers=1, say=print)
    assert str(error.value) == (
        f"arm unmasked at point 1, seed 1 (log: {out}/runs/unmasked/1/seed-1/log.txt): "
        "stage whole: 3 steps in a row had no finite gradient"
    )


def test_arms_may_have_points_and_seeds_of_their_own(tmp_path: Path) -> None:
    arms = {
        "unmasked": {"settings": {"stages": {"masked": None}}, "points": [1.0]},
        "masked": {"seeds": [2]},
    }
    found = study.load(write(tmp_path, arms=arms))
    assert found.points_of("unmasked") == (1.0,)
    assert found.points_of("masked") == (0.5, 1.0)
    assert found.seeds_of("unmasked") == (1, 2)
    runs = [
        {"arm": name, "point": point, "seed": seed, "score": 1 / point, "flops": 100 * point}
        for name in found.arms
        for point in found.points_of(name)
        for seed in found.seeds_of(name)
    ]
    assert len(runs) == 2 + 2
    runs = [run | {"seconds_alone": run["flops"]} for run in runs]
    told = _verdicts(found, runs)["verdicts"]["masked"]
    assert told["seeds"] == (2,)
    assert told["ratios"] == (("=", 1.0),)


def test_pre_training_is_charged_and_shown_apart(images: Path, tmp_path: Path) -> None:
    first = study.load(write(tmp_path, images, seeds=[1], points=[1.0]))
    conduct(first, tmp_path / "first", workers=1, say=lambda _: None)
    start = "first/runs/unmasked/1/seed-1"
    arms = {
        "scratch": STUDY["arms"]["unmasked"],
        "tuned": {**STUDY["arms"]["unmasked"], "start": start},
    }
    found = study.load(write(tmp_path, images, seeds=[1], points=[1.0], arms=arms))
    results = conduct(found, tmp_path / "second", workers=1, say=lambda _: None)
    charged, free = (results[key]["tuned"]["ratios"][0] for key in ("verdicts", "amortised"))
    assert charged[1] == pytest.approx(2.0)
    assert free[1] == pytest.approx(1.0)
    assert results["start_flops"]["tuned"] == pytest.approx(1.2e9, rel=0.1)


def test_tuning_and_reporting_see_different_images() -> None:
    dataset: Any = SimpleNamespace(held_out_ids=np.arange(100, 231))
    a, b = (half(dataset, which, 1000) for which in ("A", "B"))
    assert len(a) == len(b) == 65
    assert not set(a) & set(b)
    assert set(a) | set(b) < set(dataset.held_out_ids)
    assert list(half(dataset, "B", 10)) == list(b[:10])
    with pytest.raises(UserError, match="cannot be halved"):
        half(SimpleNamespace(held_out_ids=np.arange(1)), "A", 10)  # type: ignore[arg-type]


def test_the_frechet_score_of_a_run(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against equally many samples, in the features of the study's extractor."""
    pixels = np.random.default_rng(1).integers(0, 256, (300, 16, 16, 3), dtype=np.uint8)
    np.save(images, pixels)
    run = config.from_dict(config.Run, RECIPE, "test: ")
    run.data = config.Data(source=str(images), held_out="140")
    run.stages = {"whole": config.Stage(images=16, batch=8)}
    run.train.check_every = -1
    train(run, tmp_path / "run", quiet=True)
    seen = []

    def features(pictures: np.ndarray) -> np.ndarray:
        seen.append(pictures)
        return pictures.reshape(len(pictures), -1)[:, :3].astype(np.float32)

    monkeypatch.setattr(feature_networks, "load", lambda name: features)
    found = split_scoring.measure(tmp_path / "run", "FD", "B", most=512, extractor="mobilenetv2")
    real, drawn = (torch.from_numpy(features(p)) for p in seen[:2])
    assert len(real) == len(drawn) == 70
    mean = (real.double().mean(0) - drawn.double().mean(0)).square().sum()
    cov = [np.cov(x.double().numpy().T) for x in (real, drawn)]
    root = linalg.sqrtm(cov[0] @ cov[1]).real
    assert found == pytest.approx(float(mean) + np.trace(cov[0] + cov[1] - 2 * root), rel=1e-5)
    with pytest.raises(UserError, match="FD needs at least 64"):
        split_scoring.measure(tmp_path / "run", "FD", "B", most=10, extractor="mobilenetv2")


# --- wrong use ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"arms": {**STUDY["arms"], "big": {"budget": 6e8}}}, "arms that differ in budget"),
        (
            {"arms": {**STUDY["arms"], "big": {"shares": {"masked": 0.5, "whole": 0.9}}}},
            "shares of arm big are 1.4 in all",
        ),
        ({"arms": {"one": {}}}, "two arms at least"),
        ({"baseline": "nobody"}, "baseline 'nobody' is not an arm"),
        ({"budget": 0}, "budget 0"),
        ({"points": [0.25, 0.5]}, "leave 1 among those of arm unmasked"),
        (
            {"arms": STUDY["arms"] | {"masked": {"points": [0.5, 0.25]}}},
            "arms.masked.points: give ascending",
        ),
        ({"arms": STUDY["arms"] | {"masked": {"seeds": [7]}}}, "arms.masked.seeds: give some"),
        ({"seeds": [1, 1]}, "different whole numbers"),
        ({"score": "beauty"}, "'beauty' is not one of held-out loss, FD"),
        ({"tuning": {"trials": 9, "batch": [8, 16]}}, "have 2 combinations"),
        ({"tuning": {"trials": 2, "batch": [8, 16]}, "seeds": [0, 1]}, "seed 0 is used for tuning"),
        ({"tuning": {"trials": 2, "batch": [8, 8]}}, "batch .8, 8. holds a value twice"),
        ({"recipe": ""}, "names no recipe"),
    ],
)
def test_a_study_with_a_mistake(changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=expected):
        study.load(write(tmp_path, **changes))


def test_a_budget_too_small_for_one_checkpoint(images: Path, tmp_path: Path) -> None:
    found = study.load(write(tmp_path, images, budget=1e6))
    with pytest.raises(UserError, match="too small for one checkpoint") as error:
        conduct(found, tmp_path / "out", workers=1, say=print)
    assert not (tmp_path / "out").exists()
    least = float(str(error.value).split("at least ")[1])
    run = study.recipe(found, "unmasked")
    study.scaled(run, {}, least * 1.05, 0.5, (16, 16), 3)  # what it asks for is enough


def test_an_arm_that_would_end_early(images: Path, tmp_path: Path) -> None:
    early = {"settings": {"train": {"stop": "auto"}}}
    found = study.load(write(tmp_path, images, arms={"one": {}, "early": early}))
    with pytest.raises(UserError, match=r"arms\.early: with train\.stop auto"):
        conduct(found, tmp_path / "out", workers=1, say=print)


def test_a_start_of_unknown_cost(images: Path, tmp_path: Path) -> None:
    arms = {**STUDY["arms"], "primed": {"start": "pretrained:lorelei"}}
    found = study.load(write(tmp_path, images, arms=arms))
    with pytest.raises(UserError, match="pretrained:lorelei: does not say what it cost"):
        conduct(found, tmp_path / "out", workers=1, say=print)
    assert not (tmp_path / "out").exists()


def test_arms_that_end_on_different_images(images: Path, tmp_path: Path) -> None:
    other = {"settings": {"stages": {"whole": {"data": {"source": str(images), "limit": 20}}}}}
    found = study.load(write(tmp_path, images, arms={"one": {}, "other": other}))
    with pytest.raises(UserError, match="arms one and other end on different images"):
        conduct(found, tmp_path / "out", workers=1, say=print)
    assert not (tmp_path / "out").exists()
