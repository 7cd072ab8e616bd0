"""Where does masking pay? Patches an image, kinds of mask and rates, at equal compute.

    python -m studies.lib.draw                  the pictures: 25,000 drawn heads of 64×64, once
    python -m studies.where.run                 as many processes as there are cores
    python -m studies.where.run --page          the page alone

Each cell is a run in two stages, the first masked for `SHARE` of the FLOPs, against runs of the
same network on whole images alone, at half, once and twice that budget. All see the same pictures
at a size that gives N patches of 4×4; the budget is proportional to N, so that about as many whole
images (10,000 to 13,000) are seen at every size. The score is the mean squared error of x0 of whole
held-out images (eight noise levels, averaged weights). Learning rate and batches are those that
were best in the acceleration study: small batches of whole images, larger ones of masked ones.

With m the cell's score and b that of whole images at the same budget and seed, the score of whole
images as a function of compute, shifted so that it passes through b, is asked where it reaches m:

    ratio = budget / compute of whole images with the cell's score

below 1: masking pays. The curve is piecewise linear in log compute; outside it (below 0.5, above
2) the ratio is a bound. `REPEATED` cells have three seeds. The spread s of their log ratios,
pooled, is the noise of all cells: ratio · exp(± t · s), divided by √seeds where there are several.
A cell whose interval holds 1 is undecided. `python -m studies.ladder.evidence` has the planner read
them.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from studies.lib import page as pages
from studies.lib import units
from underpaint.compare import study

HERE = Path(__file__).parent
PICTURES = Path("runs/data/lorelei-64.zip")
BUDGET = 8e10  # training FLOPs for each patch of an image
SHARE = 0.5
WHOLE_BATCH = 4
BATCH = {0.5: 4, 0.75: 8, 0.9: 16}  # by the masked share: no masked step costs more
HELD_OUT, SCORED = 5000, 512
LADDER = (0.5, 1.0, 2.0)
SIDES = {49: 28, 100: 40, 196: 56, 256: 64}  # patches an image: pixels a side


class Cell(NamedTuple):
    """One way to hide patches."""

    patches: int
    mask: str
    rate: float
    block: int = 1

    @property
    def name(self) -> str:
        """As in file names."""
        kind = f"block{self.block}" if self.mask == "block" else self.mask
        return f"{self.patches}-{kind}-{self.rate:g}"


CELLS = [
    *(Cell(patches, "patch", 0.75) for patches in SIDES),
    Cell(100, "block", 0.75, 2),
    Cell(256, "patch", 0.5),
    Cell(256, "patch", 0.9),
    Cell(256, "block", 0.75, 2),
    Cell(256, "block", 0.9, 2),
    Cell(256, "block", 0.9, 4),
    Cell(256, "crop", 0.75),
    Cell(256, "salient", 0.75),
]
REPEATED = [Cell(49, "patch", 0.75), Cell(100, "patch", 0.75), Cell(256, "block", 0.9, 2)]
SEEDS = (1, 2, 3)

WHOLE = [f"{n}-whole-{point:g}_1" for n in SIDES for point in LADDER]
AGAIN = [f"{cell.patches}-whole-1_{seed}" for cell in REPEATED for seed in SEEDS[1:]]
ONCE = [f"{cell.name}_1" for cell in CELLS]
MORE = [f"{cell.name}_{seed}" for cell in REPEATED for seed in SEEDS[1:]]
UNITS = [*WHOLE, *ONCE, *AGAIN, *MORE]


def recipe(unit: str, scale: float, pictures: str) -> Any:
    """The run of a unit."""
    from underpaint import config

    name, seed = unit.split("_")
    cell = next((cell for cell in CELLS if cell.name == name), None)
    patches = int(name.split("-")[0])
    size = (SIDES[patches], SIDES[patches])
    stage = {"batch": WHOLE_BATCH, "learning_rate": 4e-3, "minutes": 0, "images": 4, "warmup": 200}
    masked = None
    if cell is not None:
        own = {"mask": cell.mask, "rate": cell.rate, "block": cell.block, "batch": BATCH[cell.rate]}
        masked = stage | own
    run = config.from_dict(
        config.Run,
        {
            "data": {"source": pictures, "size": size[0], "held_out": str(HELD_OUT)},
            "noise": units.INDEPENDENT,
            "stages": {"masked": masked, "whole": stage | {"schedule": "cooldown"}},
            "train": {"threads": 1, "seed": int(seed), "sample_every": -1, "check_every": -1},
        },
        "where: ",
        units.base("quickstart"),
    )
    point = 1.0 if cell else float(name.rsplit("-", 1)[1])
    shares = {"masked": SHARE, "whole": 1 - SHARE} if cell else {"whole": 1.0}
    return study.scaled(run, shares, BUDGET * patches, point * scale, size, 3, 8)


def settings(unit: str) -> dict[str, Any]:
    """What the name of a unit stands for."""
    name, seed = unit.split("_")
    cell = next((cell._asdict() for cell in CELLS if cell.name == name), None)
    if cell is None:
        patches, mask, point = name.split("-")
        cell = {"patches": int(patches), "mask": mask, "point": float(point)}
    return cell | {"seed": int(seed)}


def train(unit: str, work: Path, scale: float, pictures: str) -> dict[str, Any]:
    """One unit, begun or gone on with."""
    from underpaint.compare.split_scoring import measure

    folder = work / unit
    spent = units.trained(recipe(unit, scale, pictures), folder)
    score = measure(folder, "held-out loss", "B", most=SCORED, extractor="")
    return {"score": score, **spent}


def log_ratio(results: dict[str, Any], cell: Cell, seed: int) -> tuple[str, float] | None:
    """ "=" or the side on which the curve ends, and log(budget / compute of whole images)."""
    names = [f"{cell.patches}-whole-{point:g}_1" for point in LADDER]
    asked = [*names, f"{cell.patches}-whole-1_{seed}", f"{cell.name}_{seed}"]
    if not all(name in results for name in asked):
        return None
    curve = [results[name]["score"] for name in names]
    shift = results[asked[-2]]["score"] - results[f"{cell.patches}-whole-1_1"]["score"]
    wanted = results[asked[-1]]["score"] - shift
    if wanted > curve[0]:
        return ">", -math.log(LADDER[0])
    for low, high, a, b in zip(LADDER, LADDER[1:], curve, curve[1:], strict=False):
        if a >= wanted > b:
            share = (a - wanted) / (a - b)
            return "=", -(math.log(low) + share * math.log(high / low))
    return "<", -math.log(LADDER[-1])


def pace(unit: dict[str, Any]) -> float | None:
    """Seconds of both stages over those of whole images with as many FLOPs, as they ran."""
    seconds = unit.get("stage_seconds")
    if seconds is None:
        return None
    return float(sum(seconds.values()) * (1 - SHARE) / seconds["whole"])


def judged(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Ratio and verdict of each cell that is done, in the form of planning/evidence.json."""
    import numpy as np
    from scipy import stats

    found = {cell: [log_ratio(results, cell, seed) for seed in SEEDS] for cell in CELLS}
    there = {cell: [r for r in own if r is not None] for cell, own in found.items()}
    spreads = [
        (np.var([v for _, v in there[cell]], ddof=1), len(there[cell]) - 1)
        for cell in REPEATED
        if len(there[cell]) > 1
    ]
    freedom = sum(n for _, n in spreads)
    spread = math.sqrt(sum(v * n for v, n in spreads) / freedom) if freedom else None
    told = []
    for cell, own in there.items():
        if not own:
            continue
        relations = {relation for relation, _ in own}
        middle = float(np.mean([value for _, value in own]))
        low = high = None
        verdict = "undecided"
        if spread is not None:
            half = float(stats.t.ppf(0.975, freedom)) * spread / math.sqrt(len(own))
            low, high = math.exp(middle - half), math.exp(middle + half)
            if relations <= {"=", "<"} and high < 1:
                verdict = "pays"
            elif relations <= {"=", ">"} and low > 1:
                verdict = "does not pay"
        known = (results.get(f"{cell.name}_{s}") for s in SEEDS)
        paces = [pace(found) for found in known if found]
        slow = [value for value in paces if value is not None]
        told.append(
            {
                **cell._asdict(),
                "share": SHARE,
                "batch": BATCH[cell.rate] // WHOLE_BATCH,
                "ratio": math.exp(middle),
                "relation": relations.pop() if len(relations) == 1 else "mixed",
                "low": low,
                "high": high,
                "seeds": len(own),
                "verdict": verdict,
                "slowdown": float(np.mean(slow)) if len(slow) == len(paces) else None,
                "source": "studies/where",
            }
        )
    return told


