"""A data set ready for training: what `preparation.prepare` gives.

Images are decoded once, have identities and a side; what is read is a file mapped into memory, or
a stream.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from underpaint.core.spaces import from_uint8
from underpaint.data import cache
from underpaint.data.streamed import Images, Streamed


@dataclass(frozen=True)
class Latents:
    """Mean and spread of the latents of every image, mirrored and not."""

    moments: NDArray[np.float16]  # [n, 2, 2, c, h, w]
    scale: float
    shift: float
    stored: cache.Rows | None = None  # the moments, if they are in a file

    def draw(
        self, ids: NDArray[np.int64], rng: np.random.Generator, flip: bool
    ) -> NDArray[np.float32]:
        """Fresh latents [B, c, h, w] of the images `ids`; with `flip` half of them mirrored."""
        mirrored = rng.random(len(ids)) < 0.5 if flip else np.zeros(len(ids), bool)
        both = _taken(self.moments, self.stored, ids)
        moments = both[np.arange(len(ids)), mirrored.astype(np.int64)].astype(np.float32)
        mean, std = moments[:, 0], moments[:, 1]
        return self._scaled(mean + std * rng.standard_normal(mean.shape, np.float32))

    def means(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """The middle of each image's latents [B, c, h, w]: nothing random."""
        return self._scaled(_taken(self.moments, self.stored, ids)[:, 0, 0].astype(np.float32))

    def _scaled(self, z: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.float32(self.scale) * (z - np.float32(self.shift))


def _taken(array: NDArray[Any], stored: cache.Rows | None, ids: NDArray[np.int64]) -> NDArray[Any]:
    """A copy of these rows: of the file, if `array` is the map of one."""
    mapped = stored is not None and stored.array is array
    return stored.take(ids.tolist()) if stored and mapped else np.take(array, ids, axis=0)


@dataclass(frozen=True, repr=False)
class Dataset(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Decoded images with labels, identities and split.

    For PyTorch a data set of all images: `[i]` is the image, float32 [C, H, W] in [-1, 1] (of RGBA
    the colours are premultiplied), and the number of its label, -1 for none. `train_ids` and
    `held_out_ids` say which are which: `torch.utils.data.Subset(dataset, dataset.train_ids)`.
    """

    images: Images  # [n, H, W, C], mapped into memory, or streamed; RGBA is straight
    labels: NDArray[np.int64]  # [n], -1 unlabelled
    label_names: tuple[str, ...]
    names: Sequence[str]  # path of each image inside its source
    train_ids: NDArray[np.int64]
    held_out_ids: NDArray[np.int64]
    key: str  # of the cache entry: bytes and options
    report: dict[str, Any]  # what `underpaint prepare` prints
    file_digests: NDArray[np.uint8]  # [n, 32]
    pixel_digests: NDArray[np.uint8]  # [n, 32]
    latents: Latents | None = None  # of an autoencoder, where the diffusion runs in its space
    stored: cache.Rows | None = None  # the images, if they are in a file

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return (self.images.shape[1], self.images.shape[2])

    @property
    def channels(self) -> int:
        """1, 3 or 4: RGBA with straight colours."""
        return self.images.shape[3]

    @cached_property
    def file_sha256(self) -> list[str]:
        """sha256 of each image's file (of the array's bytes, where there is no file)."""
        return [digest.tobytes().hex() for digest in self.file_digests]

    @cached_property
    def pixel_sha256(self) -> list[str]:
        """sha256 of each image's pixels as they are in `images`."""
        return [digest.tobytes().hex() for digest in self.pixel_digests]

    @property
    def remarks(self) -> list[str]:
        """What was not read, and what may have been meant otherwise: sentences."""
        report = self.report
        said = [
            f"{found['files']:,} not read ({found['reason']}), such as '{found['first']}'"
            for found in report["unread"]
        ]
        if bad := report["unreadable"]:
            said.append(f"{len(bad):,} unreadable: '{bad[0]['path']}' {bad[0]['reason']}")
        if outside := report["outside"]:
            said.append(f"{len(outside):,} outside its folder, such as '{outside[0]}'")
        return [*said, *report["hints"], *report["damaged"]]

    def __repr__(self) -> str:
        """One line: images, size, labels, split."""
        height, width = self.size
        labels = f", {len(self.label_names)} labels" if self.label_names else ""
        return (
            f"<Dataset {len(self):,} images of {height}×{width}×{self.channels}{labels}, "
            f"{len(self.train_ids):,} to train on, {len(self.held_out_ids):,} held out>"
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        if not -len(self) <= i < len(self):
            raise IndexError(f"image {i} of {len(self)}")
        return from_uint8(np.array(self.images[i])[None])[0], int(self.labels[i])

    def batch(self, ids: NDArray[np.int64]) -> NDArray[np.uint8]:
        """A copy of the images `ids`, [B, H, W, C]."""
        if isinstance(self.images, Streamed):
            return self.images[ids]
        return _taken(self.images, self.stored, ids)
