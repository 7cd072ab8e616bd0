"""What a setting is: a field with its default, a sentence on it, and the values it may have."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Range:
    """The values that a setting may have, and how to ask for them."""

    least: float
    most: float = math.inf
    wanted: str = ""  # after "give"
    open: str = ""  # which ends are left out: "least", "most", "both"

    def refusal(self, value: float) -> str:
        """Why `value` is not in it; empty if it is. Infinity never is, nor is not-a-number."""
        above = value > self.least if self.open in ("least", "both") else value >= self.least
        below = value < self.most if self.open in ("most", "both") else value <= self.most
        if above and below and not math.isinf(value):
            return ""
        return f"{value:g}: give {self.wanted or f'a number from {self.least:g} up'}"


SEED = Range(0, 2**63 - 1, "a whole number from 0 to 2^63 - 1")
POSITIVE = Range(0, wanted="a number above 0", open="least")
FRACTION = Range(0, 1, "a number from 0 to below 1", "most")
HIDDEN_SHARE = Range(0, 1, "the hidden share, from 0 to below 1", "most")


def setting(default: Any, help: str, allowed: Range | None = None) -> Any:
    """A field with its default, the sentence that `--help` and docs/recipes.md print, its range."""
    metadata = {"help": help, "allowed": allowed}
    if isinstance(default, dict) or dataclasses.is_dataclass(default):
        return field(default_factory=type(default), metadata=metadata)
    return field(default=default, metadata=metadata)