def write(work: Path, out: Path, scale: float) -> None:
    """The JSON of all units that are done, and the map of the cells."""
    results = units.gather(UNITS, work, settings)
    about = {**units.made(), "scale": scale, "budget": BUDGET, "share": SHARE}
    found = {**about, "cells": judged(results), "units": results}
    units.write_json(out, found)
    page(found).write(out.with_suffix(".html"))


def page(found: dict[str, Any]) -> pages.Page:
    """All that was found."""
    cells, sections = found["cells"], []
    if cells:
        alt = "Compute with masks over compute without, by patches an image and way to hide them"
        drawn = pages.Figure(functools.partial(plot, cells), alt, "Below 1, masking is cheaper.")
        sections.append(pages.Section("The map", figure=drawn))
    rows = [
        [
            f"{cell['patches']} patches, {way(cell)}",
            f"{SIGNS[cell['relation']]}{cell['ratio']:.2f}",
            "–" if cell["low"] is None else f"{cell['low']:.2f} to {cell['high']:.2f}",
            str(cell["seeds"]),
            cell["verdict"],
            "–" if cell["slowdown"] is None else f"{cell['slowdown'] * cell['ratio']:.2f}",
        ]
        for cell in cells
    ]
    table = pages.Table(["cell", "ratio", "95 %", "seeds", "masking", "in time"], rows)
    sections.append(pages.Section("Every cell", tables=[table]))
    budget = f"{found['budget']:.0e}".replace("e+", "e")
    spent = f"{budget} training FLOPs for each patch of an image"
    sections.append(
        pages.Section(
            "What was done",
            [
                f"Drawn heads, at sizes that give so many patches of 4×4. Each cell spends {spent}"
                f", {100 * found['share']:.0f} % of them on masked images and the "
                "rest on whole ones. Whole images alone ran at half, once and twice that. The "
                "ratio is the compute of the cell over that at which whole images alone have the "
                "cell's error of x0 on held-out images, read off linearly in the logarithm of "
                "compute; ≤ and ≥ mean that it lies outside what was run. Compute is training "
                "FLOPs, of which a masked step does fewer a second: the last column is the ratio "
                "times what the cell's stages took over what as many FLOPs on whole images would "
                "have, at the pace of its second stage, on one core beside another run. "
                "`underpaint plan` measures this on the machine where it runs.",
                "Three cells and their baselines have three seeds. Their pooled spread is the noise"
                " of all cells: one whose interval holds 1 is undecided. Each is asked alone, so "
                f"that one of {len(cells)} may pay by chance, sooner one of a single seed. One "
                "network, one learning rate: a map to begin with, no verdict on other images.",
                *pages.cost(found["units"].values()),
                "To repeat: `python -m studies.lib.draw`, then `python -m studies.where.run`.",
            ],
        )
    )
    return pages.Page("Where does masking pay?", told(cells), sections)


