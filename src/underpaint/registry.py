"""What a recipe may ask for beyond plain training: name → module, imported when it is asked for.

The wings of the package are imported by none of the modules that train an ordinary recipe; this
table is where those find them.

    sealed   data that hold visible patches alone: `is_sealed(path)`, `training_set(…)`
    dp       differentially private stages: the functions of `training.step_rule.StepRule`, and
             `check_scope(…)`
"""

import importlib
from typing import Any

__all__ = ["WINGS", "wing"]

WINGS = {
    "sealed": "underpaint.sealed.training_set",
    "dp": "underpaint.dp.stage",
}


def wing(name: str) -> Any:
    """The module of a wing, imported now."""
    return importlib.import_module(WINGS[name])
