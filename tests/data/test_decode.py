"""decode: whatever a file holds, the pixels are those a person sees."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.data.pictures import noise, png
from underpaint.data.decode import Options, Unreadable, decode, parse_colour
from underpaint.errors import UserError

WHITE = (255, 255, 255)


def options(size=None, channels=3, fit="crop", background=WHITE) -> Options:
    return Options(size, channels, fit, background)


def saved(image: Image.Image, format: str, **more) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **more)
    return file.getvalue()


ORANGE, GREY = (230, 120, 40), 90
COLOUR = Image.new("RGB", (12, 10), ORANGE)


@pytest.mark.parametrize(
    ("image", "format", "expected"),
    [
        (Image.new("1", (12, 10), 1), "PNG", WHITE),
        (Image.new("L", (12, 10), GREY), "PNG", (GREY,) * 3),
        (Image.new("LA", (12, 10), (GREY, 255)), "PNG", (GREY,) * 3),
        (Image.new("LA", (12, 10), (GREY, 0)), "PNG", WHITE),
        (COLOUR.quantize(4), "PNG", ORANGE),
        (COLOUR, "PNG", ORANGE),
        (COLOUR, "JPEG", ORANGE),
        (COLOUR, "WEBP", ORANGE),
        (COLOUR, "BMP", ORANGE),
        (COLOUR, "GIF", ORANGE),
        (COLOUR, "TIFF", ORANGE),
        (COLOUR.convert("CMYK"), "TIFF", ORANGE),
        (COLOUR.convert("CMYK"), "JPEG", ORANGE),
        (COLOUR.convert("YCbCr"), "TIFF", ORANGE),
        (Image.new("RGBA", (12, 10), (*ORANGE, 255)), "PNG", ORANGE),
        (Image.new("RGBA", (12, 10), (*ORANGE, 0)), "WEBP", WHITE),
        (Image.new("RGBA", (12, 10), (255, 0, 0, 51)), "PNG", (255, 204, 204)),
        (Image.fromarray(np.full((10, 12), GREY * 257, np.uint16)), "PNG", (GREY,) * 3),
        (Image.fromarray(np.full((10, 12), GREY * 257, np.uint16)), "TIFF", (GREY,) * 3),
        (Image.fromarray(np.full((10, 12), GREY * 257, np.int32)), "TIFF", (GREY,) * 3),
        (Image.fromarray(np.full((10, 12), GREY / 255, np.float32)), "TIFF", (GREY,) * 3),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else str(value),
)
def test_every_mode_and_format_gives_its_colour(image, format, expected):
    pixels, met = decode(saved(image, format), options())
    assert met == (10, 12)
    assert pixels.shape == (10, 12, 3)
    assert pixels.dtype == np.uint8
    exact = format not in ("JPEG", "WEBP") and image.mode != "YCbCr"
    assert np.abs(pixels.astype(int) - expected).max() <= (0 if exact else 3)


def test_sixteen_bits_are_scaled_not_cut():
    values = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    pixels, _ = decode(saved(Image.fromarray(values), "PNG"), options(channels=1))
    np.testing.assert_array_equal(pixels[:, :, 0].ravel(), np.arange(256))


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_transparent_colour_shows_the_background(mode):
    image = Image.new("L", (4, 4), 7) if mode == "L" else COLOUR.quantize(4)
    image = image.convert("RGB") if mode == "RGB" else image
    key = {"P": 0, "L": 7, "RGB": ORANGE}[mode]
    data = saved(image, "PNG", transparency=key)
    pixels, _ = decode(data, options(background=(0, 0, 255)))
    assert (pixels == (0, 0, 255)).all()


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "lime")]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode(data, options())[0] == (255, 0, 0)).all()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_obeyed(format, orientation):
    ramp = np.zeros((16, 24, 3), np.uint8)
    ramp[:, :, 0] = np.linspace(0, 255, 24)
    ramp[:, :, 1] = np.linspace(0, 255, 16)[:, None]
    image = Image.fromarray(ramp)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(image, format, exif=exif)
    upright = image.copy()
    upright.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(upright))
    pixels, met = decode(data, options())
    assert met == expected.shape[:2]
    assert np.abs(pixels.astype(int) - expected).mean() < 4  # lossy formats


def test_crop_takes_the_centre():
    image = noise(1, 10, 30)[0]
    pixels, met = decode(png(image), options((10, 10)))
    assert met == (10, 30)
    np.testing.assert_array_equal(pixels, image[:, 10:20])


def test_pad_shows_all_on_the_background():
    image = noise(1, 10, 30)[0]
    pixels, _ = decode(png(image), options((30, 30), fit="pad", background=(1, 2, 3)))
    np.testing.assert_array_equal(pixels[10:20], image)
    assert (pixels[:10] == (1, 2, 3)).all()
    assert (pixels[20:] == (1, 2, 3)).all()


def test_stretch_shows_all():
    image = np.zeros((10, 30, 3), np.uint8)
    image[:, 15:] = 255
    pixels, _ = decode(png(image), options((20, 20), fit="stretch"))
    assert pixels.shape == (20, 20, 3)
    assert (pixels[:, :8] < 30).all()
    assert (pixels[:, 12:] > 225).all()


def test_reduction_is_antialiased():
    checks = ((np.indices((64, 64)).sum(0) % 2) * 255).astype(np.uint8)
    pixels, _ = decode(png(checks), options((8, 8), channels=1))
    assert np.abs(pixels.astype(int) - 127.5).max() < 8  # a point sampler gives 0 or 255


def test_large_jpeg_is_decoded_reduced_yet_the_same():
    rng = np.random.default_rng(1)
    smooth = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    smooth = smooth.resize((640, 480), Image.Resampling.BICUBIC)
    data = saved(smooth, "JPEG", quality=95)
    whole = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    pixels, met = decode(data, options((32, 32)))
    reference, _ = decode(png(whole), options((32, 32)))
    assert met == (480, 640)
    assert np.abs(pixels.astype(int) - reference).max() <= 4


def test_colour_becomes_grey_and_grey_colour():
    grey, _ = decode(saved(COLOUR, "PNG"), options(channels=1))
    assert grey.shape == (10, 12, 1)
    assert abs(int(grey[0, 0, 0]) - (0.299 * 230 + 0.587 * 120 + 0.114 * 40)) <= 1


def bomb() -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"this is a text, not an image", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n", "not an image"),
        (png(noise(1, 40, 40)[0])[:900], "truncated"),
        (png(noise(1, 40, 40)[0], "JPEG")[:900], "truncated"),
        (png(noise(1, 40, 40)[0])[:20], "truncated"),
        (bomb(), "pixels"),
        (saved(Image.fromarray(np.full((4, 4), 9.0, np.float32)), "TIFF"), "floating-point"),
        (saved(Image.fromarray(np.full((4, 4), 70_000, np.int32)), "TIFF"), "32-bit"),
    ],
    ids=[
        *("empty", "text", "postscript", "cut-png", "cut-jpeg", "cut-header", "bomb", "float"),
        "32-bit",
    ],
)
def test_unreadable_with_a_reason(data, reason):
    with pytest.raises(Unreadable, match=reason):
        decode(data, options((8, 8)))


def test_colours_by_name():
    assert parse_colour("#ff8000") == (255, 128, 0)
    with pytest.raises(UserError, match="'whit' is not a colour"):
        parse_colour("whit")