def told(cells: list[dict[str, Any]]) -> list[str]:
    """The map in a sentence, and what the map of one seed cannot tell."""
    if not cells:
        return ["No cell is done yet."]
    count = {kind: sum(c["verdict"] == kind for c in cells) for kind in COLOURS}
    best = min(cells, key=lambda cell: cell["ratio"])
    return [
        f"Of {len(cells)} cells masking pays in {count['pays']}, does not pay in "
        f"{count['does not pay']}, and {count['undecided']} are undecided. The lowest ratio is "
        f"{SIGNS[best['relation']]}{best['ratio']:.2f}, of {best['patches']} patches, {way(best)}."
    ]


COLOURS = {"pays": "#9fd8a8", "does not pay": "#efaaa0", "undecided": "#dddddd"}
SIGNS = {"=": "", "<": "≤ ", ">": "≥ ", "mixed": "about "}


def way(cell: dict[str, Any]) -> str:
    """How a cell hides patches."""
    kind = f"blocks of {cell['block']}×{cell['block']}" if cell["block"] > 1 else cell["mask"]
    return f"{kind}, {100 * cell['rate']:.0f} %"


def plot(cells: list[dict[str, Any]], path: Path) -> None:
    """Patches an image across, ways to hide them down; green pays, red does not, grey undecided."""
    from matplotlib.figure import Figure

    ways, counts = list(dict.fromkeys(map(way, cells))), list(SIDES)
    figure = Figure(figsize=(7.2, 0.55 * len(ways) + 1.1), layout="constrained")
    axes = figure.subplots()
    for cell in cells:
        x, y = counts.index(cell["patches"]), ways.index(way(cell))
        axes.add_patch(_box(x, y, COLOURS[cell["verdict"]]))
        sign = SIGNS[cell["relation"]]
        axes.text(x, y, f"{sign}{cell['ratio']:.2f}\n{cell['verdict']}", ha="center", va="center")
    axes.set(xlim=(-0.5, len(counts) - 0.5), ylim=(len(ways) - 0.5, -0.5))
    axes.set_xticks(range(len(counts)), [str(n) for n in counts])
    axes.set_yticks(range(len(ways)), ways)
    axes.set(xlabel="patches an image", title="compute with masks / compute without, equal score")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    figure.savefig(path, dpi=120)


def _box(x: float, y: float, colour: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.48, y - 0.45), 0.96, 0.9, color=colour, lw=0)


def main() -> int:
    """All units that are not done yet."""
    import torch

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", default=UNITS, choices=UNITS, metavar="UNIT")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the budget")
    parser.add_argument("--pictures", default=str(PICTURES), help="the pictures of draw.py")
    parser.add_argument("--work", type=Path, default=Path("runs/where"), help="runs")
    parser.add_argument("--out", type=Path, default=HERE / "results.json", help="results")
    parser.add_argument("--page", action="store_true", help="write the page of --out and stop")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.page:
        found = json.loads(given.out.read_text(encoding="utf-8"))
        print(page(found).write(given.out.with_suffix(".html")))
        return 0
    units.restore(units.committed(given.out, given.scale).get("units", {}), given.work)
    return units.conduct(
        given.only,
        given.work,
        lambda unit: train(unit, given.work, given.scale, given.pictures),
        lambda: write(given.work, given.out, given.scale),
    )


if __name__ == "__main__":
    raise SystemExit(main())
