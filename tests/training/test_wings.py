"""The parts of the package that a recipe asks for by name are imported then, and not before."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.runs import environment, metrics

WINGS = (
    *("dp", "sealed", "evaluation", "privacy", "compare", "planning", "report"),
    *("shards", "training.sharding"),
)

FRESH = f"""
import sys
import underpaint.training
print([name for name in sys.modules if name in ("fsspec", "aiohttp") or name.startswith(tuple(
    f"underpaint.{{wing}}" for wing in {WINGS}))])
"""

TRAIN = """
import sys
from underpaint import config
from underpaint.training import train

def stage(**more):
    return {"images": 16, "batch": 8, **more}

run = config.from_dict(
    config.Run,
    {
        "data": {"source": sys.argv[1]},
        "network": {"width": 64, "depth": 1, "heads": 2},
        "stages": {"first": stage(**__STAGE__)},
        "train": {"threads": 1, "precision": "fp32", "check_every": -1, "sample_every": -1},
    },
    "test: ",
)
train(run, sys.argv[2], quiet=True)
print(sorted({name.split(".")[1] for name in sys.modules if name.startswith("underpaint.")}
             & set(__WINGS__)))
"""


def fresh(code: str, *arguments: Path) -> str:
    """What `code` prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def trained(images: Path, out: Path, stage: str) -> str:
    """The wings that training such a stage imports."""
    code = TRAIN.replace("__STAGE__", stage).replace("__WINGS__", repr(WINGS))
    said = fresh(code, images, out)
    assert [m["images"] for m in metrics(out) if m["kind"] == "stage"] == [0, 16]
    return said


def test_training_imports_none() -> None:
    assert fresh(FRESH) == "[]"


def test_an_ordinary_stage_imports_none(images: Path, tmp_path: Path) -> None:
    assert trained(images, tmp_path / "run", "{}") == "[]"


def test_a_private_stage_trains(images: Path, tmp_path: Path) -> None:
    pytest.importorskip("opacus")
    dp = '{"dp": {"epsilon": 8, "labels": ["0", "1"]}}'
    assert trained(images, tmp_path / "run", dp) == "['dp']"
    assert (tmp_path / "run" / "privacy.log").read_text().count("first\n") == 2


def test_a_sealed_stage_trains(images: Path, tmp_path: Path) -> None:
    seal = (
        "import sys; from underpaint import config; from underpaint.sealed.writer import seal; "
        "seal(config.Data(source=sys.argv[1]), sys.argv[2], rate=0.5)"
    )
    fresh(seal, images, tmp_path / "images.up")
    stage = '{"mask": "block", "rate": 0.5}'
    assert trained(tmp_path / "images.up", tmp_path / "run", stage) == "['sealed']"
