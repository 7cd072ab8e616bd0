"""Runs that exist, compared by what they measured as they went."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from underpaint import config
from underpaint.cli import main
from underpaint.compare.compare_runs import compare
from underpaint.errors import UserError


def write_run(
    folder: Path,
    speed: float,
    seed: int = 0,
    key: str = "abc",
    width: int = 128,
    start: str | None = None,
) -> Path:
    """A run whose held-out error falls by 0.05 with each e-fold of compute."""
    folder.mkdir()
    run = config.Run(stages={"whole": config.Stage(images=64)})
    run.train.seed, run.network.width = seed, width
    (folder / "config.yaml").write_text(config.to_yaml(run))
    (folder / "env.json").write_text(
        json.dumps({"data": {"whole": key}, "precision": "fp32", "start": start})
    )
    lines: list[dict[str, Any]] = []
    for images in (8, 16, 32, 64):
        error = 0.2 - 0.05 * np.log(speed * images / 64)
        step = {"stage": "whole", "images": images, "stage_images": images, "lr": 1.0}
        step |= {"rate": 0.0, "visible": 4, "flops": images * 1e9, "loss": 0.1, "seconds": 1.0}
        lines.append({"kind": "step", **step})
        check = {"stage": "whole", "mask": "whole", "images": images, "log_snr_edges": [0.0, 1.0]}
        lines.append({"kind": "check", **check, "train_mean": error, "held_out_mean": error})
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def test_runs_that_exist_by_recipe_and_seed(tmp_path: Path) -> None:
    plain = [write_run(tmp_path / f"plain-{s}", 1.0, s) for s in (1, 2)]
    fast = [write_run(tmp_path / f"fast-{s}", 2.5 + s / 100, s, width=64) for s in (1, 2)]
    found = compare([*plain, *fast])
    assert found["baseline"] == "plain-1"
    told = found["verdicts"]["fast-1"]
    assert told["ratio"] == pytest.approx((1 / 2.51 / 2.52) ** 0.5)
    assert told["answer"] == "pays"
    assert "from within runs" in found["notes"][0]
    alone = compare([plain[0], fast[1]])  # one run each is a pair
    assert alone["verdicts"]["fast-2"]["answer"] == "undecided"


def test_runs_of_one_recipe_that_began_elsewhere_are_arms_of_their_own(tmp_path: Path) -> None:
    """As the quick start's scratch and transfer."""
    scratch = write_run(tmp_path / "scratch", 1.0)
    primed = write_run(tmp_path / "transfer", 2.5, start="runs/heads")
    found = compare([scratch, primed])
    assert found["verdicts"]["transfer"]["ratio"] == pytest.approx(1 / 2.5)
    assert found["notes"][1:] == [
        "transfer began with the weights of runs/heads, whose compute is not counted"
    ]


def test_runs_that_cannot_be_compared(tmp_path: Path) -> None:
    one, other = (write_run(tmp_path / k, 1.0, key=k, width=w) for k, w in (("a", 8), ("b", 16)))
    with pytest.raises(UserError, match="was trained on other images than"):
        compare([one, other])
    alike = compare([one, write_run(tmp_path / "c", 1.0, seed=5, key="a", width=8)])
    assert alike["verdicts"] == {}
    assert "differ in more than seeds" in alike["notes"][-1]
    with pytest.raises(UserError, match="given twice"):
        compare([one, one])
    with pytest.raises(UserError, match="holds no run"):
        compare([one, tmp_path / "nowhere"])


def test_a_stage_that_one_run_lacks_is_one_line(tmp_path: Path) -> None:
    one, two = write_run(tmp_path / "one", 1.0), write_run(tmp_path / "two", 2.0)
    longer = config.load(two / "config.yaml")
    longer.stages = {"masked": config.Stage(images=1600), **longer.stages}
    (two / "config.yaml").write_text(config.to_yaml(longer))
    found = compare([one, two])["differs"]
    assert found == {"stages.masked": [None, "1,600 images"]}


def test_what_runs_are_comes_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = write_run(tmp_path / "one", 1.0), write_run(tmp_path / "two", 2.0, width=64, seed=3)
    (two / "metrics.jsonl").write_text("")
    found = compare([one, two])
    assert found["differs"] == {"network.width": [128, 64], "train.seed": [0, 3]}
    assert found["overview"][0] == {
        "run": str(one),
        "start": None,
        "images": 64,
        "flops": 64e9,
        "seconds": 1.0,
        "error": pytest.approx(0.2),
        "frechet": None,
        "protocol": None,
    }
    assert found["overview"][1]["error"] is None
    assert found["verdicts"] == {}
    assert main(["compare", str(one), str(two)]) == 0
    page = tmp_path / "comparison-one-two" / "comparison.html"
    text = capsys.readouterr().out
    assert text.splitlines()[1].split() == ["network.width", "128", "64"]
    assert str(page) in text
    assert "<code>train.seed</code>" in page.read_text()
    assert main(["compare", str(one), str(two)]) == 0  # ours, so it may be replaced
    (page.parent / ".underpaint").unlink()
    assert main(["compare", str(one), str(two)]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.slow
def test_samples_of_the_same_seeds_stand_side_by_side(
    tmp_path: Path, small: Path, faces: Path
) -> None:
    for name, seed in (("one", "0"), ("two", "1")):
        flags = ["--config", str(small), "--data", str(faces), "--out", str(tmp_path / name)]
        assert main(["train", *flags, "--train.seed", seed, "--quiet"]) == 0
    assert main(["compare", str(tmp_path / "one"), str(tmp_path / "two"), "--quiet"]) == 0
    page = (tmp_path / "comparison-one-two" / "comparison.html").read_text()
    assert 'alt="samples of one"' in page
    assert 'alt="samples of two"' in page
