"""The wheel holds everything that the commands need, outside of the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel, unpacked as an installer would."""
    out = tmp_path_factory.mktemp("wheel")
    source = out / "source"
    left = shutil.ignore_patterns("__pycache__", "*.egg-info")  # building leaves files behind
    shutil.copytree(ROOT / "src", source / "src", ignore=left)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source],
        check=True,
        capture_output=True,
    )
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(out / "site")
    return out / "site"


@pytest.mark.slow
def test_every_file_of_the_package_is_in_the_wheel(unpacked: Path) -> None:
    package = ROOT / "src" / "underpaint"
    files = {p.relative_to(package) for p in package.rglob("*") if p.is_file()}
    expected = {p for p in files if "__pycache__" not in p.parts and p.suffix != ".pyc"}
    found = {p.relative_to(unpacked / "underpaint") for p in unpacked.rglob("underpaint/**/*")}
    assert expected <= found
    assert list(unpacked.glob("*.dist-info/licenses/LICENSE"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--version"], "underpaint "),
        (["presets"], "quickstart"),
        (["prepare", "avatars:pixel-art", "--json"], '"images": 10000'),
        (["sample", "pretrained:lorelei", "-n", "2", "--steps", "2", "--out", "x.png"], "x.png"),
    ],
)
def test_commands_work_from_the_wheel(
    unpacked: Path, tmp_path: Path, arguments: list[str], expected: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "underpaint", *arguments],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(unpacked),
            "UNDERPAINT_CACHE": str(tmp_path / "cache"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout
