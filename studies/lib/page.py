"""The page of a study: its answer in words, figures, tables, and what was done."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

__all__ = ["Figure", "Page", "Section", "Table", "cost", "style_sheet"]

TEMPLATE = Path(__file__).with_name("page.html.jinja")


def style_sheet() -> str:
    """That of the package's pages."""
    package = resources.files("underpaint")
    files = (package / "theme.css", package / "report" / "report.css")
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


@dataclass(frozen=True)
class Table:
    """Rows of text below column names; the first cell of a row names it."""

    columns: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """As in a README."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


@dataclass(frozen=True)
class Figure:
    """What draws a PNG, what it shows for those who cannot see it, and a line below."""

    draw: Callable[[Path], None]
    alt: str
    caption: str


@dataclass(frozen=True)
class Section:
    """A heading with tables and a figure, then paragraphs; `code` in backticks."""

    title: str
    paragraphs: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figure: Figure | None = None


@dataclass(frozen=True)
class Page:
    """The question, the answer, whose first line is the lead, and sections; one has a figure."""

    title: str
    answer: list[str]
    sections: list[Section]

    def write(self, path: Path) -> Path:
        """HTML in one file at `path`, and its figure beside it."""
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup, escape

        from underpaint.report.html import write_page

        def coded(text: str) -> Any:
            return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))

        def drawn(figure: Figure) -> str:
            image = path.with_suffix(".png")
            figure.draw(image)
            return "data:image/png;base64," + base64.b64encode(image.read_bytes()).decode()

        templates = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
        templates.lstrip_blocks = True
        templates.filters |= {"coded": coded, "drawn": drawn}
        text = templates.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
            css=Markup(style_sheet()),
            title=self.title,
            answer=self.answer,
            sections=self.sections,
        )
        return write_page(path, text)

    def markdown(self) -> str:
        """The page without its figure, as a README."""
        parts = [f"# {self.title}", *self.answer]
        for section in self.sections:
            if section.tables or section.paragraphs:
                tables = [table.markdown() for table in section.tables]
                parts += [f"## {section.title}", *tables, *section.paragraphs]
        return "\n\n".join(parts) + "\n"


def cost(units: Iterable[dict[str, Any]]) -> list[str]:
    """A line on what the training of `units` took, of those that tell their seconds."""
    found = [unit["seconds"] for unit in units if "seconds" in unit]
    if not found:
        return []
    minutes = f"{sum(found) / 60:,.0f} core-minutes"
    return [f"The training of {len(found)} runs took {minutes}, one thread each, as they ran."]
