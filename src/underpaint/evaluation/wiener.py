"""The Wiener filter: the best linear denoiser, a scale for a network's held-out error.

It knows of the training images their mean and power spectrum alone. With U the orthonormal DCT-II
over an image, colours turned to the eigenvectors of their covariance, and m and λ the mean and
variance of each coefficient of U x0 over training images,

    D(x, sigma) = Uᵀ (m + λ / (λ + sigma²) · (U x − m)),   x = x0 + sigma n
    error(sigma) = mean of λ sigma² / (λ + sigma²)          on images of this mean and spectrum

is the posterior mean of that Gaussian (Wiener 1949); the DCT stands in for the eigenvectors of the
covariance, as it nearly does for stationary images (Ahmed et al. 1974). At masks, and of sealed
data, it filters each visible patch by itself.

The check filters its own noisy held-out images rather than use the formula: with the same images
and noises chance cancels, and filter and network are both judged on images that neither has seen.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from underpaint.core.masks import MaskSpec
from underpaint.core.spaces import Space
from underpaint.training.training_set import Examples

SAMPLE, NUMBERS = 4096, 1 << 26  # training images it is fitted to, and numbers of these, at most
FOR_EACH = 32  # training images for each of a check, so that it costs as much as it has images
AT_ONCE = 1 << 20  # numbers
MARGIN = 1.01  # times the filter's error: less is not called worse

Array = NDArray[np.floating[Any]]


class Wiener(NamedTuple):
    """The filter of planes [n, C, H, W]."""

    mean: Array  # [C, H, W] of the coefficients
    power: Array  # λ [C, H, W]
    colours: Array  # [C, C], the eigenvectors in columns

    @classmethod
    def fit(cls, parts: Iterable[Array]) -> Self:
        """Of images in `parts` [n, C, H, W], two in all; the first says which colours."""
        count, total, squares, colours = 0, np.zeros(()), np.zeros(()), np.zeros(())
        for part in parts:
            z = dct(part)
            if not count:
                d = (z - z.mean(0)).swapaxes(0, 1).reshape(z.shape[1], -1)
                colours = np.linalg.eigh(d @ d.T)[1]
            z = _turned(colours.T, z)
            count += len(z)
            total = total + z.sum(0, dtype=np.float64)
            squares = squares + np.einsum("nchw,nchw->chw", z, z, dtype=np.float64)
        mean = total / count
        return cls(mean, (squares / count - mean**2).clip(0) * count / (count - 1), colours)

    def denoise(self, x: Array, sigma: Array) -> Array:
        """x0 from planes `x` [n, C, H, W] at noise levels `sigma` [n], above 0."""
        mean, power, colours = (a.astype(x.dtype) for a in self)
        z = _turned(colours.T, dct(x))
        z = mean + power / (power + sigma[:, None, None, None] ** 2) * (z - mean)
        return dct(_turned(colours, z), inverse=True)


def dct(x: Array, inverse: bool = False) -> Array:
    """The orthonormal DCT-II of planes [n, C, H, W], or what has this transform.

    As scipy's, whose import takes longer than all transforms of a short run.
    """
    rows, columns = (_cosines(side).astype(x.dtype) for side in x.shape[2:])
    return rows.T @ x @ columns if inverse else rows @ x @ columns.T


@functools.cache
def _cosines(n: int) -> NDArray[np.float64]:
    """The transform of n numbers as a matrix [n, n], a frequency in each row."""
    waves = np.cos(np.pi / n * np.arange(n)[:, None] * (np.arange(n) + 0.5))
    return np.concatenate([waves[:1] / np.sqrt(n), waves[1:] * np.sqrt(2 / n)])


def _turned(matrix: Array, x: Array) -> Array:
    """Colours of [n, C, H, W] by a matrix [C, C]."""
    return (matrix.astype(x.dtype) @ x.reshape(*x.shape[:2], -1)).reshape(x.shape)


def denoiser(
    images: Examples, spec: MaskSpec | None, space: Space, generator: torch.Generator
) -> Callable[..., Tensor]:
    """`denoise(x, sigma, labels, mask)` as of a `Denoiser`, fitted to two training images or more.

    `spec`: of the masks; None: whole images.
    """
    corner = torch.zeros(1, space.grid[0] * space.grid[1], space.patch_dim)
    corner[0, 0, 0] = 1
    gain = float(space.decode(corner).norm())  # planes / gain: noise stays what it is in patches

    def planes(patches: Tensor) -> Array:
        if spec is None:
            return (space.decode(patches) / gain).numpy()
        return patches.reshape(-1, space.cut[0], space.patch, space.patch).numpy()

    count = -(-len(images) // max(16, AT_ONCE // corner.numel()))
    parts = (slice(i, None, count) for i in range(count))  # each from everywhere
    found = Wiener.fit(planes(images.batch(p, spec or MaskSpec(), generator)[0]) for p in parts)

    def denoise(x: Tensor, sigma: Tensor, labels: object = None, mask: object = None) -> Tensor:
        noisy = planes(x)
        levels = sigma.repeat_interleave(len(noisy) // len(x)).numpy()
        x0 = torch.from_numpy(found.denoise(noisy, levels))
        return space.encode(x0 * gain) if spec is None else x0.reshape(x.shape)

    return denoise


def below(check: dict[str, Any]) -> str | None:
    """`62 % below a Wiener filter`, of a record of the check; None where that is not known."""
    if (share := check.get("below_wiener")) is None:
        return None
    percent, place = round(100 * abs(share)), "" if check["mask"] == "whole" else " of each patch"
    side = f"{percent} % {'below' if share > 0 else 'above'}" if percent else "the same as"
    return f"{side} a Wiener filter{place}"


def worse(check: dict[str, Any]) -> str | None:
    """`worse than linear filtering at the lowest noise`, if at any level it is."""
    pairs = list(zip(check["held_out"], check.get("wiener") or [], strict=False))  # falling noise
    levels = [i for i, (error, filtered) in enumerate(pairs) if error > MARGIN * filtered]
    n, last = len(levels), len(pairs) - 1
    where = "every noise level" if n > last else f"{n} of {last + 1} noise levels"
    if 0 < n <= last and (levels[-1] == n - 1 or levels[0] == last - n + 1):
        end = "highest" if levels[0] == 0 else "lowest"
        where = f"the {end} noise" if n == 1 else f"the {n} {end} noise levels"
    return f"worse than linear filtering at {where}" if n else None
