"""Near duplicates in a stream of images: which earlier images is this one almost equal to?

Two images are near if their thumbnails of 8 × 8 block means differ by at most `NEAR` grey levels
(root mean square). That finds an image saved again, at another size or quality, or a little
brighter; not a mirrored or cropped one.

All such pairs are found without comparing every two images: for a unit vector u and thumbnails a, b
of d numbers, |u·a − u·b| ≤ ‖a − b‖ ≤ NEAR·√d = T. Thumbnails lie in cells 2T wide along seven
such directions, so that those near a given one lie in at most 2⁷ cells. That is quick for images;
pure noise, all of whose thumbnails are grey, comes down to comparing every two. About 200 bytes an
image are kept, in memory only: cells are hashed to chains in an array, since a Python dict would
take half as much again. Two cells may share a chain, which only costs a comparison.
"""

import itertools

import numpy as np
from numpy.typing import NDArray

from underpaint.core.alpha import premultiplied

NEAR = 2.0  # of 255
SIDE = 8
DIRECTIONS = 7
SPREAD = np.uint64(0x9E3779B97F4A7C15)  # 2⁶⁴ over the golden ratio


class NearDuplicates:
    """The thumbnails of the images so far."""

    def __init__(self, size: tuple[int, int], channels: int, most: int) -> None:
        """For at most `most` images of `size` (height, width) in pixels."""
        self.shape = (min(SIDE, size[0]), min(SIDE, size[1]), channels)
        self.directions = _directions(self.shape)  # [7, d]
        self.reach = NEAR * np.sqrt(np.prod(self.shape))
        self.count = 0
        self.bits = max(1, (2 * most - 1).bit_length())
        self.last = np.full(1 << self.bits, -1, np.int32)  # of each chain the last image
        self.before = np.empty(most, np.int32)  # of each image the one before it in its chain
        self.thumbnails = np.empty((most, int(np.prod(self.shape))), np.uint8)
        self.corners = np.array(list(itertools.product((0, 1), repeat=DIRECTIONS)))

    def near(self, image: NDArray[np.uint8]) -> list[int]:
        """The numbers, ascending, of the added images that `image` [H, W, C] is near to."""
        thumb, place = self._place(image)
        low = np.floor(place - 0.5).astype(np.int64)
        candidates: list[int] = []
        for i in set(self.last[self._chains(low + self.corners)].tolist()):
            while i >= 0:
                candidates.append(i)
                i = int(self.before[i])
        if not candidates:
            return []
        ids = np.array(sorted(candidates))
        differences = self.thumbnails[ids].astype(np.float32) - thumb
        return ids[np.square(differences).mean(1) <= NEAR**2].tolist()

    def add(self, image: NDArray[np.uint8]) -> int:
        """Remember `image` [H, W, C]; returns its number."""
        thumb, place = self._place(image)
        chain = self._chains(np.floor(place).astype(np.int64)[None])[0]
        number = self.count
        self.thumbnails[number] = thumb
        self.before[number] = self.last[chain]
        self.last[chain] = number
        self.count += 1
        return number

    def _place(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """The thumbnail [d], and where it lies along the directions in widths of a cell [7]."""
        thumb = thumbnail(image, self.shape[0], self.shape[1]).ravel()
        return thumb, self.directions @ thumb / (2 * self.reach)

    def _chains(self, cells: NDArray[np.int64]) -> NDArray[np.uint64]:
        """The chain of each cell [k, 7]; at most ±2⁸ cells lie along a direction."""
        shifts = 9 * np.arange(DIRECTIONS, dtype=np.int64)
        names = ((cells + 256) << shifts).sum(1).astype(np.uint64)
        return (names * SPREAD) >> np.uint64(64 - self.bits)  # Fibonacci hashing


def thumbnail(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Block means of `image` [H, W, C], rounded: [height, width, C]; premultiplied by an alpha."""
    image = premultiplied(image)
    rows = np.arange(height) * image.shape[0] // height
    columns = np.arange(width) * image.shape[1] // width
    sums = np.add.reduceat(np.add.reduceat(image.astype(np.int64), rows, 0), columns, 1)
    tall = np.diff(rows, append=image.shape[0])[:, None, None]
    wide = np.diff(columns, append=image.shape[1])[:, None]
    return np.rint(sums / (tall * wide)).astype(np.uint8)


def _directions(shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """Unit vectors [7, d] along which images differ most: light, slopes, middle, hues."""
    h, w, channels = shape
    y, x = np.mgrid[:h, :w] + 0.5
    down, right = np.where(y < h / 2, 1.0, -1.0), np.where(x < w / 2, 1.0, -1.0)
    tall = np.where(abs(y - h / 2) < h / 4, 1.0, -1.0)
    wide = np.where(abs(x - w / 2) < w / 4, 1.0, -1.0)
    planes = [np.ones((h, w)), down, right, tall, wide]
    directions = [np.repeat(plane[:, :, None], channels, 2) for plane in planes]
    if channels >= 3:  # of alpha no hue
        hues = (np.array([*hue, 0])[:channels] for hue in ([1, 0, -1], [1, -2, 1]))
        directions += [np.broadcast_to(hue, shape) for hue in hues]
    else:
        directions += [(down * right)[:, :, None], (tall * wide)[:, :, None]]
    flat = np.stack([direction.ravel() for direction in directions]).astype(np.float64)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)
