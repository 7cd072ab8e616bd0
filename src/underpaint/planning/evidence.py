"""What studies measured of networks and masks: `evidence.json`, which `plan` goes by and cites.

    slope      of one network error ∝ images^-slope
    batch      an image in a batch m times as large is worth m^-batch images
    networks   smallest first: settings of a recipe, and what was measured at 64×64
    masks      masked first stages: patches (coarsest tokens) an image, share of the FLOPs, batch
               (for a whole image a step), compute over that of whole images for the same error

`python -m studies.ladder.evidence` writes the file; no figure of it stands in code.
"""

import json
import math
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

Values = dict[str, Any]


FOUND = {"pays": "a gain", "undecided": "no clear gain", "does not pay": "no gain"}


@cache
def load() -> Values:
    """The evidence that this version of the package has."""
    file = resources.files("underpaint") / "planning" / "evidence.json"
    return dict(json.loads(file.read_text(encoding="utf-8")))


def expected(measured: list[Values], images: float, slope: float) -> float:
    """Error to expect of a network after so many images, which never rises with them.

    log(error) is linear in log(images) between what was measured. Beyond that nothing is gained;
    below it the error grows by images^-slope at least.
    """
    counts = np.log([point["images"] for point in measured])
    errors = np.minimum.accumulate(np.log([point["error"] for point in measured]))
    if len(counts) > 1:
        slope = max(slope, float((errors[0] - errors[1]) / (counts[1] - counts[0])))
    missing = max(0.0, float(counts[0]) - math.log(images))
    return math.exp(float(np.interp(math.log(images), counts, errors)) + slope * missing)


def nearest(cells: list[Values], patches: float) -> Values:
    """The best cell of the number of patches nearest in ratio: one that pays, if any does.

    Of those with one verdict that with most seeds, which is the best known and has not won by
    luck; of equals the one with the lowest upper end.
    """
    there = min({c["patches"] for c in cells}, key=lambda p: abs(math.log(p / patches)))
    order = {"pays": 0, "undecided": 1, "does not pay": 2}
    alike = [cell for cell in cells if cell["patches"] == there]
    return min(alike, key=lambda c: (order[c["verdict"]], -c["seeds"], c["high"] or math.inf))


def sentence(cell: Values) -> str:
    """What was found, for a person."""
    block = f" {cell['block']}×{cell['block']}" if cell["block"] > 1 else ""
    masks = f"mask {cell['mask']}{block}, {cell['rate']:.0%} hidden"
    needed = f"needed {cell['low']:.2f} to {cell['high']:.2f} of the compute" if cell["low"] else ""
    found = f"at {cell['patches']} patches, masking ({masks}) {needed or 'was tried'}"
    return f"{found}: {FOUND[cell['verdict']]} ({cell['seeds']} seeds; {cell['source']})"
