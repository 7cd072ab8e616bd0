"""Memory that a training step frees and takes again."""

import subprocess
import sys
from pathlib import Path

import pytest

from underpaint import config, hardware
from underpaint.model import load
from underpaint.training import train

ROUNDS = 20
STEPS = """
import resource, sys, torch
from underpaint.hardware import keep_freed_memory

def step():
    blocks = [torch.ones(10 * 2**20) for _ in range(2)]  # of 40 MiB

if sys.argv[1] == "kept" and not keep_freed_memory():
    raise SystemExit("mallopt refused")
for _ in range(10):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(int(sys.argv[2])):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    """Of `ROUNDS` steps in a process of their own."""
    done = subprocess.run(
        [sys.executable, "-c", STEPS, how, str(ROUNDS)], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_what_a_step_frees_is_not_given_back_to_the_system() -> None:
    given_back, kept = page_faults("given back"), page_faults("kept")
    assert given_back > ROUNDS * 1_000  # of 20,480 pages of 4 KiB a step
    assert kept < given_back / 20


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert hardware.keep_freed_memory() is False


def test_training_and_loaded_models_keep_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Told(Exception):
        pass

    def tell() -> None:
        raise Told

    for module in ("training.run", "model"):
        monkeypatch.setattr(f"underpaint.{module}.keep_freed_memory", tell)
    with pytest.raises(Told):
        train(config.preset("quickstart"), tmp_path / "run")
    with pytest.raises(Told):
        load("pretrained:lorelei", device="cpu")
