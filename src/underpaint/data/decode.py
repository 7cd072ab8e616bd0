"""From the bytes of an image file to uint8 pixels `[H, W, C]` of one size.

The order matters and is fixed: EXIF orientation, then bit depth (16 bits are scaled by 255/65535,
not cut), then alpha over the background at full resolution, then colour or grey, then one Lanczos
resampling (Pillow's, whose support grows with the reduction: antialiased). A JPEG much larger than
asked is decoded at 1/2, 1/4 or 1/8 of its scale first, never below twice the target. Only the first
frame of an animation is used.

Four channels keep the alpha (an image without one is opaque). Colours are premultiplied before they
are resampled, and brought back to straight ones after, so that what cannot be seen has no colour.
Whatever its name, a file is decoded as one of `formats` alone: Pillow knows others that start a
program (PostScript) or a parser that nobody needs here.
"""

import io
import struct
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, UnidentifiedImageError, features

from underpaint.core.alpha import CHANNELS, straight
from underpaint.errors import UserError

RESAMPLING = "Lanczos, antialiased (Pillow)"
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
HEIF = (".heic", ".heif", ".hif", ".avif")
MAX_PIXELS = 100_000_000
BITS = 16  # of grey values, unless fewer are asked for

# EXIF orientation → the transposition that puts the image upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Unreadable(Exception):
    """An image that cannot be decoded; the text is the reason."""


class Options(NamedTuple):
    """How images are decoded; part of the cache's key."""

    size: tuple[int, int] | None  # height, width; None: as the image is
    channels: int
    fit: str
    background: tuple[int, int, int]
    max_pixels: int = MAX_PIXELS
    levels: int = BITS  # bits that the values in files of 16 bits have


@cache
def formats() -> tuple[str, ...]:
    """The formats of files that are decoded; HEIC and AVIF where a decoder is installed."""
    found = list(FORMATS)
    try:
        import pillow_heif

        pillow_heif.register_heif_opener()
        found.append("HEIF")
    except ImportError:
        pass
    if features.check("avif"):
        found.append("AVIF")
    return tuple(found)


def unreadable_kind(kind: str) -> str:
    """Why files that are `heif` or `avif` are not read; empty if they are."""
    if kind == "heif":
        return "" if "HEIF" in formats() else "HEIC: pip install pillow-heif, and it is read"
    return "" if "AVIF" in formats() else "AVIF: Pillow 11.3 reads it"


