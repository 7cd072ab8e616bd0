"""What the ladder found: verdicts, ends, rungs against their parents, and samples.

`python -m studies.ladder.page RUNS` draws samples.png from the grids of the ends beside their runs.
"""

from __future__ import annotations

import functools
import shutil
import sys
from pathlib import Path
from typing import Any

from studies.ladder import run as ladder
from studies.ladder import speed
from studies.ladder.verdicts import SCORES, SEEDS, Units
from studies.lib.page import Figure, Page, Section, Table
from underpaint.compare import record

LABEL = 24  # pixels above a grid
SAMPLES = ladder.HERE / "samples.png"
CAPTION = "The first samples of each end, of the same seeds; none picked by hand."
NAMES = {
    "ddpm": "the published DDPM recipe",
    "dit": "the tuned plain DiT",
    f"{ladder.BEST}-tenth": "the best recipe, a tenth of the compute",
    f"{ladder.BEST}-quarter": "the best recipe, a quarter of the compute",
    ladder.BEST: "the best recipe, the same compute",
}
DONE = [
    "Drawn heads of 64×64, 20,000 to learn from, if nothing else is said. A run begins with the "
    "settings of its parent; those of one table spend the same training FLOPs (three times the "
    "forward pass of each image, and the optimiser's), in float32, one seed. Error: of x0 of 512 "
    "held-out images. FD-MobileNetV2, never an FID: of 400 samples by Heun's method in ten steps "
    "to 400 images. A change stays where it lowers the distance, and the error after as many FLOPs "
    "and after as many seconds (by the slope, where it is timed). One seed cannot tell small "
    "differences.",
    "Ratios of compute, and how they were extrapolated where that is said: `verdicts.py`. Its "
    "slope is that of the tuned plain DiT between 3e13 and 6e13 FLOPs: at other budgets and of "
    "other networks it is an assumption. The error of the seconds is not in the intervals.",
    "Since these units were trained the hourglass has lost the average of its blocks' values with "
    "the first block's (a unit without it had the same scores) and has GELU itself instead of its "
    "approximation by tanh, which takes longer on a CPU: `-again` is the best recipe with it. "
    "`-stratified` also spreads the times of a batch over their law, as presets and `plan` do now.",
    "To repeat: `python -m studies.lib.draw`, `python -m studies.ladder.run` (`--table`: what "
    "there is to do), `python -m studies.ladder.speed` on a quiet machine, `make docs`.",
]


def change(values: dict[str, Any], start: str = "") -> list[str]:
    """The settings that a unit changes, but for pictures and lengths."""
    told = []
    for key, value in values.items():
        if isinstance(value, dict) and start + key not in ("data", "study"):
            told += change(value, f"{start}{key}.")
        elif not isinstance(value, dict) and key != "minutes":
            told.append(f"{start}{key} {value}")
    return told


def rung(unit: str, done: Units, speeds: dict[str, Any], slope: float) -> list[str]:
    """A unit against its parent."""
    (parent, changes), own = ladder.UNITS[unit], done[unit]
    error, equal, stays = own["error"], "–", "–"
    one, two = (ladder.settings(name) for name in (unit, parent or unit))
    same = one["data"] == two["data"] and one["study"]["images"] == two["study"]["images"]
    if parent in done and same and changes:
        pace = speed.by_flops(speeds, unit, parent)
        later = error * (pace or 1) ** slope  # after as many seconds
        equal = f"{later:.4f}" if pace else "–"
        lower = max(error, later) < done[parent]["error"]
        stays = "stays" if lower and own["frechet"] < done[parent]["frechet"] else "goes"
    timed = speeds.get("units", {}).get(unit, {})
    seconds = [f"{1e3 * timed[p]['seconds_an_image']:.2f}" for p in ("fp32", "bf16") if p in timed]
    flops = f"{own['flops'] / own['images'] / 1e9:.2f}"
    scores = [f"{error:.4f}", equal, f"{own['frechet']:.0f}"]
    return [
        *(unit, ", ".join(change(changes)) or ("pictures" if changes else "nothing"), *scores),
        *(flops, " / ".join(seconds) or "–", stays),
    ]


