"""What the channels that were asked for lose of the images, or need not have."""

import shlex
from typing import Any

import numpy as np
from numpy.typing import NDArray

from underpaint import config
from underpaint.data.dataset import Dataset
from underpaint.data.streamed import Streamed

TRIED = 64  # images whose colours are looked at


def on_channels(settings: config.Data, dataset: Dataset) -> str:
    """A sentence on transparency that is lost or not there, or on grey images; else empty."""
    found, n = dataset.report["transparent"], dataset.report["images"]
    if settings.channels == "rgba":
        opaque = f"{n - found:,} of {n:,} images have no transparent pixels and are opaque"
        return opaque if found < n else ""
    size = "".join(f" {side}" for side in settings.size)
    size = f" --size{size}" if size else ""
    command = f"underpaint train --data {shlex.quote(settings.source)}{size} --channels"
    if found:
        return (
            f"{found:,} of {n:,} images have transparent pixels, which become "
            f"{settings.background}; to learn and draw transparency: {command} rgba"
        )
    if settings.channels == 3 and (tried := _all_grey(dataset)):
        which = "the images" if tried == n else f"{tried} images, tried of {n:,},"
        return f"{which} are grey; so that samples are grey, too: {command} 1"
    return ""


def _all_grey(dataset: Dataset) -> int:
    """How many images were tried, if all of these are grey; else 0. Streamed ones are not read."""
    if isinstance(dataset.images, Streamed) or not len(dataset):
        return 0
    ids = np.unique(np.linspace(0, len(dataset) - 1, TRIED).astype(np.int64))
    images: NDArray[Any] = dataset.batch(ids)
    return len(ids) if (images == images[..., :1]).all() else 0