def open_image(file: io.BytesIO | Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An image file of one of `formats`, not yet decoded. Every image that is read is opened here.

    Raises Unreadable for one of more than `max_pixels`, and what Pillow raises.
    """
    try:
        if max_pixels > 2 * (Image.MAX_IMAGE_PIXELS or max_pixels):  # Pillow's own limit
            Image.MAX_IMAGE_PIXELS = max_pixels
        image: Image.Image = Image.open(file, formats=formats())
    except Image.DecompressionBombError:
        raise Unreadable(_too_large("has", max_pixels)) from None
    width, height = image.size
    if width * height > max_pixels:
        raise Unreadable(_too_large(f"has {width}×{height}", max_pixels))
    return image


def _too_large(has: str, most: int) -> str:
    return f"{has} pixels, more than are decoded ({most:,}); --max-pixels raises it"


def parse_colour(name: str) -> tuple[int, int, int]:
    """`white`, `#ffcc00`, `rgb(0,0,0)` → three numbers in 0..255. Raises UserError."""
    try:
        red, green, blue = ImageColor.getrgb(name)[:3]
    except ValueError:
        raise UserError(
            f"background '{name}' is not a colour; give a name such as white, or '#ffcc00'"
        ) from None
    return red, green, blue


class Picture(NamedTuple):
    """A decoded file."""

    pixels: NDArray[np.uint8]  # [H, W, C]
    original_size: tuple[int, int]  # height, width, upright
    transparent: bool  # whether any of its pixels is, also where the background now shows


def decode(data: bytes, options: Options) -> Picture:
    """The image in the bytes of a file. Raises `Unreadable`."""
    if not data:
        raise Unreadable("is empty")
    try:
        image, original_size = _open(data, options)
        return Picture(fit(image, options), original_size, is_transparent(image))
    except UnidentifiedImageError:
        raise Unreadable("is not an image of a known format") from None
    except MemoryError:
        raise Unreadable("does not fit in memory") from None
    except Unreadable:
        raise
    except Exception as error:  # decoders raise SyntaxError, struct.error, OSError, ...
        text = " ".join(str(error).split()) or type(error).__name__
        cut_short = "truncated" in text.lower() or isinstance(error, (EOFError, struct.error))
        said = "is truncated or damaged" if cut_short else "cannot be decoded"
        raise Unreadable(f"{said} ({text})") from None


def _open(data: bytes, options: Options) -> tuple[Image.Image, tuple[int, int]]:
    """The upright image, its mode unchanged, and its height and width before any reduction."""
    image = open_image(io.BytesIO(data), options.max_pixels)
    width, height = image.size
    if options.levels < BITS and _has_deep_colours(data, image):
        raise Unreadable(
            f"has colours of 16 bits, of which the upper 8 are read; levels {options.levels} is "
            "for grey values"
        )
    reduced = False
    if options.size is not None and image.format in ("JPEG", "MPO"):  # MPO: many phones
        side = 2 * max(options.size)
        reduced = image.draft(None, (side, side)) is not None
    image.load()
    if not reduced:  # a TIFF is turned upright by load() itself
        width, height = image.size
    try:  # after load(): a PNG may carry its EXIF behind the pixels
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # damaged EXIF does not make the pixels unreadable
        orientation = 1
    if orientation in UPRIGHT:
        image = image.transpose(UPRIGHT[orientation])
        if orientation >= 5:
            width, height = height, width
    return image, (height, width)


def _has_deep_colours(data: bytes, image: Image.Image) -> bool:
    """Whether it is a PNG or a TIFF with 16 bits in each of several channels."""
    if image.format == "PNG":
        return data[24] == 16 and data[25] in (2, 4, 6)  # IHDR: bits, kind of colour
    bits = image.tag_v2.get(258, ()) if image.format == "TIFF" else ()  # type: ignore[attr-defined]
    return len(bits) > 1 and max(bits) > 8


def from_array(pixels: NDArray[np.uint8]) -> Image.Image:
    """An image of an array [H, W] or [H, W, 1|3|4] (grey, RGB, RGBA)."""
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(pixels))


def fit(image: Image.Image, options: Options) -> NDArray[np.uint8]:
    """Convert to the channels and size of `options`: uint8 [H, W, C]; alpha is straight."""
    image = _flat(image, options)
    width, height = image.size
    H, W = options.size or (height, width)
    if (width, height) != (W, H):
        image = _resample(image, H, W, options)
    pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else straight(pixels)


def is_transparent(image: Image.Image) -> bool:
    """Whether any of its pixels lets the background through."""
    if not _has_alpha(image):
        return False
    alpha = _straight(image).convert("RGBA").getchannel("A")
    return alpha.getextrema() != (255, 255)


def _straight(image: Image.Image) -> Image.Image:
    """Of the modes whose colours are premultiplied those whose are not; else as it is."""
    return image.convert(image.mode.upper()) if image.mode in ("La", "RGBa") else image


def _has_alpha(image: Image.Image) -> bool:
    if "transparency" in image.info and image.mode in ("1", "L", "P", "RGB"):
        return True
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa")


def _flat(image: Image.Image, options: Options) -> Image.Image:
    """Mode L or RGB, 8 bits, nothing transparent; of four channels RGBa, premultiplied."""
    image = _straight(_eight_bits(image, options.levels))
    mode = "L" if options.channels == 1 else "RGB"
    if options.channels == CHANNELS:
        return image.convert("RGBA").convert("RGBa")
    if _has_alpha(image):
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (*options.background, 255))
        ground.alpha_composite(image)
        image = ground.convert("RGB")
    if image.mode not in ("1", "L", "RGB"):
        image = image.convert("RGB")  # P, CMYK, YCbCr, LAB, HSV
    return image if image.mode == mode else image.convert(mode)


def _eight_bits(image: Image.Image, levels: int) -> Image.Image:
    """Scale grey of 16 bits (of which `levels` are used) and floats to 8; Pillow clips them."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image)
    if image.mode == "F":
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise Unreadable("has floating-point pixels beyond 0 to 1; save it with 8 or 16 bits")
        return Image.fromarray(np.rint(values * 255).astype(np.uint8))
    most = (1 << levels) - 1
    if values.min() < 0 or values.max() > most:
        if levels < BITS and values.max() < 1 << BITS:
            raise Unreadable(f"has values up to {values.max()}: more than {levels} bits (levels)")
        raise Unreadable("has 32-bit pixels beyond 0 to 65535; save it with 8 or 16 bits")
    wide = values.astype(np.uint32)
    return Image.fromarray(((wide * 255 + most // 2) // most).astype(np.uint8))


def _resample(image: Image.Image, H: int, W: int, options: Options) -> Image.Image:
    width, height = image.size
    lanczos = Image.Resampling.LANCZOS
    if options.fit == "stretch":
        return image.resize((W, H), lanczos)
    if options.fit == "crop":  # the largest centred box of the target's aspect
        scale = max(W / width, H / height)
        left = max(0.0, (width - W / scale) / 2)
        top = max(0.0, (height - H / scale) / 2)
        return image.resize((W, H), lanczos, box=(left, top, width - left, height - top))
    scale = min(W / width, H / height)
    w, h = max(1, round(width * scale)), max(1, round(height * scale))
    if image.mode == "RGBa":
        canvas = Image.new("RGBa", (W, H))
    else:
        canvas = Image.new("RGB", (W, H), options.background).convert(image.mode)
    canvas.paste(image.resize((w, h), lanczos), ((W - w) // 2, (H - h) // 2))
    return canvas
