"""Distances between two sets of images, from their features x, y [n, D].

    Fréchet distance    ‖μx − μy‖² + tr(Σx + Σy − 2 (Σx Σy)^½)      Heusel 2017, 1706.08500
    kernel distance     unbiased MMD² with k = (x·y/D + 1)³          Bińkowski 2018, 1801.01401
    precision, recall   share of one set that lies in a ball of the other, whose radius reaches
                        its 3rd neighbour                            Kynkäänniemi 2019, 1904.06991
    density, coverage   real balls, to the 5th neighbour, that hold a sample: how many, and which
                        share of them all                            Naeem 2020, 2002.09797

The root's trace is Σ √λ over the eigenvalues λ of the symmetric Rᵀ Σy R with Σx = R Rᵀ, in float64;
no ridge is added. Directions in which a covariance is only rounding (λ ≤ D·ε·λ_max) count as zero,
so that fewer images than features give a finite value. All distances fall with more images: compare
equal counts only. Large products are float32 (features are no better), their sums float64.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from underpaint.evaluation.intervals import Interval

GROUPS = 20
NEAR, DENSE = 3, 5  # neighbours for precision and recall, for density and coverage
SUBSETS, SUBSET = 100, 1000


class Moments(NamedTuple):
    """Mean [D] and covariance [D, D] in float64, of `n` images."""

    mean: Tensor
    covariance: Tensor
    n: int


def moments(features: Tensor) -> Moments:
    """Of features [n, D]; the covariance divides by n − 1."""
    n = len(features)
    x = features.double()
    mean = x.mean(0)
    x = x - mean
    return Moments(mean, x.T @ x / (n - 1), n)


def frechet(x: Moments, y: Moments) -> float:
    """Squared Fréchet distance of the Gaussians with these moments; never below 0."""
    values, vectors = torch.linalg.eigh(x.covariance)
    kept = values > _rounding(values)
    root = vectors[:, kept] * values[kept].sqrt()  # [D, rank]
    common = torch.linalg.eigvalsh(root.T @ y.covariance @ root)
    common = common[common > _rounding(common)]
    means = (x.mean - y.mean).square().sum()
    traces = x.covariance.trace() + y.covariance.trace() - 2 * common.sqrt().sum()
    return max(0.0, float(means + traces))


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """`frechet` of the features x, y [n, D].

    Of fewer images than features, X and Y centred and divided by √(n − 1), the root's trace is the
    sum of the singular values of X Yᵀ, in a fraction of the time.
    """
    if max(len(x), len(y)) >= x.shape[1]:
        return frechet(moments(x), moments(y))
    one, two = x.double(), y.double()
    means = (one.mean(0) - two.mean(0)).square().sum()
    one, two = ((z - z.mean(0)) / math.sqrt(len(z) - 1) for z in (one, two))
    common = torch.linalg.svdvals(one @ two.T).sum()
    return max(0.0, float(means + one.square().sum() + two.square().sum() - 2 * common))


def frechet_difference(x: Tensor, other: Tensor, y: Tensor) -> Interval:
    """How much farther x is from y than `other` is, with the jackknife's interval.

    x and `other` [n, D] are of the same seeds: what is left out of one is left out of both, so that
    the chance that they share cancels.
    """
    D = x.shape[1]

    def farther(both: Tensor, y: Tensor) -> float:
        return frechet_distance(both[:, :D], y) - frechet_distance(both[:, D:], y)

    both = torch.cat([x, other], 1)
    return jackknife(farther, both, y, farther(both, y))


def _rounding(eigenvalues: Tensor) -> float:
    """Below this an eigenvalue of the matrix is nothing but rounding."""
    largest = float(eigenvalues.max()) if len(eigenvalues) else 0.0
    return len(eigenvalues) * torch.finfo(torch.float64).eps * max(largest, 0.0)


# --- kernel distance --------------------------------------------------------------------------


def kernel_distance(
    x: Tensor, y: Tensor, *, subsets: int = SUBSETS, size: int = SUBSET, seed: int = 0
) -> tuple[float, float | None]:
    """Mean and standard deviation of MMD² over random subsets of min(`size`, n) features a side.

    Where a subset would be the whole of both sets they are all the same: one is computed, and there
    is no deviation (None).
    """
    size = min(size, len(x), len(y))
    if size == len(x) == len(y):
        return mmd2(x, y), None
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(subsets):
        a, b = (torch.from_numpy(rng.permutation(len(z))[:size]).to(z.device) for z in (x, y))
        values.append(mmd2(x[a], y[b]))
    return float(np.mean(values)), float(np.std(values))


def mmd2(x: Tensor, y: Tensor) -> float:
    """Unbiased MMD² of x [n, D] and y [m, D]; can be slightly negative."""
    n, m = len(x), len(y)
    xx, yy, xy = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    radii = (xx.sum() - xx.trace()) / (n * (n - 1)) + (yy.sum() - yy.trace()) / (m * (m - 1))
    return float(radii - 2 * xy.mean())


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T).double().div_(x.shape[1]).add_(1).pow_(3)


# --- neighbours -------------------------------------------------------------------------------


class Manifold(NamedTuple):
    """Shares, of 1; density can be above 1."""

    precision: float
    recall: float
    density: float
    coverage: float


def manifold(real: Tensor, samples: Tensor, *, memory: int = 1 << 28) -> Manifold:
    """All four from one pass over the distances between `real` [n, D] and `samples` [m, D].

    `memory`: bytes of distances at once. Raises ValueError for no more features than neighbours.
    """
    if min(len(real), len(samples)) <= DENSE:
        raise ValueError(f"{len(real)} and {len(samples)} features for {DENSE} nearest")
    centre = real.mean(0)  # ‖a‖² + ‖b‖² − 2 a·b cancels least around the origin
    real, samples = real - centre, samples - centre
    radii = _radii(real, (NEAR, DENSE), memory)  # [n, 2]
    of_samples = _radii(samples, (NEAR,), memory)[:, 0]  # [m]
    inside = torch.zeros(len(samples), dtype=torch.bool, device=real.device)
    balls = recalled = covered = 0
    for part in _parts(len(real), len(samples), memory):
        squares = _squares(real[part], samples)  # [rows, m]
        inside |= (squares <= radii[part, :1]).any(0)
        recalled += int((squares <= of_samples).any(1).sum())
        hits = squares < radii[part, 1:]
        balls += int(hits.sum())
        covered += int(hits.any(1).sum())
    n, m = len(real), len(samples)
    return Manifold(float(inside.float().mean()), recalled / n, balls / (DENSE * m), covered / n)


def _radii(x: Tensor, neighbours: tuple[int, ...], memory: int) -> Tensor:
    """Squared distance of each of x [n, D] to its k-th nearest other, for each k: [n, len]."""
    found = torch.empty(len(x), len(neighbours), device=x.device)
    for part in _parts(len(x), len(x), memory):
        squares = _squares(x[part], x)
        rows = torch.arange(len(squares), device=x.device)
        squares[rows, rows + part.start] = math.inf  # not its own neighbour
        nearest = squares.topk(max(neighbours), dim=1, largest=False).values
        found[part] = nearest[:, [k - 1 for k in neighbours]]
    return found


def _parts(rows: int, columns: int, memory: int) -> list[slice]:
    step = max(1, memory // (4 * columns))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances [n, m], never negative."""
    norms = a.square().sum(1, keepdim=True) + b.square().sum(1)
    return torch.addmm(norms, a, b.T, alpha=-2).clamp_(min=0)


# --- intervals --------------------------------------------------------------------------------


def jackknife(
    statistic: Callable[[Tensor, Tensor], float], x: Tensor, y: Tensor, value: float
) -> Interval:
    """95 % interval of `value` = statistic(x, y) by the delete-group jackknife.

    Both sets are shuffled and cut into GROUPS; leaving out the g-th of both gives θ_g, and
    variance = (G − 1)/G Σ (θ_g − mean θ)², with G − 1 degrees of freedom. A bootstrap would
    repeat images, which lowers the rank and pushes a Fréchet distance up.
    """
    rng = np.random.default_rng(0)
    group = [torch.from_numpy(rng.permutation(len(z)) % GROUPS).to(z.device) for z in (x, y)]
    found = np.array([statistic(x[group[0] != g], y[group[1] != g]) for g in range(GROUPS)])
    error = float(np.sqrt((GROUPS - 1) / GROUPS * np.square(found - found.mean()).sum()))
    from scipy.stats import t as student  # takes a second to import

    reach = float(student.ppf(0.975, GROUPS - 1)) * error
    return Interval(value, value - reach, value + reach)