def rungs(done: Units, speeds: dict[str, Any], slope: float) -> list[Section]:
    """A section for each parent, with what was changed of it."""
    columns = ["run", "changed", "error", "after equal seconds", "FD-MobileNetV2"]
    columns += ["GFLOP an image", "ms an image, float32 / bf16", "the change"]
    children: dict[str, list[list[str]]] = {}
    for unit, (parent, _) in ladder.UNITS.items():
        if parent and unit in done and not unit.startswith("end-"):
            children.setdefault(parent, []).append(rung(unit, done, speeds, slope))
    found = []
    for parent, rows in children.items():
        if parent in done:
            itself = rung(parent, done, speeds, slope)
            rows.insert(0, [parent, "–", itself[2], "–", *itself[4:-1], "–"])
        found.append(Section(f"Changes of {parent}", tables=[Table(columns, rows)]))
    return found


def ends(done: Units) -> Section:
    """Mean scores of every end, and their range."""
    rows = []
    for name, (_, budget) in ladder.ENDS.items():
        if runs := [done[unit] for seed in SEEDS if (unit := f"end-{name}-{seed}") in done]:
            rows.append([name, f"{budget:.2g}", str(len(runs))])
            for score in SCORES:
                own = sorted(run[score] for run in runs)
                mean, low, high = (f"{v:.3g}" for v in (sum(own) / len(own), own[0], own[-1]))
                rows[-1].append(f"{mean} ({low} to {high})")
    table = Table(["recipe", "training FLOPs", "seeds", *SCORES.values()], rows)
    return Section("The ends", [] if rows else ["None is done yet."], [table] if rows else [])


def sheet(grids: dict[str, Path], path: Path) -> None:
    """The first two rows of each grid at half its size, each under its name."""
    from PIL import Image, ImageDraw, ImageFont

    images = [Image.open(grid).convert("RGB") for grid in grids.values()]
    images = [image.crop((0, 0, image.width, 2 * image.height // 3)).reduce(2) for image in images]
    size = max(i.width for i in images), sum(i.height + LABEL for i in images)
    canvas, y, font = Image.new("RGB", size, "white"), 0, ImageFont.load_default(13)
    for name, image in zip(grids, images, strict=True):
        ImageDraw.Draw(canvas).text((4, y + 4), name, fill="black", font=font)
        canvas.paste(image, (0, y + LABEL))
        y += LABEL + image.height
    canvas.save(path, optimize=True)


def page(results: dict[str, Any]) -> Page:
    """All that was found."""
    speeds, told = (record.read(ladder.HERE / f"{name}.json") for name in ("speed", "verdicts"))
    done, slope = results["units"], told["slope"]
    answer = [
        f"{row['title'][0].upper()}{row['title'][1:]} – {row['told']} ({row['conditions']})."
        for row in told["verdicts"]
        if row["told"]
    ]
    if missing := sorted({unit for row in told["verdicts"] for unit in row["missing"]}):
        answer.append(f"Not done yet: {', '.join(missing)}.")
    timed = "Seconds are not measured yet."
    if speeds:
        cpu = f"{speeds['cpu']} ({', '.join(speeds['flags']) or 'no bf16'})"
        timed = f"Seconds: of whole training steps on one thread, `speed.py`, on this CPU: {cpu}."
    figures = []
    if SAMPLES.is_file():
        drawn = Figure(functools.partial(shutil.copyfile, SAMPLES), "Samples of each end", CAPTION)
        figures.append(Section("Samples", figure=drawn))
    gain = Section("What a user gains", [told["gain"]])
    title = "What makes training cheaper, one ingredient after the other?"
    found = [*figures, gain, ends(done), *rungs(done, speeds, slope)]
    return Page(title, answer, [*found, Section("What was done", [*DONE, timed])])


def main() -> None:
    """Draw samples.png."""
    folder = Path(sys.argv[1])
    sheet({said: folder / f"end-{name}-1.png" for name, said in NAMES.items()}, SAMPLES)


if __name__ == "__main__":
    main()
