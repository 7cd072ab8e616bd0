"""The page of a set of images: what is in it, by label, and what to look at before training."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from underpaint.core.alpha import premultiplied
from underpaint.data import Dataset, duplicates
from underpaint.data.build import CONSTANT
from underpaint.data.streamed import Images
from underpaint.report.html import render, write_page

LABELS, EACH = 12, 16  # labels that are shown, images of each
GROUPS, MEMBERS = 24, 8  # groups of duplicates, images of each
UNUSUAL, SIZES = 16, 12
BLOCK = 1024  # images whose light is measured together


class Cell(NamedTuple):
    """An image and its path in the set."""

    pixels: NDArray[np.uint8]
    name: str


def write(dataset: Dataset, first: NDArray[np.int64], path: Path) -> Path:
    """Write the page of `dataset` to `path`, which is returned; `first`: of `duplicates`."""
    n = len(dataset)
    rng = np.random.default_rng(0)

    def cells(ids: NDArray[np.int64] | list[int]) -> list[Cell]:
        return [Cell(dataset.images[i], dataset.names[i]) for i in ids]

    labels = []
    names = [*enumerate(dataset.label_names)] or [(-1, "")]
    for number, name in names[:LABELS]:
        ids = np.flatnonzero(dataset.labels == number) if dataset.label_names else np.arange(n)
        chosen = np.sort(rng.permutation(ids)[: EACH if dataset.label_names else 4 * EACH])
        labels.append({"name": name, "count": len(ids), "cells": cells(chosen)})
    found = duplicates.groups(first)
    groups = [
        {
            "cells": cells(group[:MEMBERS]),
            "more": max(0, len(group) - MEMBERS),
            "equal": len({dataset.pixel_digests[i].tobytes() for i in group}) == 1,
        }
        for group in sorted(found, key=len, reverse=True)[:GROUPS]
    ]
    light, spread = _measured(dataset.images)
    order = np.argsort(light, kind="stable")
    sizes = list(dataset.report["sizes"].items())
    page = render(
        "data.html.jinja",
        title=Path(dataset.report["source"]).name,
        pixelated=max(dataset.size) <= 64,
        report=dataset.report,
        repeated=sum(len(group) - 1 for group in found),
        labels=labels,
        more_labels=max(0, len(names) - LABELS),
        groups=groups,
        more_groups=max(0, len(found) - GROUPS),
        unusual=[
            ("Brightest", cells(order[::-1][:UNUSUAL])),
            ("Darkest", cells(order[:UNUSUAL])),
            ("Of nearly one colour", cells(np.flatnonzero(spread < CONSTANT)[:UNUSUAL])),
        ],
        sizes=sizes[:SIZES],
        more_sizes=max(0, len(sizes) - SIZES),
    )
    return write_page(path, page)


def _measured(images: Images) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of each image its mean, and the largest standard deviation of a channel: [n], of 255."""
    light, spread = [], []
    for start in range(0, len(images), BLOCK):
        part = premultiplied(np.array(images[start : start + BLOCK])).astype(np.float32)
        light.append(part.mean((1, 2, 3), dtype=np.float64))
        spread.append(part.std((1, 2), dtype=np.float64).max(1))
    return np.concatenate(light), np.concatenate(spread)
