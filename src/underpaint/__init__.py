"""Train image diffusion models from scratch on your own images, cheaply.

    import underpaint as up

    run = up.preset("default")
    run.data.source, run.data.size = "photos", (64,)
    up.train(run, "runs/photos")
    images = up.load("runs/photos").sample(16, seed=0)  # uint8 [16, 64, 64, 3]

The parts work alone, too: `underpaint.core.masks`, `underpaint.backbones`, `underpaint.data`, …
They are imported when they are used: `import underpaint` itself is cheap.
"""

import importlib
from typing import TYPE_CHECKING, Any

from underpaint._version import __version__

if TYPE_CHECKING:
    from underpaint.api import audit, evaluate, finetune, resume, train
    from underpaint.config import Run, preset, presets
    from underpaint.data import prepare
    from underpaint.errors import Interrupted, RunFailed, UserError
    from underpaint.model import Model, load
    from underpaint.pictures import grid

__all__ = [
    "Interrupted",
    "Model",
    "Run",
    "RunFailed",
    "UserError",
    "__version__",
    "audit",
    "evaluate",
    "finetune",
    "grid",
    "load",
    "prepare",
    "preset",
    "presets",
    "resume",
    "train",
]

_HOME = {
    **dict.fromkeys(["train", "resume", "finetune", "evaluate", "audit"], "api"),
    **dict.fromkeys(["Run", "preset", "presets"], "config"),
    **dict.fromkeys(["Interrupted", "RunFailed", "UserError"], "errors"),
    **dict.fromkeys(["Model", "load"], "model"),
    "prepare": "data",
    "grid": "pictures",
}


def __getattr__(name: str) -> Any:
    """A public name from the module that defines it, on first use (PEP 562)."""
    if name in _HOME:
        value = getattr(importlib.import_module(f"underpaint.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    try:  # a part of the package, so that `import underpaint as up; up.core.masks` works
        return importlib.import_module(f"underpaint.{name}")
    except ModuleNotFoundError:
        raise AttributeError(f"module 'underpaint' has no attribute '{name}'") from None


def __dir__() -> list[str]:
    return [*__all__]
