"""Images with transparency: uint8 colours beside an alpha, and what is computed of them.

Images `[…, 4]` hold straight colours, as PNGs do; one of whose pixels alpha is 0 shows no colour,
and has the colour 0. What is compared or learned is premultiplied (Porter and Duff 1984):

    premultiplied  c = α s        straight  s = c / α        over a ground g  c + (1 − α) g

Colours then count by how much they are seen, and a mean of pixels is that of what they show. All
values are rounded to 8 bits: c → s → c gives c back, and s → c → s is a fixed point after once.
"""

import numpy as np
from numpy.typing import NDArray

CHANNELS = 4
Pictures = NDArray[np.uint8]


def premultiplied(images: Pictures) -> Pictures:
    """Straight colours [..., 4] → premultiplied; images of other channels as they are."""
    if images.shape[-1] != CHANNELS:
        return images
    wide = images.astype(np.uint16)
    return np.concatenate([_scaled(wide), images[..., 3:]], -1)


def straight(images: Pictures) -> Pictures:
    """Premultiplied colours [..., 4] → straight; images of other channels as they are.

    Colours above their alpha, which nothing has that was premultiplied, become 255.
    """
    if images.shape[-1] != CHANNELS:
        return images
    alpha = images[..., 3:].astype(np.uint16)
    colours = np.minimum(images[..., :3], alpha) * np.uint16(255)
    colours = (colours + alpha // 2) // np.maximum(alpha, 1)  # 0 where alpha is
    return np.concatenate([colours.astype(np.uint8), images[..., 3:]], -1)


def over(images: Pictures, ground: int) -> Pictures:
    """Straight colours [..., 4] over a grey of this level: [..., 3]; others as they are."""
    if images.shape[-1] != CHANNELS:
        return images
    wide = images.astype(np.uint16)
    behind = (ground * (255 - wide[..., 3:]) + 127) // 255
    return _scaled(wide) + behind.astype(np.uint8)


def _scaled(wide: NDArray[np.uint16]) -> Pictures:
    """Colours times alpha; 65,025 + 127 fit in 16 bits."""
    return ((wide[..., :3] * wide[..., 3:] + 127) // 255).astype(np.uint8)
