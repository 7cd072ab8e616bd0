"""One small export, which the tests of this folder share."""

from pathlib import Path

import pytest

from tests.interop.small import build
from underpaint.interop import export
from underpaint.model import Model


@pytest.fixture(scope="session")
def small() -> Model:
    return build(sampling={"guidance": 1.5})


@pytest.fixture(scope="session")
def folder(small: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model's ONNX folder, as the command writes it."""
    place = tmp_path_factory.mktemp("onnx")
    small.save(place / "model")
    export.export(place / "model", "onnx", place / "out")
    return place / "out"
