"""The overfit check: does the network denoise images it has not seen as well as those it has?

For fixed images x0, noises n and 8 noise levels it measures the mean squared error of x0

    error(sigma) = mean over visible patches of (D(x0 + sigma n, sigma) − x0)²,   x0 in [-1, 1]

on training and on held-out images. While a network learns the distribution both fall together; from
the moment it learns single images by heart the held-out error stays or rises while the error on
training images goes on falling. Their difference is the gap.

The bins are equally spaced in log-SNR = −2 ln sigma, from −6 (sigma 20: almost only noise) to 6
(sigma 0.05: almost clean), cut where the process's own levels end; each is measured at its middle.
The range is the same for all processes on purpose: in the frame x/alpha, in which `Denoiser` works,
the error at a level then means the same for each of them. Nothing here depends on the global random
state or changes it, so that a checked run is the run that was not checked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from underpaint import config
from underpaint.core.denoiser import Denoiser
from underpaint.core.masks import Mask, draw, see, showing, shown, visible_count
from underpaint.core.salient import local_variance
from underpaint.core.schedules import Process
from underpaint.core.spaces import Space, from_uint8, levels
from underpaint.data import Dataset
from underpaint.evaluation.early_stopping import judge
from underpaint.evaluation.sample_health import Reference
from underpaint.evaluation.sample_metrics import Drawn
from underpaint.model import Model, evaluating
from underpaint.sealed.format import Sealed
from underpaint.training.monitor import Finding
from underpaint.training.seeding import key

__all__ = ["BINS", "LOG_SNR", "OverfitCheck", "Shown", "log_snr_edges"]

BINS = 8
LOG_SNR = (-6.0, 6.0)


class Shown(NamedTuple):
    """What is left of sealed images."""

    patches: np.ndarray  # uint8 [n, V, P]
    positions: np.ndarray  # int64 [n, V]
    multiple: int  # of the sides of crops, in patches


class OverfitCheck:
    """Fixed images and noises, and the errors of a denoiser on them.

    `train`, `held_out`: uint8 [n, H, W, C], or latents float32 [n, c, h, w], or what is `Shown` of
    sealed images, with their labels int64 [n] (None for a network without labels); `held_out` may
    be None. Images, noises and masks are functions of `seed` alone. Sealed images are measured at
    their own masks alone.
    """

    def __init__(
        self,
        train: np.ndarray | Shown,
        held_out: np.ndarray | Shown | None,
        space: Space,
        process: Process,
        seed: int,
        *,
        train_labels: np.ndarray | None = None,
        held_out_labels: np.ndarray | None = None,
        batch: int = 64,
    ) -> None:
        self.space = space
        self.seed = seed
        self.batch = batch
        self.edges = log_snr_edges(process)
        self.sealed = isinstance(train, Shown)
        self.drawn: Drawn | None = None
        self.reference: Reference | None = None  # what samples should look like
        self.sides: list[tuple[np.ndarray | Shown, np.ndarray | None]] = [(train, train_labels)]
        if held_out is not None and _count(held_out):
            self.sides.append((held_out, held_out_labels))

    @classmethod
    def of(
        cls, dataset: Dataset | Sealed, model: Model, seed: int, limit: int, samples: int = 0
    ) -> OverfitCheck | None:
        """The check of a run: at most `limit` images of each side, chosen by `seed`.

        `samples`: how many it draws for its `scores`. None if there are no images to train on.
        """
        train, held_out = (
            _chosen(ids, limit, seed) for ids in (dataset.train_ids, dataset.held_out_ids)
        )
        if not len(train):
            return None
        labelled = bool(model.label_names)
        read = _reader(dataset)
        check = cls(
            read(train),
            read(held_out) if len(held_out) else None,
            model.space,
            model.denoiser.process,
            seed,
            train_labels=dataset.labels[train] if labelled else None,
            held_out_labels=dataset.labels[held_out] if labelled else None,
        )
        check.drawn = Drawn(dataset, samples, seed) if samples else None
        if isinstance(dataset, Dataset):  # sealed data show no whole image to compare with
            check.reference = Reference.of(dataset, seed)
        return check

    def run(self, model: Model, stage: config.Stage, rate: float) -> list[dict[str, Any]]:
        """Records for metrics.jsonl: of whole images, and at the stage's mask if it hides any."""
        if self.sealed:
            return [self.measure(model.denoiser, stage.mask, stage.rate)]
        records = [self.measure(model.denoiser)]
        visible = visible_count(
            stage.mask,
            self.space.grid,
            rate,
            block=stage.block,
            multiple=model.denoiser.stride,
        )
        if visible < math.prod(self.space.grid):
            records.append(
                self.measure(
                    model.denoiser,
                    stage.mask,
                    rate,
                    block=stage.block,
                    temperature=stage.temperature,
                )
            )
        return records

    def measure(
        self,
        denoiser: Denoiser,
        mask: str = "none",
        rate: float = 0.0,
        *,
        block: int = 2,
        temperature: float = 1.0,
    ) -> dict[str, Any]:
        """One record: errors by bin, their means, and the held-out standard error and gap.

        `held_out_images` has each held-out image's own error, a mean over the bins: `stopping`
        compares them one by one.
        """
        errors = [
            self._errors(denoiser, images, labels, mask, rate, block, temperature, side)
            for side, (images, labels) in enumerate(self.sides)
        ]
        train, held_out = errors[0], errors[1] if len(errors) > 1 else None
        train_mean = float(train.mean())
        record: dict[str, Any] = {
            "mask": "whole" if mask == "none" else "stage",
            "rate": rate if mask != "none" else 0.0,
            "log_snr_edges": self.edges,
            "train": train.mean(0).tolist(),
            "held_out": None,
            "train_mean": train_mean,
            "held_out_mean": None,
            "held_out_se": None,
            "gap": None,
            "held_out_images": None,
        }
        if held_out is not None:
            images = held_out.mean(1)  # [n]
            record |= {
                "held_out": held_out.mean(0).tolist(),
                "held_out_mean": float(images.mean()),
                "held_out_se": _standard_error(images),
                "gap": float(images.mean()) - train_mean,
                "held_out_images": [float(f"{error:.6g}") for error in images],
            }
        return record

    def scores(self, model: Model) -> dict[str, Any] | None:
        """A record of what `model` draws (`drawn.Drawn`), if samples are wanted."""
        return None if self.drawn is None else self.drawn.measure(model)

    def health(self, samples: np.ndarray, progress: tuple[int, int]) -> dict[str, Any] | None:
        """A record of how samples look beside real images (`sample_health`), if that is known."""
        return None if self.reference is None else self.reference.record(samples, *progress)

    def finding(self, records: Sequence[dict[str, Any]]) -> Finding:
        """What the checks among `records` say about going on (`stopping.judge`)."""
        return judge(records)

    @torch.inference_mode()
    def _errors(
        self,
        denoiser: Denoiser,
        images: np.ndarray | Shown,
        labels: np.ndarray | None,
        kind: str,
        rate: float,
        block: int,
        temperature: float,
        side: int,
    ) -> np.ndarray:
        """Errors float64 [n, BINS] of one side; `side` tells their noises and masks apart."""
        device = next((p.device for p in denoiser.parameters()), torch.device("cpu"))
        sees = str(denoiser.backbone.sees)
        # drawn on the CPU, so that all devices see the same; noises do not depend on the mask
        noises = torch.Generator().manual_seed(key(self.seed, "overfit", "noise", side))
        masks = torch.Generator().manual_seed(key(self.seed, "overfit", "mask", side))
        n, grid = _count(images), self.space.grid
        result = np.empty((n, BINS))
        with evaluating(denoiser):
            for start in range(0, n, self.batch):
                part = slice(start, start + self.batch)
                own = None if labels is None else torch.from_numpy(labels[part].copy()).to(device)
                if isinstance(images, Shown):
                    x0 = levels(images.patches[part])  # [B, V, P]
                    visible = torch.from_numpy(images.positions[part])
                    mask = showing(grid, visible, kind, images.multiple)
                else:
                    planes = _planes(np.ascontiguousarray(images[part]))
                    x0 = self.space.encode(planes)
                    mask = draw(
                        kind,
                        grid,
                        len(x0),
                        rate,
                        block=block,
                        multiple=denoiser.stride,
                        generator=masks,
                        contrast=local_variance(planes, grid) if kind == "salient" else None,
                        temperature=temperature,
                    )
                target = shown(x0, mask)  # [B, V, P]
                for i in range(BINS):
                    sigma = math.exp(-(self.edges[i] + self.edges[i + 1]) / 4)
                    noise = torch.randn(x0.shape, generator=noises)
                    x = see(x0 + sigma * noise, mask, sees).to(device)
                    found = denoiser.denoise(
                        x, torch.full((len(x0),), sigma, device=device), own, _to(mask, device)
                    )
                    squares = (found.float().cpu() - target).square_()
                    result[part, i] = squares.mean((1, 2)).double().numpy()
        return result


