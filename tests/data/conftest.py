"""Every test has its own cache; no test loads a picture from outside."""

from pathlib import Path

import pytest

from tests.data.pictures import noise, write_folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("UNDERPAINT_CACHE", str(folder))
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """40 PNGs of 8×8, 20 in `cats` and 20 in `dogs`."""
    return write_folder(tmp_path / "photos", noise(40), ["cats", "dogs"] * 20)
