"""The cores that a process may use, and what OpenMP is asked for."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from underpaint import cores


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cores, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # put back afterwards, whatever is set meanwhile
        monkeypatch.delenv(name)
    return tmp_path


@pytest.mark.parametrize(
    ("said", "count"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("250000 100000", 3),
        ("20000 100000", 1),
        ("1600000 100000", 8),
        ("", 8),  # of no known kind
        ("200000", 8),
        ("200000 0", 8),
        ("two 100000", 8),
    ],
)
def test_cores_are_those_of_the_affinity_that_the_quota_allows(
    cgroup: Path, said: str, count: int
) -> None:
    (cgroup / "cpu.max").write_text(said + "\n")
    assert cores.available() == count


def test_the_quota_of_older_systems(cgroup: Path) -> None:
    assert cores.available() == 8
    (cgroup / "cpu").mkdir()
    (cgroup / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    (cgroup / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cores.available() == 8
    (cgroup / "cpu" / "cpu.cfs_quota_us").write_text("300000\n")
    assert cores.available() == 3


def test_a_quota_that_cannot_be_read_is_none(cgroup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    (cgroup / "cpu.max").write_text("200000 100000")
    monkeypatch.setattr(Path, "read_text", refused)
    assert cores.available() == 8


def test_a_system_without_affinities(cgroup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert cores.available() == 4
    (cgroup / "cpu.max").write_text("100000 100000")
    assert cores.available() == 1


def test_what_the_user_has_said_to_openmp_stays(
    cgroup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cores.share()
    assert os.environ["GOMP_SPINCOUNT"] == str(cores.SPINS)
    assert "OMP_NUM_THREADS" not in os.environ  # OpenMP knows the affinity
    (cgroup / "cpu.max").write_text("200000 100000")
    cores.share()
    assert os.environ["OMP_NUM_THREADS"] == "2"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    cores.share()
    assert (os.environ["OMP_NUM_THREADS"], os.environ["GOMP_SPINCOUNT"]) == ("5", "7")
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    cores.share()
    assert "GOMP_SPINCOUNT" not in os.environ
    assert cores._quota() < math.inf


def test_a_command_says_it_before_torch_is_loaded() -> None:
    line = (
        "import os, sys; from underpaint.cli import main; main(['--version']); "
        "print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"
    )
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("GOMP", "OMP"))}
    done = subprocess.run([sys.executable, "-c", line], env=kept, capture_output=True, text=True)
    assert done.stdout.split()[-2:] == [str(cores.SPINS), "False"], done.stderr
