"""From the bytes of an image file to uint8 pixels `[H, W, C]` of one size.

The order matters and is fixed: EXIF orientation, then bit depth (16 bits are scaled by 255/65535,
not cut), then alpha over the background at full resolution, then colour or grey, then one Lanczos
resampling (Pillow's, whose support grows with the reduction: antialiased). A JPEG much larger than
asked is decoded at 1/2, 1/4 or 1/8 of its scale first, never below twice the target. Only the first
frame of an animation is used.

Four channels keep the alpha (an image without one is opaque). Colours are premultiplied before they
are resampled, and brought back to straight ones after, so that what cannot be seen has no colour.
"""

import io
import struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, UnidentifiedImageError

from underpaint.core.alpha import CHANNELS, straight
from underpaint.errors import UserError

RESAMPLING = "Lanczos, antialiased (Pillow)"
LARGEST = 2 * 89_478_485  # pixels; Pillow's limit against decompression bombs

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
    """The picture in the bytes of a file. Raises `Unreadable`."""
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
    image: Image.Image = Image.open(io.BytesIO(data))
    width, height = image.size
    if width * height > LARGEST:
        raise Unreadable(f"has {width}×{height} pixels, more than is decoded ({LARGEST:,})")
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
    image = _straight(_eight_bits(image))
    mode = "L" if options.channels == 1 else "RGB"
    if options.channels == CHANNELS:
        return image.convert("RGBA").convert("RGBa")
    if _has_alpha(image):
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (*options.background, 255))
        image = Image.alpha_composite(ground, image).convert("RGB")
    if image.mode not in ("1", "L", "RGB"):
        image = image.convert("RGB")  # P, CMYK, YCbCr, LAB, HSV
    return image if image.mode == mode else image.convert(mode)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit and floating-point grey to 8 bits; Pillow's conversion clips them."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image)
    if image.mode == "F":
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise Unreadable("has floating-point pixels beyond 0 to 1; save it with 8 or 16 bits")
        return Image.fromarray(np.rint(values * 255).astype(np.uint8))
    wide = values.astype(np.int64)
    if wide.min() < 0 or wide.max() > 65535:
        raise Unreadable("has 32-bit pixels beyond 0 to 65535; save it with 8 or 16 bits")
    return Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))


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
