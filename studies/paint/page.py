"""What studies/paint found: effects, tables and the figure."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from studies.lib.page import Page, Section, Table

__all__ = ["draw", "effects", "page"]

SCORES = {"error": "error", "features": "feature distance", "frechet": "FD-MobileNetV2"}
MASKS = {
    "centre": "centre, a quarter of the area",
    "blocks": "blocks, half of it",
    "right": "the right half",
}
SETS = ("heads", "photographs")
ARMS = ("whole", "parts")
SEED = 1  # of the figure


def effects(results: dict[str, Any]) -> dict[str, Any]:
    """Of each set, mask and score the ratio parts / whole with its interval, paired by seed."""
    found: dict[str, Any] = {}
    for which in SETS:
        for mask in MASKS:
            for score in SCORES:
                pairs = [pair for seed in (1, 2, 3) if (pair := _pair(results, which, seed))]
                if len(pairs) < 2:
                    continue
                values = [[unit["masks"][mask][score] for unit in pair] for pair in pairs]
                found[f"{which}, {mask}, {score}"] = _ratio(values)
    return found


def _pair(results: dict[str, Any], which: str, seed: int) -> list[dict[str, Any]]:
    """Both arms of a seed, or nothing where one is not done."""
    names = [f"{which}-{arm}-{seed}" for arm in ARMS]
    return [results[name] for name in names] if all(name in results for name in names) else []


def _ratio(values: list[list[float]]) -> dict[str, Any]:
    """Of [whole, parts] of each seed: parts / whole, geometric mean and 95 % t-interval."""
    logs = np.log([parts / whole for whole, parts in values])
    wide = float(stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs)))
    mean = float(logs.mean())
    whole, parts = np.mean(values, 0)
    return {
        "whole": float(whole),
        "parts": float(parts),
        "ratio": math.exp(mean),
        "low": math.exp(mean - wide),
        "high": math.exp(mean + wide),
        "seeds": len(values),
    }


def page(told: dict[str, Any]) -> Page:
    """The answer and its table."""
    found = told["effects"]
    done = {name: unit for name, unit in told["units"].items() if name.startswith("resample-")}
    often = [
        [str(unit["settings"]["resample"]), f"{scores['error']:.4f}", f"{scores['features']:.2f}"]
        for unit in done.values()
        for scores in [unit["masks"]["centre"]]
    ]
    better = [name for name, effect in found.items() if effect["high"] < 1]
    worse = [name for name, effect in found.items() if effect["low"] > 1]
    seeds = max((effect["seeds"] for effect in found.values()), default=0)
    budget = told["budget"]
    answer = [
        f"Of {len(found)} comparisons, {len(SETS)} sets of pictures by {len(MASKS)} masks by "
        f"{len(SCORES)} scores, the model that learned from parts first is better in "
        f"{len(better)}, worse in {len(worse)}, and {len(found) - len(better) - len(worse)} are "
        f"undecided (95 % intervals over {seeds} seeds, each for itself)."
    ]
    if not found:
        answer = ["Not known yet: of no set of pictures both arms are done for two seeds."]
    for which in SETS:
        errors = [found[f"{which}, {mask}, error"] for mask in MASKS if _has(found, which, mask)]
        if errors:
            said = ", ".join(
                f"{effect['ratio']:.2f} ({effect['low']:.2f} to {effect['high']:.2f})"
                for effect in errors
            )
            masks = ", ".join(mask for mask in MASKS if _has(found, which, mask))
            answer.append(
                f"On {which} its error in what it drew is this many times that of the model of "
                f"whole images ({masks}): {said}."
            )
    columns = ["pictures", "erased", "score", "filled", "whole", "parts", "ratio", "95 %"]
    rows = [_row(name, effect, told["units"]) for name, effect in found.items()]
    return Page(
        "Does a model that learned from parts complete pictures better?",
        answer,
        [
            *([Section("The figures", tables=[Table(columns, rows)])] if rows else []),
            Section(
                "How often is each step taken?",
                [
                    "A DiT of drawn heads repaints the centre of 64 held-out heads of 32×32. Time "
                    "grows nearly as much as the number. `underpaint edit` takes each step 5 times."
                ],
                [Table(["times", "error", "feature distance"], often)],
            ),
            *([_shown()] if _all_shown(told["units"]) else []),
            Section(
                "What was done",
                [
                    f"The recipe `{told['recipe']}` of studies/ladder with {budget:.0e} training "
                    "FLOPs a model, on 64×64 pictures: on whole images (`whole`), or half of the "
                    "FLOPs on images of which nine tenths are hidden in blocks of 2×2 patches, in "
                    "batches of 64 instead of 16, then on whole ones (`parts`).",
                    f"{told['count']} held-out pictures of half B are repainted with the seeds "
                    "from 0, Heun in ten steps, each step taken five times, no soft edge, heads "
                    "with their labels. Error: mean squared, of the erased pixels from "
                    "−1 to 1, against what was there. Feature distance: of each whole repainted "
                    "picture to the truth in MobileNetV2's features. FD-MobileNetV2: of all of "
                    "them to all truths; no FID. `filled`: the erased part in the mean colour of "
                    "what is kept. `ratio`: parts / whole, geometric mean over seeds, with its "
                    "t-interval.",
                    "To repeat: `python -m studies.paint.run`; every number is in `results.json`.",
                ],
            ),
        ],
    )


def _all_shown(results: dict[str, Any]) -> bool:
    """Whether all is done that the figure shows."""
    return all(f"{which}-{arm}-{SEED}" in results for which in SETS for arm in ARMS)


def _shown() -> Section:
    return Section(
        "What is drawn",
        [
            "![Heads and photographs with their centre erased and drawn anew](repainted.png)",
            "Above heads, below photographs, each: the truth, what is kept, as the model of whole "
            "images draws the rest, and as the one that began with parts does "
            f"(seed {SEED}; the first held-out pictures, not chosen).",
        ],
    )


def _has(found: dict[str, Any], which: str, mask: str) -> bool:
    return f"{which}, {mask}, error" in found


def _row(name: str, effect: dict[str, Any], results: dict[str, Any]) -> list[str]:
    which, mask, score = name.split(", ")
    filled = results[f"{which}-{ARMS[0]}-{SEED}"]["masks"][mask]["filled"][score]
    digits = 4 if score == "error" else 2
    numbers = [f"{value:.{digits}f}" for value in (filled, effect["whole"], effect["parts"])]
    ratio, interval = f"{effect['ratio']:.3f}", f"{effect['low']:.3f}–{effect['high']:.3f}"
    return [which, MASKS[mask], SCORES[score], *numbers, ratio, interval]


def draw(work: Path, path: Path) -> None:
    """The figure, of the pictures that the runs left in `work`, if all that it shows are there."""
    from underpaint import pictures

    files = [work / f"{which}-{arm}-{SEED}.npz" for which in SETS for arm in ARMS]
    if not all(file.is_file() for file in files):
        return
    rows: list[np.ndarray] = []
    for which in SETS:
        whole, parts = (np.load(work / f"{which}-{arm}-{SEED}.npz") for arm in ARMS)
        kept = np.where(whole["centre kept"][..., None], whole["truth"], 128).astype(np.uint8)
        rows += [whole["truth"], kept, whole["centre"], parts["centre"]]
    pictures.grid(np.concatenate(rows), len(rows[0])).save(path, optimize=True)
