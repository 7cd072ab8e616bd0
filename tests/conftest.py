"""What the tests of the command line and of the studies share."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# containers often set it: then each of hundreds of processes compiles torch anew, which takes 8 s
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
os.environ["HF_HUB_OFFLINE"] = "1"  # which is read when the library is imported: none is asked

from underpaint import hardware, screen  # noqa: E402
from underpaint.cli import main  # noqa: E402

SMALL = """\
network: {width: 64, depth: 3, heads: 2}
stages:
  masked: {images: 32, mask: patch, rate: 0.5, batch: 8}
  whole: {images: 32, batch: 8}
train: {threads: 1, precision: fp32, check_every: -1, sample_every: -1}
sampling: {count: 4, steps: 2, sampler: euler}
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first, so that no core waits for one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True, scope="session")
def ctrl_c() -> None:
    """Tests press Ctrl-C; a shell's background job would ignore it, and so would its children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache; all processes of a test run share one."""
    place = tmp_path_factory.getbasetemp()
    place = place.parent if "PYTEST_XDIST_WORKER" in os.environ else place
    monkeypatch.setenv("UNDERPAINT_CACHE", str(place / "cache"))


@pytest.fixture(autouse=True, scope="session")
def float32() -> Iterator[None]:
    """`precision: auto` is float32, and nothing is timed; test_precision.py says more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardware, "bf16_speedup", lambda width: 1.0)
        yield


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A recipe whose run takes a second."""
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """24 PNGs of 8×8 in the folders `dark` and `light`."""
    return write_pictures(tmp_path / "faces")


def write_pictures(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(24):
        label = ("dark", "light")[i % 2]
        (folder / label).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 90, (8, 8, 3), dtype=np.uint8) + np.uint8(120 * (i % 2))
        Image.fromarray(pixels).save(folder / label / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with the labels `dark` and `light`; not to be written to."""
    folder = tmp_path_factory.mktemp("trained")
    faces = write_pictures(folder / "faces")
    (folder / "small.yaml").write_text(SMALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNDERPAINT_CACHE", str(folder / "cache"))
        run = folder / "run"
        flags = ["--config", folder / "small.yaml", "--data", faces, "--out", run, "--quiet"]
        assert main(["train", *map(str, flags)]) == 0
    return run


@pytest.fixture
def wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Run a command that must be refused in one line; returns the line."""
    monkeypatch.setattr(screen, "FIRST", 1e9)  # however slow: no lines of progress

    def run(*arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == 2
        stdout, stderr = capsys.readouterr()
        assert stdout == ""
        assert stderr.startswith("underpaint: ")
        assert stderr.count("\n") == 1, stderr
        assert "Traceback" not in stderr
        return stderr.strip()

    return run
