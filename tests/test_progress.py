"""What a person sees of work that goes on: lines that move on a terminal, lines in a file."""

import io
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tests.conftest import write_pictures
from tests.heard import Heard
from underpaint import config, model, progress
from underpaint.progress import clock, doing, following, shown
from underpaint.screen import print_line
from underpaint.training.checkpointing import RunFolder
from underpaint.training.log import Log
from underpaint.training.stages import left, prepare_stages


@pytest.fixture
def drawing() -> model.Model:
    spec = config.ModelSpec(size=(8, 8), channels=3, label_names=())
    spec.network = config.Network(kind="dit", width=16, depth=1, heads=2, labels=False)
    return model.build(spec)


def test_nothing_is_heard_where_nobody_listens() -> None:
    with doing("work", 3) as at:
        at(1)


def test_a_failure_ends_what_was_going_on(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with shown(), doing("work", 3) as at:
            at(1)
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert progress._listener is None
    assert capsys.readouterr().err == ""


def test_samples_are_counted_by_steps_not_by_batches(drawing: model.Model) -> None:
    with following(heard := Heard()):
        drawing.sample(4, steps=5, sampler="heun", batch=2)
    done = [done for what, done, total in heard.said if what == "sampling" and total == 4]
    assert done == pytest.approx(np.arange(1, 11) * 0.4)


def test_quiet_is_quiet_within_what_is_shown() -> None:
    with following(heard := Heard()), shown(quiet=True), doing("work"):
        pass
    assert heard.said == []


def test_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with shown(), doing("sampling", 1200) as at, doing("part") as inner:
        for second in range(600):
            now[0] = 100 + second
            at(second * 2)
            inner(0)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "sampling: 20 of 1,200, 9:50 left"
    assert 10 < len(lines) < 30  # each ten seconds at first, each minute in the end
    assert lines[-1].startswith("sampling: 1,")


def test_a_terminal_breaks_lines_between_words_and_commands_nowhere() -> None:
    file = io.StringIO()
    narrow = Console(file=file, width=40, force_terminal=True, color_system=None)
    print_line(narrow, "1.5 min: 0:48 of training, 1,234,567,890 images, 9 s of checks")
    lines = file.getvalue().splitlines()
    assert len(lines) == 2
    assert all(len(line) <= 40 for line in lines)
    assert "1,234,567,890" in file.getvalue()
    command = "stopped after 640 images; go on: underpaint train --resume --out runs/icons"
    print_line(narrow, command)
    assert command in file.getvalue()


def test_time_that_is_known_better_is_taken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with shown(), doing("stage whole", 100) as at:
        now[0] = 11.0
        at(50, note="5 images/s", left=75.0)
    assert capsys.readouterr().err == "stage whole: 50 of 100, 5 images/s, 1:15 left\n"


@pytest.mark.parametrize(("seconds", "text"), [(5, "0:05"), (309.9, "5:09"), (3909, "1:05:09")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_what_is_left_counts_both_stages(tmp_path: Path) -> None:
    """400 masked images of 4 patches, then 100 whole ones of 16, which cost four times as much."""
    place = write_pictures(tmp_path / "faces")
    values = {
        "data": {"source": str(place)},
        "space": {"patch": 2},
        "stages": {
            "masked": {"images": 400, "mask": "patch", "rate": 0.75, "batch": 4},
            "whole": {"images": 100, "batch": 4},
        },
    }
    stages = prepare_stages(config.from_dict(config.Run, values, "test: "), lambda _: None)
    assert left(stages, 0) == 400 + 4 * 100
    assert left(stages, 300) == 100 + 4 * 100
    assert left(stages, 400) == 100
    assert left(stages, 500) == 0


def test_one_slow_step_does_not_make_it_hours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 images/s for 1,000 of 11,000 images, then 10 images within ten seconds."""
    now, said = [0.0], list[float]()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    class Estimates(Heard):
        def begin(self, what: str, total: float) -> progress.At:
            return lambda done, total=0, *, note="", left=None: said.append(left or 0.0)

    with following(Estimates()):
        log = Log(RunFolder(tmp_path), 11_000, first=True, quiet=True)
        for second, images, speed in ((0, 0, 100), (10, 1000, 100), (20, 1010, 1)):
            now[0] = second
            log.step("whole", images, speed, "loss 0.1")
        log.close()
    assert said == pytest.approx([110, 100, 9990 * 20 / 1010])


TERMINAL = """
import sys, time
from underpaint.progress import console, doing, shown
with shown():
    with doing("sampling", 64) as at:
        at(32)
        time.sleep(1.2)
        console().print("a line")
        at(64)
    print("done")
"""


def test_a_terminal_sees_a_line_that_moves_and_goes(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": "80", "TERM": "xterm", "NO_COLOR": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", TERMINAL], stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:
            break
        if not part:
            break
        seen += part
    assert process.wait() == 0
    text = seen.decode()
    assert "sampling" in text
    assert "32/64" in text
    assert "0:01 left" in text or "0:00 left" in text
    assert "a line" in text
    assert "done" in text
    assert text.rstrip().endswith("done\x1b[?25h") or text.rstrip().endswith("done")
