"""The overfit check: does the network denoise images it has not seen as well as those it has?

For fixed images x0, noises n and 8 noise levels it measures the mean squared error of x0

    error(sigma) = mean over visible patches of (D(x0 + sigma n, sigma) − x0)²,   x0 in [-1, 1]

on training and on held-out images. While a network learns the distribution both fall together; from
the moment it memorizes single images the held-out error stays or rises while the error on
training images goes on falling. Their difference is the gap.

The bins are equally spaced in log-SNR = −2 ln sigma, from −6 (sigma 20: almost only noise) to 6
(sigma 0.05: almost clean), cut where the process's own levels end; each is measured at its middle.
The range is the same for all processes on purpose: in the frame x/alpha, in which `Denoiser` works,
the error at a level then means the same for each of them. Nothing here depends on the global random
state or changes it, so that a checked run is the run that was not checked.

`below_wiener` = 1 − held-out error / that of a Wiener filter (`wiener`), on the same noisy images.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import torch

from underpaint.core.denoiser import Denoiser
from underpaint.core.masks import MaskSpec, gather, visible_count
from underpaint.core.schedules import Process
from underpaint.core.spaces import Space
from underpaint.evaluation import wiener
from underpaint.evaluation.early_stopping import judge
from underpaint.evaluation.sample_health import Reference
from underpaint.evaluation.sample_metrics import Drawn
from underpaint.model import Model, evaluating
from underpaint.training.monitor import Finding
from underpaint.training.seeding import seed_from
from underpaint.training.training_set import Examples, TrainingSet

BINS = 8
LOG_SNR = (-6.0, 6.0)


class OverfitCheck:
    """Fixed images and noises, and the errors of a denoiser on them.

    `train`, `held_out`: images to measure on, with their labels int64 [n] (None for a network
    without labels); `held_out` may be None. Noises and masks are functions of `seed` alone, which
    nothing else of the run depends on.
    """

    def __init__(
        self,
        train: Examples,
        held_out: Examples | None,
        space: Space,
        process: Process,
        seed: int,
        *,
        train_labels: np.ndarray | None = None,
        held_out_labels: np.ndarray | None = None,
        whole: bool = True,
        batch: int = 64,
    ) -> None:
        """`whole`: whether the examples are whole images; else they have masks of their own."""
        self.space = space
        self.seed = seed
        self.batch = batch
        self.edges = log_snr_edges(process)
        self.whole = whole
        self.sampled: Drawn | None = None
        # what samples should look like
        self.reference: Callable[[], Reference | None] = lambda: None
        self.fitted_to: Callable[[], Examples] = lambda: train  # images of the Wiener filter
        self.wiener: dict[MaskSpec | None, list[float]] = {}  # its errors by bin, once measured
        self.sides: list[tuple[Examples, np.ndarray | None]] = [(train, train_labels)]
        if held_out is not None and len(held_out):
            self.sides.append((held_out, held_out_labels))

    @classmethod
    def of(
        cls, data: TrainingSet, model: Model, seed: int, limit: int, samples: int = 0
    ) -> Self | None:
        """The check of a run: at most `limit` images of each side, chosen by `seed`.

        `samples`: how many it draws for its `scores`. None if there are no images to train on.
        """
        train, held_out = (_chosen(ids, limit, seed) for ids in (data.train_ids, data.held_out_ids))
        if not len(train):
            return None
        labelled = bool(model.label_names)
        check = cls(
            data.examples(train),
            data.examples(held_out) if len(held_out) else None,
            model.space,
            model.denoiser.process,
            seed,
            train_labels=data.labels[train] if labelled else None,
            held_out_labels=data.labels[held_out] if labelled else None,
            whole=data.images is not None,
        )
        each = math.prod(data.size) * data.channels
        most = min(wiener.FOR_EACH * limit, wiener.SAMPLE, max(64, wiener.NUMBERS // each))
        check.fitted_to = lambda: data.examples(_chosen(data.train_ids, most, seed))
        check.sampled = Drawn(data, samples, seed) if samples else None
        check.reference = functools.cache(lambda: Reference.of(data, seed))  # at the first grid
        return check

    def run(self, model: Model, spec: MaskSpec) -> list[dict[str, Any]]:
        """Records for metrics.jsonl: of whole images, and under `spec` if it hides any patch."""
        if not self.whole:
            return [self.measure(model.denoiser, spec)]
        records = [self.measure(model.denoiser)]
        if visible_count(spec, self.space.grid) < math.prod(self.space.grid):
            records.append(self.measure(model.denoiser, spec))
        return records

    def measure(self, denoiser: Denoiser, spec: MaskSpec | None = None) -> dict[str, Any]:
        """One record: errors by bin, their means, and the held-out standard error and gap.

        `spec`: of the masks; None: whole images. `held_out_images` has each held-out image's own
        error, a mean over the bins: `early_stopping` compares them one by one.
        """
        device = next((p.device for p in denoiser.parameters()), torch.device("cpu"))
        with evaluating(denoiser):
            errors = [
                self._errors(denoiser.denoise, side, spec, device)
                for side in range(len(self.sides))
            ]
        train_mean = float(errors[0].mean())
        record: dict[str, Any] = {
            "mask": "stage" if spec else "whole",
            "rate": spec.rate if spec else 0.0,
            "log_snr_edges": self.edges,
            "train": errors[0].mean(0).tolist(),
            "held_out": None,
            "train_mean": train_mean,
            "held_out_mean": None,
            "held_out_se": None,
            "gap": None,
            "held_out_images": None,
            "wiener": None,
            "below_wiener": None,
        }
        for held_out in errors[1:]:
            images, n = held_out.mean(1), len(held_out)  # [n]
            record |= {
                "held_out": held_out.mean(0).tolist(),
                "held_out_mean": float(images.mean()),
                "held_out_se": float(images.std(ddof=1) / math.sqrt(n)) if n > 1 else 0.0,
                "gap": float(images.mean()) - train_mean,
                "held_out_images": [float(f"{error:.6g}") for error in images],
            }
            if filtered := self._wiener(spec):
                below = 1 - float(images.mean() / np.mean(filtered))
                record |= {"wiener": filtered, "below_wiener": below}
        return record

    def scores(self, model: Model) -> dict[str, Any] | None:
        """A record of what `model` draws (`sample_metrics.Drawn`), if samples are wanted."""
        return None if self.sampled is None else self.sampled.measure(model)

    def health(self, samples: np.ndarray, progress: tuple[int, int]) -> dict[str, Any] | None:
        """A record of how samples look beside real images (`sample_health`), if that is known."""
        reference = self.reference()
        return None if reference is None else reference.record(samples, *progress)

    def finding(self, records: Sequence[dict[str, Any]]) -> Finding:
        """What the checks among `records` say about going on (`early_stopping.judge`)."""
        return judge(records)

    def _wiener(self, spec: MaskSpec | None) -> list[float] | None:
        """The Wiener filter's errors by bin on the held-out images; measured at the first check."""
        if spec not in self.wiener:
            images = self.fitted_to()
            if len(images) < 2:  # no spectrum
                return None
            masks = torch.Generator().manual_seed(seed_from(self.seed, "wiener", "mask"))
            denoise = wiener.denoiser(images, spec, self.space, masks)
            errors = self._errors(denoise, 1, spec, torch.device("cpu"))
            self.wiener[spec] = errors.mean(0).tolist()
        return self.wiener[spec]

    @torch.inference_mode()
    def _errors(
        self,
        denoise: Callable[..., torch.Tensor],
        side: int,
        spec: MaskSpec | None,
        device: torch.device,
    ) -> np.ndarray:
        """Errors float64 [n, BINS] of one side; its number tells noises and masks apart."""
        images, labels = self.sides[side]
        # drawn on the CPU, so that all devices see the same; noises do not depend on the mask
        noises = torch.Generator().manual_seed(seed_from(self.seed, "overfit", "noise", side))
        masks = torch.Generator().manual_seed(seed_from(self.seed, "overfit", "mask", side))
        n, N = len(images), math.prod(self.space.grid)
        result = np.empty((n, BINS))
        for start in range(0, n, self.batch):
            part = slice(start, min(n, start + self.batch))
            classes = None if labels is None else torch.tensor(labels[part].copy(), device=device)
            x0, mask = images.batch(part, spec or MaskSpec(), masks)  # [b, V, P]
            on_device = mask.to(device)
            for i in range(BINS):
                sigma = math.exp(-(self.edges[i] + self.edges[i + 1]) / 4)
                noise = torch.randn(len(x0), N, x0.shape[2], generator=noises)
                x = (x0 + sigma * gather(noise, mask.visible)).to(device)
                levels = torch.full((len(x0),), sigma, device=device)
                denoised = denoise(x, levels, classes, on_device)
                squares = (denoised.float().cpu() - x0).square_()
                result[part, i] = squares.mean((1, 2)).double().numpy()
        return result


def log_snr_edges(process: Process) -> list[float]:
    """The BINS + 1 edges of the bins, ascending."""
    low = max(LOG_SNR[0], -2 * math.log(process.sigma_max))
    high = min(LOG_SNR[1], -2 * math.log(process.sigma_min))
    return [low + (high - low) * i / BINS for i in range(BINS + 1)]


def _chosen(ids: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """At most `limit` of `ids`, ascending (the cache is read forwards), a function of `seed`."""
    if len(ids) <= limit:
        return np.sort(ids)
    return np.sort(np.random.default_rng(seed).choice(ids, limit, replace=False))
