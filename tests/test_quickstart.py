"""The quick start: three runs, equal lengths where they are compared, one report; resumable."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from underpaint import config
from underpaint.cli import quickstart
from underpaint.errors import UserError


def test_minutes_are_shared() -> None:
    parts = quickstart.recipes(6.0, seed=3)
    minutes = {name: sum(s.minutes for s in run.stages.values()) for name, run in parts.items()}
    assert minutes == pytest.approx({"main": 4.0, "transfer": 1.0, "scratch": 1.0})
    assert parts["main"].train.seed == 3
    assert parts["transfer"].data.limit == parts["scratch"].data.limit == 1000
    assert parts["main"].sampling == config.preset("quickstart").sampling
    with pytest.raises(UserError, match="--minutes"):
        quickstart.recipes(0.0, seed=0)


@pytest.mark.slow
def test_interrupted_and_resumed(tmp_path: Path) -> None:
    out = tmp_path / "quick"
    command = [sys.executable, "-m", "underpaint", "quickstart", "--out", str(out)]
    command += ["--minutes", "1"]  # start and report are in them
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "UNDERPAINT_CACHE": str(tmp_path / "cache"),
    }
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    metrics = out / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size > 500):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "underpaint quickstart --resume" in errors.splitlines()[-1]
    done = subprocess.run(
        [*command, "--resume"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (out / "report.html").is_file()
    lengths = [
        config.load(out / name / "config.yaml").stages["whole"].images
        for name in ("transfer", "scratch")
    ]
    assert lengths[0] == lengths[1] > 0
    assert "of the learning rate" not in (out / "log.txt").read_text()
