"""The page of studies/systems.py: its table, and the grids side by side."""

from __future__ import annotations

import base64
import json
from pathlib import Path

HERE = Path(__file__).parent


def page(out: Path) -> Path:
    """`out` as a page: the table, and the grids side by side."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    from underpaint.report import summary
    from underpaint.report.page import text_of, write_page

    def picture(unit: str) -> str | None:
        path = out.with_suffix("") / f"{unit}.png"
        if not path.is_file():
            return None
        return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()

    templates = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    templates.lstrip_blocks = True
    templates.filters |= {"flops": summary.flops}
    text = templates.from_string((HERE / "systems.html.jinja").read_text(encoding="utf-8")).render(
        css=Markup(text_of("page.css")),
        study=json.loads(out.read_text(encoding="utf-8")),
        arms={"two-stage": "two stages", "whole": "whole images only"},
        picture=picture,
    )
    return write_page(out.with_suffix(".html"), text)
