"""Samples as files: a grid, a folder of PNGs, or an array.

A grid is a contact sheet: thin white gaps, small images enlarged by a whole factor (nearest
neighbour) until it is 600 to 1000 pixels wide, or just above, and captions over columns that are
labels. What is transparent lies on a chequerboard there; PNGs and arrays keep its alpha, straight.
Every file says how it was made: PNGs in text chunks, an array in its `about` entry.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from underpaint.io import filling, replacing, writing

NARROWEST, WIDEST = 600, 1000  # pixels of a sheet
GAP = 4
CAPTION = 15  # font size at least
MOST_COLUMNS = 10  # of labels
GRIDS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
PAPER, INK = (255, 255, 255), (60, 60, 60)
SQUARE, LIGHT, DARK = 8, 255, 204  # of the chequerboard: pixels of the sheet, and greys

Images = NDArray[np.uint8]
About = Mapping[str, object]


def grid(images: Images, columns: int = 0, labels: Sequence[str] | None = None) -> Image.Image:
    """A sheet of `images` uint8 [n, H, W, C] (C = 1, 3 or 4), row by row in `columns`.

    `columns` 0: about a square. `labels`: one caption a column, shortened to fit. Notebooks show
    the sheet. Raises ValueError for other shapes.
    """
    columns = columns or max(1, round(math.sqrt(len(images))))
    if images.ndim != 4 or len(images) < 1 or images.shape[3] not in (1, 3, 4) or columns < 1:
        raise ValueError(f"no grid of {columns} columns can be made of images {images.shape}")
    if labels is not None and len(labels) != columns:
        raise ValueError(f"{len(labels)} captions for {columns} columns")
    n, H, W, _ = images.shape
    rows = math.ceil(n / columns)
    gaps = GAP * (columns + 1)
    factor = max(1, (WIDEST - gaps) // (columns * W))
    if columns * W * factor + gaps < NARROWEST:  # 8 columns of 64: 548 or 1060
        factor += 1
    height, width = H * factor, W * factor
    caption = 0 if labels is None else _caption(labels, width, columns * width)
    top = caption + 3 * GAP if caption else GAP
    size = (GAP + columns * (width + GAP), top + rows * (height + GAP))
    sheet = Image.new("RGB", size, PAPER)
    for i, pixels in enumerate(images):
        row, column = divmod(i, columns)
        place = (GAP + column * (width + GAP), top + row * (height + GAP))
        shown = picture(pixels).resize((width, height), Image.Resampling.NEAREST)
        if shown.mode == "RGBA":
            sheet.paste(_chequerboard(width, height), place)
        sheet.paste(shown, place, shown if shown.mode == "RGBA" else None)
    if labels is not None:
        draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(caption)
        for column, label in enumerate(labels):
            middle = GAP + column * (width + GAP) + width / 2
            draw.text((middle, GAP), _fitting(label, width, font), INK, font, anchor="ma")
    return sheet


def columns(n: int, labels: Sequence[str] | None) -> tuple[int, list[str] | None]:
    """Columns of a grid of `n`: labels repeat along a row where they are few, else a square."""
    square = max(1, round(math.sqrt(n)))
    if not labels or len(labels) > MOST_COLUMNS or n < len(labels):
        return square, None
    times = max(1, round(square / len(labels)))
    return len(labels) * times, [*labels] * times


def save_grid(
    path: Path,
    images: Images,
    columns: int,
    labels: Sequence[str] | None = None,
    about: About | None = None,
) -> None:
    """Write a grid with `about` in it, in the format that its name ends in (GRIDS).

    A PNG has it in text chunks, JPEG and WebP have it as JSON in the description of their EXIF.
    Raises UserError if it cannot be written.
    """
    sheet, kind, about = (
        grid(images, columns, labels),
        GRIDS.get(path.suffix.lower(), "PNG"),
        about or {},
    )
    how: dict[str, Any] = {"pnginfo": _chunks(about)}
    if kind != "PNG":
        exif = Image.Exif()
        exif[ExifTags.Base.ImageDescription] = json.dumps({k: str(v) for k, v in about.items()})
        how = {"exif": exif, "quality": 92}
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            sheet.save(temporary, kind, **how)


def names(seeds: Sequence[int], labels: Sequence[str | None] | None = None) -> list[str]:
    """What `save_folder` calls the images: `seed00000007_LABEL.png`."""
    found = []
    for seed, label in zip(seeds, labels or [None] * len(seeds), strict=True):
        ending = "" if label is None else "_" + re.sub(r"[^\w.-]+", "-", label)
        found.append(f"seed{seed:08d}{ending}.png")
    return found


def save_folder(
    folder: Path,
    images: Images,
    seeds: Sequence[int] = (),
    labels: Sequence[str | None] | None = None,
    about: About | None = None,
    files: Sequence[str] | None = None,
) -> list[Path]:
    """Write one PNG an image, called as in `names` or in `files`, and return their paths.

    `about`, seed and label are in its text chunks; without `seeds`, of images that have none, no
    seed is. Raises UserError if none could be written.
    """
    files = files or names(seeds, labels)
    with writing(folder), filling(folder) as temporary:
        for i, pixels in enumerate(images):
            chunks: dict[str, object] = {**(about or {})}
            if seeds:
                chunks["seed"] = seeds[i]
            if labels is not None and labels[i] is not None:
                chunks["label"] = labels[i]
            picture(pixels).save(temporary / files[i], "PNG", pnginfo=_chunks(chunks))
    return [folder / name for name in files]


def save_npz(
    path: Path,
    images: Images,
    seeds: Sequence[int],
    labels: Sequence[str | None] | None = None,
    about: About | None = None,
) -> None:
    """Write arrays: `images` uint8 [n, H, W, C], `seeds` [n], `labels` [n], `about` (JSON)."""
    arrays: dict[str, NDArray[np.generic]] = {
        "images": images,
        "seeds": np.asarray(seeds, dtype=np.int64),
        "about": np.asarray(json.dumps(dict(about or {}))),
    }
    if labels is not None:
        arrays["labels"] = np.asarray([label or "" for label in labels])
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def picture(pixels: Images) -> Image.Image:
    """Pixels [H, W, C] as Pillow's L, RGB or RGBA."""
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _chequerboard(width: int, height: int) -> Image.Image:
    y, x = np.ogrid[:height, :width]
    dark = (y // SQUARE + x // SQUARE) % 2
    return Image.fromarray(np.where(dark, DARK, LIGHT).astype(np.uint8))


def _caption(labels: Sequence[str], width: int, whole: int) -> int:
    """The font size, from CAPTION up, at which all captions fit columns `width` pixels wide.

    A sheet `whole` pixels wide is often shown at half its size.
    """
    for size in range(whole // 40, CAPTION, -1):
        font = ImageFont.load_default(size)
        if all(font.getlength(label) <= width for label in labels):
            return size
    return CAPTION


def _fitting(text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """`text`, or as many of its first letters as fit with an ellipsis."""
    shown = text
    while font.getlength(shown) > width and text:
        text = text[:-1]
        shown = text + "…"
    return shown if text else ""


def _chunks(about: About) -> PngInfo:
    info = PngInfo()
    for key, value in about.items():
        info.add_itxt(key, str(value).encode("utf-8", "backslashreplace").decode())
    return info
