"""The report's images: final samples, real images beside them, and the nearest training images.

Needs the run's weights and its images. What is not there any more is left out, with a sentence.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from underpaint import config
from underpaint import model as models
from underpaint.data import Dataset, prepare
from underpaint.data.streamed import Streamed
from underpaint.errors import UserError
from underpaint.evaluation.nearest import nearest
from underpaint.sealed import format as sealed
from underpaint.training import identities, provenance

Image = NDArray[np.uint8]  # [H, W, C]
COLUMNS, ROWS = 8, 4
PAIRS = 16
HELD_OUT = 64  # held-out images whose distance to the training images is measured beside


@dataclass
class Gallery:
    """What could be drawn; empty lists where it could not."""

    samples: list[Image] = field(default_factory=list)
    real: list[Image | None] = field(default_factory=list)  # None: no image with this label left
    columns: int = COLUMNS
    captions: tuple[str, ...] = ()  # of the columns: labels
    # a sample, the training image nearest to it, their root mean square difference in grey levels
    pairs: list[tuple[Image, Image, float]] = field(default_factory=list)
    usual: float | None = None  # median distance of held-out images to their nearest
    held_out_used: int = 0
    counts: tuple[int, int] | None = None  # training and held-out images
    size: tuple[int, int] | None = None
    channels: int = 3
    missing: list[str] = field(default_factory=list)  # sentences


def draw(
    run_dir: Path,
    run: config.Run,
    stage: str | None,
    training_images: bool = True,
    moved: str | None = None,
) -> Gallery:
    """All images of a run whose last stage with any training was `stage`.

    `training_images` False: none of these, and none nearest to the samples. `moved`: where they are
    now, if not where they were; raises UserError where they are not.
    """
    gallery = Gallery()
    try:
        model = models.load(run_dir)
        _draw_samples(gallery, model)
    except UserError as error:
        gallery.missing.append(f"No final samples could be drawn ({error}).")
    recipe = run.stages.get(stage or "")
    if recipe and recipe.dp:
        gallery.missing.append(
            "The images of the last stage are private: no training images, and none nearest to "
            "the samples, are shown here."
        )
        return gallery
    data = run.data_of(recipe) if recipe else run.data
    if moved is not None:
        data = provenance.data_of(run, moved, run_dir)
    images: Dataset | sealed.Sealed
    try:
        images = sealed.read(data.source) if sealed.is_sealed(data.source) else prepare(data)
        recorded = (run_dir / "images.json").is_file()
        if moved is not None and recorded and isinstance(images, Dataset):  # held out as it was
            split = identities.split_of(run_dir, images.file_digests, data.source)
            images = replace(images, train_ids=split.train_ids, held_out_ids=split.held_out_ids)
            gallery.missing += [f"{split.lacking}."] if split.lacking else []
    except UserError as error:
        if moved is not None:
            raise
        gallery.missing.append(
            "The images of this run were not found, so the real images and the nearest training "
            f"images are missing here ({error}). If they have moved: underpaint report --data DATA."
        )
        return gallery
    gallery.counts = (len(images.train_ids), len(images.held_out_ids))
    gallery.size, gallery.channels = images.size, images.channels
    if isinstance(images, sealed.Sealed):
        gallery.missing.append(
            f"The images are sealed: {images.about['visible']} patches of each are all there is, "
            "so no real images and no nearest training images can be shown here."
        )
        return gallery
    if not training_images:
        gallery.missing.append(
            "Training images, and those nearest to the samples, are left out, as was asked for."
        )
        return gallery
    _choose_real(gallery, images)
    if isinstance(images.images, Streamed):
        gallery.missing.append(
            "The images are streamed from shards, and reading all of them to find those nearest to "
            "the samples would take too long here; underpaint audit does."
        )
    elif gallery.samples and gallery.samples[0].shape == images.images.shape[1:]:
        _find_nearest(gallery, images.images, images)
    return gallery


def _draw_samples(gallery: Gallery, model: models.Model) -> None:
    if model.label_names:
        labels = model.label_names[:10]
        gallery.captions = labels * max(1, COLUMNS // len(labels))
        gallery.columns = len(gallery.captions)
    n = gallery.columns * ROWS
    gallery.samples = list(model.sample(n, seed=0, labels=list(gallery.captions) or None))


def _choose_real(gallery: Gallery, dataset: Dataset) -> None:
    """Training images at random, in the columns of their labels if the samples have them."""
    rng = np.random.default_rng(0)
    rows = max(1, len(gallery.samples) // gallery.columns) if gallery.samples else ROWS
    ids = rng.permutation(dataset.train_ids)
    if not gallery.captions:
        gallery.real = list(dataset.batch(ids[: rows * gallery.columns]))
        return
    names = dataset.label_names
    of_label = {
        name: iter(ids[dataset.labels[ids] == names.index(name)] if name in names else [])
        for name in gallery.captions
    }
    chosen = [next(of_label[name], None) for _ in range(rows) for name in gallery.captions]
    gallery.real = [None if i is None else dataset.images[i] for i in chosen]


def _find_nearest(gallery: Gallery, images: NDArray[np.uint8], dataset: Dataset) -> None:
    samples = np.stack(gallery.samples[:PAIRS])
    scale = np.sqrt(samples[0].size)
    distances, ids = nearest(samples, images, dataset.train_ids, 1)
    gallery.pairs = [
        (sample, images[i], float(distance / scale))
        for sample, (distance,), (i,) in zip(samples, distances, ids, strict=True)
    ]
    held_out = np.random.default_rng(0).permutation(dataset.held_out_ids)[:HELD_OUT]
    if len(held_out):
        distances, _ = nearest(dataset.batch(held_out), images, dataset.train_ids, 1)
        gallery.usual = float(np.median(distances) / scale)
        gallery.held_out_used = len(held_out)
