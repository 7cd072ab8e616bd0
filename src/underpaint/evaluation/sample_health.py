"""Do samples look like real images? Noise, blurred, copies or good, in milliseconds.

Two measures of an image, in grey levels (premultiplied, and of alpha, where there is transparency),
are compared with those of real images of the same set:

    grain   the lower quartile over its 3×3 neighbourhoods of √v, v the variance within one
            (in a channel, mean over them): noise reaches the quietest parts of an image too
    detail  √ of the power at radial frequencies of at least 1/4 cycle per pixel, under a Hann
            window, which keeps the jump from one edge to the opposite one out of it

    noise    q1(grain of samples) > √((1.25 · q3(real grain))² + 10²)
    copies   more than half of the samples are near copies: d1 < d2/3, the distances to their two
             nearest training images (Yoon et al. 2023); of points spread evenly in D dimensions
             a share of 3^−D are, at most a third
    blurred  q3(detail of samples) < 0.5 · q1(real detail) − 1
    good     none of these: as sharp as real images, without noise, and no copies

in this order; q1, q3: quartiles over images. Quartiles that face each other keep a set of flat and
of rough images from being judged by which of them happen to be among a few samples. Real textures
as rough as noise are good; noise is found there where it is louder than they are.

Measured with 32 samples beside 64 drawn avatars: those with white noise of 13 grey levels are
noise, with 8 they are not; a Gaussian of 1 pixel makes them blurred, one of 0.7 does not.
Of 60 draws of 4, 8 and 32 real images none was called anything but good, in fourteen sets, two
of them mixed; of one or two images some were.
Sets without fine detail (smooth gradients) cannot show that samples are blurred.
"""

from typing import Any, Literal, NamedTuple, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from underpaint.core.alpha import premultiplied
from underpaint.evaluation.nearest import distance_ratios
from underpaint.training.training_set import TrainingSet

Images: TypeAlias = NDArray[np.uint8]  # [n, H, W, C]
Verdict = Literal["noise", "copies", "blurred", "good"]

SMALLEST = 8  # pixels of a side
REAL = 64  # real images
NUMBERS = 1 << 21  # of the images measured
SEARCHED = 1 << 23  # numbers of the training images among which copies are looked for
ROUGHER, GRAIN = 1.25, 10.0  # times the real grain, and grey levels
SHARPER, ROUNDING = 0.5, 1.0  # of the real detail, and grey levels
BEGUN = 1000  # images, before which a network has hardly changed


class Texture(NamedTuple):
    """Of each image, in grey levels."""

    grain: NDArray[np.float64]  # [n]
    detail: NDArray[np.float64]  # [n]


class Health(NamedTuple):
    """A verdict on samples, and the numbers behind it."""

    verdict: Verdict
    grain: float  # lower quartile of the samples, grey levels
    noise_from: float  # grain from which they are noise
    detail: float  # upper quartile of the samples, grey levels
    blurred_below: float
    copied: float | None  # share of near copies; None where no training images were searched


class Reference:
    """A fixed few of a data set's images, measured once, that samples are compared with."""

    def __init__(self, real: Images, train: Images) -> None:
        self.real, self.train = texture(real), train
        self.shape = real.shape[1:]

    @classmethod
    def of(cls, data: TrainingSet, seed: int) -> Self | None:
        """Chosen by `seed`; None where images are too small to be judged, or not whole."""
        height, width = data.size
        if data.images is None or min(height, width) < SMALLEST:
            return None
        each = height * width * data.channels
        ids = np.random.default_rng(seed).permutation(data.train_ids)

        def first(count: int) -> Images:
            return data.pixels(np.sort(ids[:count]))  # the cache is read forwards

        return cls(first(min(REAL, max(8, NUMBERS // each))), first(max(8, SEARCHED // each)))

    def record(self, samples: Images, seen: int, total: int) -> dict[str, Any] | None:
        """What is recorded of `samples` after `seen` of `total` images of a run, with a sentence.

        None where they are of another size than the real images.
        """
        if samples.shape[1:] != self.shape:
            return None
        health = judge(samples[: max(8, NUMBERS // samples[0].size)], self.real, self.train)
        return health._asdict() | {"sentence": sentence(health, seen, total)}


def judge(samples: Images, real: Texture, train: Images | None = None) -> Health:
    """The health of `samples` uint8 [n, H, W, C] beside `real` images of that size.

    `train`: training images [m, H, W, C] among which copies are looked for.
    """
    drawn = texture(samples)
    grain, detail = np.quantile(drawn.grain, 0.25), np.quantile(drawn.detail, 0.75)
    noise_from = np.hypot(ROUGHER * np.quantile(real.grain, 0.75), GRAIN)
    blurred_below = SHARPER * np.quantile(real.detail, 0.25) - ROUNDING
    copied = None
    if train is not None and len(train) > 1:
        ratios = distance_ratios(samples, train, np.arange(len(train)), background=1)
        copied = float(ratios.copies().mean())
    verdict: Verdict = "good"
    if grain > noise_from:
        verdict = "noise"
    elif copied is not None and copied > 0.5:
        verdict = "copies"
    elif detail < blurred_below:
        verdict = "blurred"
    return Health(
        verdict, float(grain), float(noise_from), float(detail), float(blurred_below), copied
    )


def texture(images: Images) -> Texture:
    """Grain and detail of `images` uint8 [n, H, W, C], H and W at least 3."""
    _, H, W, _ = images.shape
    x = premultiplied(images).astype(np.float64)
    variance = np.maximum(_mean3(x * x) - _mean3(x) ** 2, 0).mean(3)  # [n, H − 2, W − 2]
    grain = np.sqrt(np.quantile(variance.reshape(len(x), -1), 0.25, axis=1))
    window = np.outer(np.hanning(H + 2)[1:-1], np.hanning(W + 2)[1:-1])[:, :, None]
    window /= np.sqrt((window**2).mean()) * H * W
    spectrum = np.fft.fft2((x - x.mean((1, 2), keepdims=True)) * window, axes=(1, 2))
    radius = np.hypot(np.fft.fftfreq(H)[:, None], np.fft.fftfreq(W))
    power = (np.abs(spectrum) ** 2).mean(3)[:, radius >= 0.25]
    return Texture(grain, np.sqrt(power.sum(1)))


def _mean3(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of the 3×3 neighbourhoods of [n, H, W, C]: [n, H − 2, W − 2, C]."""
    rows = x[:, :-2] + x[:, 1:-1] + x[:, 2:]
    return (rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]) / 9


def sentence(health: Health, seen: int, total: int) -> str | None:
    """What is wrong with the samples after `seen` of `total` images, and what to do about it."""
    after = f"after {seen:,} of {total:,} images"
    if health.verdict in ("noise", "blurred") and total <= seen < BEGUN:
        return f"{seen:,} images seen are hardly a beginning: train longer (--minutes)"
    match health.verdict:
        case "noise" if 2 * seen < total:
            return f"samples are still noise {after}; if they stay so, train longer (--minutes)"
        case "noise":
            return (
                f"samples are still noise {after}: train longer (--minutes), or on smaller images "
                "(--size), which are faster to train on"
            )
        case "copies":
            return (
                f"most samples are near copies of training images {after}: train on more images, "
                "or for less time"
            )
        case "blurred":
            advice = "; train longer (--minutes)" if seen >= total else ""
            return (
                f"samples are still blurred {after}: they lack the fine detail of real images"
                f"{advice}"
            )
    return None
