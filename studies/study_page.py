"""The page of a study: its answer in words, figures, tables, and what was done."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Figure", "Section", "Table", "cost", "write"]

TEMPLATE = Path(__file__).with_name("study.html.jinja")


@dataclass(frozen=True)
class Table:
    """Rows of text below column names; the first cell of a row names it."""

    columns: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Figure:
    """A PNG, what it shows for those who cannot see it, and a line below."""

    path: Path
    alt: str
    caption: str

    @property
    def data(self) -> str:
        """The picture as a data URL."""
        return "data:image/png;base64," + base64.b64encode(self.path.read_bytes()).decode()


@dataclass(frozen=True)
class Section:
    """A heading with tables and figures, then paragraphs; `code` in backticks."""

    title: str
    paragraphs: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)


def cost(units: Iterable[dict[str, Any]]) -> list[str]:
    """A line on what the training of `units` took, of those that tell their seconds."""
    found = [unit["seconds"] for unit in units if "seconds" in unit]
    if not found:
        return []
    minutes = f"{sum(found) / 60:,.0f} core-minutes"
    return [f"The training of {len(found)} runs took {minutes}, one thread each, as they ran."]


def write(path: Path, title: str, answer: list[str], sections: list[Section]) -> Path:
    """The page as one file at `path`: the first line of `answer` is the lead, the others notes."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup, escape

    from underpaint.report.page import text_of, write_page

    def coded(text: str) -> Any:
        return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))

    templates = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    templates.lstrip_blocks = True
    templates.filters["coded"] = coded
    text = templates.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        css=Markup(text_of("page.css")), title=title, answer=answer, sections=sections
    )
    return write_page(path, text)
