"""The page of studies/systems/run.py: its table, and the samples side by side.

The samples of all units stand in one picture: a row for each system, a column for each arm.
"""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

from PIL import Image

from studies.lib.page import style_sheet

HERE = Path(__file__).parent
ARMS = {"two-stage": "two stages", "whole": "whole images only"}
GRID, GAP = (804, 304), 12  # pixels of a unit's grid, and between two


def place(row: int, arm: str) -> tuple[int, int, int, int]:
    """Where the grid of a unit stands."""
    x, y = list(ARMS).index(arm) * (GRID[0] + GAP), row * (GRID[1] + GAP)
    return x, y, x + GRID[0], y + GRID[1]


def paste(path: Path, grids: dict[tuple[int, str], Path]) -> None:
    """Put grids, by row and arm, into the picture at `path`, which keeps what else it has."""
    if not grids:
        return
    before = Image.open(path).convert("RGB") if path.is_file() else Image.new("RGB", (0, 0))
    right, below = place(0, list(ARMS)[-1])[2], max(place(*where)[3] for where in grids)
    sheet = Image.new("RGB", (right, max(below, before.height)), "white")
    sheet.paste(before)
    for where, grid in grids.items():
        sheet.paste(Image.open(grid), place(*where))
    sheet.save(path, optimize=True)


def page(out: Path) -> Path:
    """`out` as a page: the table, and the grids side by side."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    from underpaint.report import summary
    from underpaint.report.html import write_page

    study = json.loads(out.read_text(encoding="utf-8"))
    path = samples(out)
    sheet = Image.open(path) if path.is_file() else None

    def picture(system: str, arm: str) -> str | None:
        where = place(list(study["systems"]).index(system), arm)
        if sheet is None or "scores" not in study["systems"][system]["units"][arm]:
            return None  # latents have no samples
        data = io.BytesIO()
        sheet.crop(where).save(data, "PNG", optimize=True)
        return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()

    templates = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    templates.lstrip_blocks = True
    templates.filters |= {"flops": summary.flops}
    text = templates.from_string((HERE / "page.html.jinja").read_text(encoding="utf-8")).render(
        css=Markup(style_sheet()), study=study, arms=ARMS, picture=picture
    )
    return write_page(out.with_suffix(".html"), text)


def samples(out: Path) -> Path:
    """The picture that belongs to `out`."""
    return out.with_name("samples.png")
