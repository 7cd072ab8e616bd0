"""What `underpaint edit` reads: images of the model's size, and masks of what is erased."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from underpaint.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from underpaint.data.decode import Picture
    from underpaint.model import Model

ERASED = 128  # the grey that a grid shows there; transparent in images that can be


def blank(shape: tuple[int, ...]) -> "np.ndarray":
    """What shows where nothing is: pixels [n, H, W, C]."""
    import numpy as np

    return np.full(shape, 0 if shape[-1] == 4 else ERASED, np.uint8)


def _decoded(path: str, size: tuple[int, int] | None, channels: int, ground: int) -> "Picture":
    """An image file of so many channels, scaled and cropped to `size` (height, width) if given."""
    from underpaint.bounded import read_regular
    from underpaint.data import decode

    try:
        if Path(path).is_dir():
            raise UserError(f"{path}: is a folder; give its files, as {path}/*.png")
        content = read_regular(path)
        options = decode.Options(size, channels, "crop", (ground, ground, ground))
        return decode.decode(content, options)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except decode.Unreadable as error:
        raise UserError(f"{path}: {error}; give another file") from None


def read(path: str, model: "Model", fit: bool, free: bool) -> "Picture":
    """An image of the model's channels, and of its size unless `free`."""
    size = model.spec.size
    picture = _decoded(path, size if fit else None, model.spec.channels, 255)
    height, width = picture.pixels.shape[:2]
    if (height, width) != size and not free:
        raise UserError(
            f"{path}: is {width}×{height} pixels (width × height), and this model takes "
            f"{size[1]}×{size[0]}; add --fit to scale and crop it"
        )
    return picture


def erased_of(
    model: "Model",
    args: argparse.Namespace,
    pictures: "list[Picture]",
    boxes: list[tuple[int, int, int, int]],
) -> "np.ndarray":
    """What is erased of each image: bool [n, H, W]."""
    import numpy as np

    (H, W), n = model.spec.size, len(pictures)
    erased = np.zeros((n, H, W), np.bool_)
    for x, y, w, h in boxes:
        if x + w > W or y + h > H:
            raise UserError(f"--box {x},{y},{w},{h}: ends beyond the image, {W}×{H} pixels")
        erased[:, y : y + h, x : x + w] = True
    masks = args.mask or []
    if len(masks) not in (0, 1, n):
        raise UserError(f"--mask: {len(masks)} files for {n} images; give one, or one for each")
    for i, picture in enumerate(pictures):
        if masks == ["alpha"]:
            erased[i] |= _transparent(args.images[i], picture.original_size, (H, W), args.fit)
        elif masks:
            path = masks[i % len(masks)]
            grey = _decoded(path, None, 1, 0).pixels[:, :, 0]  # transparent: black, kept
            erased[i] |= _fitted(path, grey, picture.original_size, (H, W), args.fit)
    return erased


def _transparent(
    path: str, original: tuple[int, int], size: tuple[int, int], fit: bool
) -> "np.ndarray":
    """Where an image shows less than half of itself."""
    picture = _decoded(path, None, 4, 0)
    if not picture.transparent:
        raise UserError(
            f"{path}: has no transparent pixels, which --mask alpha would erase; give a mask file"
        )
    return _fitted(path, 255 - picture.pixels[:, :, 3], original, size, fit)


def _fitted(
    path: str, grey: "np.ndarray", original: tuple[int, int], size: tuple[int, int], fit: bool
) -> "np.ndarray":
    """A mask of grey values as what is erased, [H, W]; it goes the way of its image."""
    from PIL import Image

    from underpaint.data import decode

    height, width = grey.shape
    if (height, width) != size and not fit:
        raise UserError(
            f"{path}: the mask is {width}×{height} pixels (width × height), and the image "
            f"{size[1]}×{size[0]}; add --fit to scale it"
        )
    if (height, width) != size:
        mask = decode.from_array(grey).resize((original[1], original[0]), Image.Resampling.NEAREST)
        options = decode.Options(size, 1, "crop", (0, 0, 0))
        grey = decode.fit(mask, options)[:, :, 0]
    return grey >= 128
