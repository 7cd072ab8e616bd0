"""From a template of this package to a page: one file that needs no network and no scripts."""

import base64
import functools
import io
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from underpaint import pictures
from underpaint.bounded import read_regular
from underpaint.data.decode import Unreadable, open_image
from underpaint.io import replace_text, writing
from underpaint.report import summary

HERE = Path(__file__).parent
LARGE = 400_000  # bytes of a PNG above which it is embedded as WebP


def render(template: str, **values: Any) -> str:
    """The page of a template of this package."""
    return _templates().get_template(template).render(**values)


@functools.cache
def sentences() -> Any:
    """The macros of `sentences.jinja`, and its words for settings, by their names."""
    return _templates().get_template("sentences.jinja").module


@functools.cache
def _templates() -> Environment:
    templates = Environment(
        loader=FileSystemLoader([HERE, HERE.parent]),  # theme.css stands above
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {
        "capital": lambda sentence: sentence[:1].upper() + sentence[1:],
        "clock": summary.clock,
        "flops": summary.flops,
        "magnitude": summary.count,
        "number": lambda value: f"{value:.3f}",
        "of_100": lambda share: f"{100 * share:.0f}",
        "percent": summary.percent,
        "p": lambda p: f"= {p:.2g}" if p >= 1e-4 else "below 0.0001",
        "picture": picture,
        "share": lambda share: f"{share:.1%}",
    }
    return templates


def write_page(path: Path, page: str) -> Path:
    """Replace the page at once, so that a reader never sees half of it."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, page)
    return path


def embedded(path: Path) -> str:
    """An image file as a data address; large ones (of photographs) are compressed."""
    data = read_regular(path)
    with open_image(io.BytesIO(data)) as image:
        if image.format != "PNG":
            raise Unreadable("is no PNG")
        return _address(data, "png") if len(data) <= LARGE else _encoded(image, "webp")


def picture(pixels: NDArray[np.uint8]) -> str:
    """Pixels [H, W, C] as a data address; small images exactly, large ones as WebP."""
    image = pictures.picture(pixels)
    return _encoded(image, "png" if max(image.size) <= 96 else "webp")


def _encoded(image: Image.Image, kind: str) -> str:
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 90} if kind == "webp" else {"optimize": True}))
    return _address(file.getvalue(), kind)


def _address(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
