"""Where masked training has paid so far: `evidence.json`, measured by studies, cited by `plan`.

A cell is an arm of a study: so many patches an image, hidden in this way for this share of the
budget. Its ratio is the compute at which the masked arm reached the unmasked one's score over that
of the unmasked one: below 1 it pays. Cells inside the noise are `undecided`. A study overwrites the
file by script; no figure of it stands in code.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from underpaint.compare.verdict import Answer
from underpaint.io import replace_text

__all__ = ["Cell", "Evidence", "load", "write"]


@dataclass(frozen=True)
class Cell:
    """One measured arm."""

    patches: int  # an image
    mask: str
    rate: float
    block: int  # side of a block in patches (mask: block); else 1
    share: float  # of the FLOPs that were spent masked
    batch: int  # masked images a step for each whole image of a step
    low: float | None  # compute over the baseline's: the range or interval of the ratio
    high: float | None
    seeds: int
    verdict: Answer
    source: str

    def sentence(self) -> str:
        """What was found, for a person."""
        ratio = ""
        if self.low is not None and self.high is not None:
            ratio = f", {self.low:.2f} to {self.high:.2f} of the compute"
        seeds = f"{self.seeds} seed" + ("s" if self.seeds != 1 else "")
        kind = f"mask {self.mask}" + (f" {self.block}×{self.block}" if self.block > 1 else "")
        return (
            f"at {self.patches} patches {kind} at {self.rate:g}: {self.verdict}{ratio} "
            f"({seeds}; {self.source})"
        )


@dataclass(frozen=True)
class Evidence:
    """All cells, and where they come from."""

    about: str
    cells: tuple[Cell, ...]

    def nearest(self, patches: int) -> Cell:
        """The best cell of the number of patches nearest in ratio: one that pays, if any does.

        Of those with one verdict that with most seeds, which is the best known and has not won by
        luck; of equals the one with the lowest upper end.
        """
        there = min({c.patches for c in self.cells}, key=lambda p: abs(math.log(p / patches)))
        order = {"pays": 0, "undecided": 1, "does not pay": 2}

        def rank(cell: Cell) -> tuple[int, int, float]:
            return order[cell.verdict], -cell.seeds, math.inf if cell.high is None else cell.high

        return min((cell for cell in self.cells if cell.patches == there), key=rank)


def load() -> Evidence:
    """The evidence that this version of the package has."""
    file = resources.files("underpaint") / "planning" / "evidence.json"
    found = json.loads(file.read_text(encoding="utf-8"))
    return Evidence(found["about"], tuple(Cell(**cell) for cell in found["cells"]))


def write(evidence: Evidence, path: Path) -> None:
    """Write `evidence` as the file that `load` reads; for the script of a study."""
    values: dict[str, Any] = {
        "about": evidence.about,
        "cells": [dataclasses.asdict(cell) for cell in evidence.cells],
    }
    replace_text(path, json.dumps(values, indent=1, ensure_ascii=False) + "\n")