def _reader(dataset: Dataset | Sealed) -> Callable[[np.ndarray], np.ndarray | Shown]:
    """How the images of a data set are read for a check."""
    if isinstance(dataset, Sealed):
        multiple = int(dataset.about["multiple"])
        return lambda ids: Shown(*dataset.batch(ids), multiple)
    return dataset.batch if dataset.latents is None else dataset.latents.means


def _count(images: np.ndarray | Shown) -> int:
    return len(images.patches) if isinstance(images, Shown) else len(images)


def log_snr_edges(process: Process) -> list[float]:
    """The BINS + 1 edges of the bins, ascending."""
    low = max(LOG_SNR[0], -2 * math.log(process.sigma_max))
    high = min(LOG_SNR[1], -2 * math.log(process.sigma_min))
    return [low + (high - low) * i / BINS for i in range(BINS + 1)]


def _standard_error(values: np.ndarray) -> float:
    """Of the mean of `values` [n]; 0 for a single one."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


def _chosen(ids: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """At most `limit` of `ids`, ascending (the cache is read forwards), a function of `seed`."""
    if len(ids) <= limit:
        return np.sort(ids)
    return np.sort(np.random.default_rng(seed).choice(ids, limit, replace=False))


def _planes(images: np.ndarray) -> Tensor:
    """Decoded images, or latents as they are → float32 [B, C, H, W]."""
    return from_uint8(images) if images.dtype == np.uint8 else torch.from_numpy(images)


def _to(mask: Mask, device: torch.device) -> Mask:
    def moved(ids: Tensor | None) -> Tensor | None:
        return None if ids is None else ids.to(device)

    return Mask(mask.grid, moved(mask.visible), moved(mask.hidden), moved(mask.window))
