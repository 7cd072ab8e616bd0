"""The score of a finished run on one half of the held-out images.

    half A   chooses settings          half B   is reported

so that what was chosen because it suits some images is not praised for suiting them. The halves are
a function of the images' places alone: all arms, seeds and points are scored on the same.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from underpaint import config, data, model
from underpaint.data import Dataset
from underpaint.errors import UserError
from underpaint.evaluation import features, metrics
from underpaint.evaluation.evaluate import LEAST
from underpaint.evaluation.validation import OverfitCheck
from underpaint.training.training_set import Array

Half = Literal["A", "B"]


def half(dataset: Dataset, which: Half, most: int) -> np.ndarray:
    """At most `most` held-out ids of one half. Raises UserError if there are none."""
    ids = np.random.default_rng(0).permutation(np.sort(dataset.held_out_ids))
    middle = len(ids) // 2
    if middle < 1:
        raise UserError(
            f"{len(ids)} held-out images cannot be halved; a study needs more, see data.held_out"
        )
    return ids[:middle][:most] if which == "A" else ids[middle : 2 * middle][:most]


def measure(
    folder: Path, score: str, which: Half, *, most: int, extractor: str, **sampling: Any
) -> float:
    """The score of the averaged weights of the finished run in `folder`; lower is better.

    `held-out loss`: mean squared error of x0 of whole images over eight noise levels.
    `FD`: Fréchet distance in the features of `extractor`, as many samples as images.
    `sampling`: what `Model.sample` shall do otherwise than the run's settings say.
    """
    run = config.load(folder / "config.yaml")
    dataset = data.prepare(run.data_of(run.last))
    ids = half(dataset, which, most)
    loaded = model.load(folder, device="cpu")
    if score == "held-out loss":
        if loaded.vae is not None:
            raise UserError("score held-out loss compares pixels; use FD for latents")
        labels = dataset.labels[ids] if loaded.label_names else None
        check = OverfitCheck(
            Array(dataset.batch(ids), loaded.space),
            None,
            loaded.space,
            loaded.denoiser.process,
            seed=0,
            train_labels=labels,
        )
        return float(check.measure(loaded.denoiser)["train_mean"])
    if len(ids) < LEAST:
        raise UserError(
            f"{len(ids)} images in half {which}: FD needs at least {LEAST}; hold out more images"
        )
    network = features.load(extractor)
    drawn = [int(label) for label in dataset.labels[ids]] if loaded.label_names else None
    samples = loaded.sample(len(ids), seed=0, labels=drawn, **sampling)
    found = [torch.from_numpy(network(images)) for images in (dataset.batch(ids), samples)]
    return float(metrics.frechet_distance(found[0], found[1]))
