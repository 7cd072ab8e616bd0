"""Which masked first stage is best for the acceleration study? Ten of them, one seed, half A.

    python -m studies.lib.draw                  the pictures, once
    python -m studies.masks.run                 as many processes as there are cores

Each run spends the FLOPs of a trial of studies/acceleration, on the same pictures, network and
held-out half A, at a learning rate of 4e-3: the best of the unmasked arm. What wins is that study's
masked arm. A choice of one among ten flatters the winner; so it is reported there with other seeds
and on half B.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from studies.lib import units
from underpaint.compare import study

HERE = Path(__file__).parent
STUDY = HERE.parent / "acceleration" / "study.yaml"
RATE = 4e-3  # learning rate


class First(NamedTuple):
    """A masked first stage, and the batch of the whole images after it."""

    mask: str
    block: int  # of the mask block alone
    rate: float
    share: float
    batch: int
    after: int

    @property
    def name(self) -> str:
        """As in file names."""
        kind = f"block{self.block}" if self.mask == "block" else self.mask
        return f"{kind}-{self.rate:g}-share-{self.share:g}-batch-{self.batch}-{self.after}"


FIRST = [
    First("block", 2, 0.9, 0.5, 8, 8),
    First("block", 2, 0.9, 0.5, 4, 4),
    First("block", 2, 0.75, 0.5, 8, 8),
    First("patch", 2, 0.75, 0.5, 8, 8),
    First("block", 2, 0.9, 0.25, 8, 8),
    First("block", 2, 0.9, 0.5, 16, 4),
    First("block", 2, 0.9, 0.5, 32, 4),
    First("block", 2, 0.9, 0.25, 16, 4),
    First("patch", 2, 0.75, 0.5, 16, 4),
    First("patch", 2, 0.75, 0.25, 16, 4),
]


def recipe(first: First, scale: float) -> Any:
    """The run of a unit: as a trial of the study, with this first stage."""
    import dataclasses

    found = study.load(STUDY)
    own = {"mask": first.mask, "block": first.block, "rate": first.rate, "batch": first.batch}
    found.arms["masked"].settings = {"stages": {"masked": own}}
    chosen = {"learning_rate": RATE, "batch": first.after, "patch": 4}
    run = study.recipe(found, "masked", chosen)
    run.train = dataclasses.replace(run.train, seed=0, threads=1)
    shares = {"masked": first.share, "whole": 1 - first.share}
    point = found.tuning.point * scale
    return study.scaled(run, shares, found.budget, point, (64, 64), 3, 8)


def do(unit: str, work: Path, scale: float) -> dict[str, Any]:
    """Train one, begun or gone on with, and score it."""
    from underpaint.compare.split_scoring import measure

    first = next(first for first in FIRST if first.name == unit)
    folder = work / unit
    spent = units.trained(recipe(first, scale), folder)
    most = study.load(STUDY).images
    score = measure(folder, "held-out loss", "A", most=most, extractor="")
    return {"score": score, **spent}


def write(work: Path, out: Path, scale: float) -> None:
    """The JSON of all units that are done, the best first."""
    settings = {first.name: first._asdict() for first in FIRST}
    results = units.gather(settings, work, settings.__getitem__)
    found = dict(sorted(results.items(), key=lambda unit: float(unit[1]["score"])))
    units.write_json(out, {**units.made(), "scale": scale, "learning_rate": RATE, "units": found})


if __name__ == "__main__":
    raise SystemExit(
        units.main(__doc__ or "", (first.name for first in FIRST), HERE / "results.json", do, write)
    )
