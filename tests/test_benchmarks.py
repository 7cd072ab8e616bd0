"""The benchmarks still run."""

import json
import runpy
from pathlib import Path

import pytest

from underpaint.cli import main
from underpaint.training.trainer import Trainer

ROOT = Path(__file__).parent.parent


def test_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "step.json"
    flags = ["--size", "32", "--batch", "2", "--rounds", "1", "--repeat", "1", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["step.py", *flags])
    out.write_text(json.dumps({"cpu-masked": {}, "another": {"rows": []}}))
    runpy.run_path(str(ROOT / "benchmarks" / "step.py"), run_name="__main__")
    found = json.loads(out.read_text())
    assert found["another"] == {"rows": []}  # one file holds all
    rows = found["cpu-masked"]["rows"]
    assert [row["visible"] for row in rows] == [64, 32, 16, 7]
    for row in rows:
        assert row["ideal"] == rows[0]["flops_per_image"] / row["flops_per_image"]
        assert row["images_per_s"] > 0


def test_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step of a warm start imports neither torch's compiler nor what draws pages."""
    benchmark = runpy.run_path(str(ROOT / "benchmarks" / "start.py"))
    images = benchmark["write"](tmp_path / "images", 60, 3)
    assert len({file.read_bytes() for file in images.rglob("*.png")}) == 60
    monkeypatch.setenv("UNDERPAINT_CACHE", str(tmp_path / "ours" / "cache"))
    step = Trainer._step

    def first(self: Trainer) -> None:
        step(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_step", first)  # fills the cache
    assert main(benchmark["command"](images, tmp_path / "run")) == 130
    found = benchmark["run"]("step", images, tmp_path / "ours")
    assert found["cpu"] > 0
    assert found["mib"] > 0
    assert found["heavy"] == []
