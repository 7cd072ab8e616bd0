"""A model's folder that stands alone, with its card: what `Model.save` writes."""

from pathlib import Path
from typing import Any

from underpaint.model import Model


def check(model: Model) -> None:
    """Every model can be saved."""


def write(model: Model, folder: Path, half: bool) -> dict[str, Any]:
    """Fill `folder`; see `Model.save`."""
    model.write(folder, half=half)
    return {"half": half, "files": sorted(path.name for path in folder.iterdir())}
