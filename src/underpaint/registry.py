"""What a recipe may ask for beyond plain training: name → module, imported when it is asked for.

sealed   data that hold visible patches alone: `training_set(…)`, `check_network(…)`
sharding `training.train_state.TrainState` shared among processes: `ShardedState`
dp       differentially private stages: a `training.step_rule.StepRule`, `check_scope(…)`, …
"""

import importlib
from typing import Any

WINGS = {
    "sealed": "underpaint.sealed.training_set",
    "sharding": "underpaint.training.sharding",
    "dp": "underpaint.dp.stage",
}


def wing(name: str) -> Any:
    """The module of a wing, imported now."""
    return importlib.import_module(WINGS[name])
