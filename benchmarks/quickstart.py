"""How long does the quick start take, and how near to real heads are those that it draws?

    python benchmarks/quickstart.py [--minutes 6]

Runs `underpaint quickstart` in a process of its own, on a quiet machine, and `underpaint evaluate`
on what it trained: the Fréchet distance of 1,000 samples to the 1,000 held-out heads in MobileNetV2
features (never an FID), and that of real images. Writes benchmarks/results/quickstart.json
and the pictures of README: docs/quickstart.png, docs/quickstart-transfer.png. Goals: at most 7
minutes with set-up, a distance of at most 30.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

from underpaint.cli.quickstart import MINUTES

OUT = Path(__file__).parent / "results" / "quickstart.json"
DOCS = Path(__file__).parents[1] / "docs"
OTHERS = ("transfer", "scratch")
COUNT, GAP = 1000, 16  # samples; pixels between grids


def underpaint(words: str) -> Any:
    """What a command prints as JSON."""
    command = [sys.executable, "-m", "underpaint", *words.split(), "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def below(grids: list[Image.Image]) -> Image.Image:
    """One below the other."""
    height = sum(grid.height + GAP for grid in grids) - GAP
    found, top = Image.new("RGB", (grids[0].width, height), "white"), 0
    for grid in grids:
        found.paste(grid, (0, top))
        top += grid.height + GAP
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        began = time.perf_counter()
        made = underpaint(f"quickstart --minutes {given.minutes:g} --out {place}/run")
        seconds = time.perf_counter() - began
        lines = Path(place, "run", "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        ends = [row for row in map(json.loads, lines) if row.get("event") == "end"]
        shutil.copy(made["samples"][-1], DOCS / "quickstart.png")
        parts = [sorted(Path(place, "run", n, "samples").glob("*.png"))[-1] for n in OTHERS]
        below([Image.open(part) for part in parts]).save(DOCS / "quickstart-transfer.png")
        scores = underpaint(f"evaluate {place}/run -n {COUNT}")["results"][0]["scores"]
    found = {
        "minutes": given.minutes,
        "seconds": round(seconds, 1),
        "images": ends[-1]["images"],
        "training_seconds": round(ends[-1]["seconds"], 1),
        "count": COUNT,
        "frechet": scores["held_out"]["frechet"],
        "frechet_interval": scores["held_out"]["frechet_interval"],
        "real": scores["floor"]["frechet"],
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
