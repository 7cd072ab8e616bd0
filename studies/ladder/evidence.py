"""What `underpaint plan` goes by: src/underpaint/planning/evidence.json, from studies' results.

    python -m studies.ladder.evidence [--ladder results.json]

- networks: the units `CANDIDATES` of studies/ladder that are done. Units of one network (the same
  patch, blocks, prediction and optimiser) are its points; settings are those of the longest.
- slope: of the tuned DiT of studies/acceleration, error ∝ images^-slope over its two budgets.
- batch: studies/batches had as many images in batches of 32 and of 8, each at its learning rate;
  that batches of 32 did worse by images^-slope says what one of their images is worth.
- masks: the cells of studies/where, and the masked arm of studies/acceleration in place of the
  untuned cell of the same mask.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from studies.ladder import run as ladder
from underpaint.compare import record
from underpaint.io import replace_text

STUDIES = Path(__file__).parent.parent
EVIDENCE = STUDIES.parent / "src" / "underpaint" / "planning" / "evidence.json"
MOST = 6  # networks, each of which `plan` times
PATCHES = 256  # an image in studies/acceleration
MASKS = ("patches", "mask", "rate", "block", "share", "batch", "low", "high", "seeds", "verdict")
KEPT = {  # settings that a plan takes over
    "space": ("patch",),
    "network": ("kind", "width", "depth", "heads", "mlp_ratio", "qk_norm", "options"),
    "noise": ("process", "prediction", "time", "stratified", "weighting", "gamma"),
    "train": ("optimizer", "betas", "weight_decay", "decay", "ema"),
}
STAGE = ("batch", "learning_rate", "warmup", "schedule", "cooldown", "clip")
ABOUT = (
    "Written by `python -m studies.ladder.evidence`. networks: drawn heads of 64×64, 20,000 of "
    "them (studies/ladder); error: mean squared error of x0 of held-out images; frechet: distance "
    "in MobileNetV2 features. slope: of one network error ∝ images^-slope (studies/acceleration). "
    "batch: an image in a batch m times as large is worth m^-batch images (studies/batches). "
    "masks: compute of a run with a masked first stage over that of whole images alone with the "
    "same error (studies/where, at the settings of an earlier study; studies/acceleration: the "
    "same tuning trials for both arms, at a larger budget)."
)


def networks(units: dict[str, Any]) -> list[dict[str, Any]]:
    """The candidates that are done, fewest parameters first."""
    from underpaint import config

    found: dict[str, dict[str, Any]] = {}
    for name in ladder.CANDIDATES:
        if name not in units:
            continue
        unit, run = units[name], config.to_dict(ladder.recipe(name, 1.0))
        settings = {part: {key: run[part][key] for key in keys} for part, keys in KEPT.items()}
        stage = {"stages": {"whole": {key: run["stages"]["whole"][key] for key in STAGE}}}
        point = {key: unit[key] for key in ("images", "flops", "error", "frechet")}
        entry = found.setdefault(json.dumps(settings), {"parameters": unit["parameters"]})
        entry["measured"] = sorted(
            [*entry.get("measured", []), point], key=lambda p: float(p["images"])
        )
        if entry["measured"][-1] is point:
            entry["settings"] = settings | stage
    if not 0 < len(found) <= MOST:
        raise SystemExit(f"{len(found)} networks: a plan times one to {MOST}; see CANDIDATES")
    return sorted(found.values(), key=lambda entry: int(entry["parameters"]))


def slope(acceleration: dict[str, Any]) -> float:
    """By how much the error of one network falls, in logarithms of error and of images."""
    runs = [run for run in acceleration["runs"] if run["arm"] == "unmasked"]
    found = np.polyfit(
        np.log([run["images"] for run in runs]), np.log([run["score"] for run in runs]), 1
    )
    return -float(found[0])


def batch(batches: dict[str, Any], slope: float) -> float:
    """What an image is worth in a larger batch, in logarithms."""
    large, small = (batches["units"][name]["held_out"] for name in ("batch-32", "batch-8"))
    return math.log(large / small) / slope / math.log(32 / 8)


def masks(where: dict[str, Any], acceleration: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells of both studies."""
    stage = acceleration["study"]["arms"]["masked"]["settings"]["stages"]["masked"]
    found = acceleration["verdicts"]["masked"]
    tuned = {
        "patches": PATCHES,
        **{key: stage[key] for key in ("mask", "rate", "block")},
        "share": acceleration["study"]["arms"]["masked"]["shares"]["masked"],
        "batch": stage["batch"] // acceleration["chosen"]["masked"]["batch"],
        **{key: found[key] for key in ("low", "high")},
        "seeds": len(found["seeds"]),
        "verdict": found["answer"],
        "source": "studies/acceleration",
    }
    same = ("patches", "mask", "rate", "block")
    cells = [{key: cell[key] for key in (*MASKS, "source")} for cell in where["cells"]]
    return [*(cell for cell in cells if any(cell[k] != tuned[k] for k in same)), tuned]


def evidence(results: Path) -> dict[str, Any]:
    """All that the studies say; `results`: the ladder's."""
    acceleration = record.read(STUDIES / "acceleration" / "results.json")
    where, batches = (
        json.loads((STUDIES / name / "results.json").read_text(encoding="utf-8"))
        for name in ("where", "batches")
    )
    fall = slope(acceleration)
    return {
        "about": ABOUT,
        "slope": round(fall, 4),
        "batch": round(batch(batches, fall), 4),
        "networks": networks(json.loads(results.read_text(encoding="utf-8"))["units"]),
        "masks": masks(where, acceleration),
    }


def main() -> None:
    """Write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--ladder", type=Path, default=ladder.HERE / "results.json", help="the ladder's results"
    )
    given = parser.parse_args()
    replace_text(EVIDENCE, record.text(evidence(given.ladder)))


if __name__ == "__main__":
    main()
