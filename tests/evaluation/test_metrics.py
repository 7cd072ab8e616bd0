"""Scores against closed forms, other implementations and brute force."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from underpaint.evaluation.intervals import Interval
from underpaint.evaluation.metrics import (
    Moments,
    frechet,
    frechet_difference,
    frechet_distance,
    jackknife,
    kernel_distance,
    manifold,
    mmd2,
    moments,
)

torch.set_num_threads(1)


def normal(rng: np.random.Generator, n: int, d: int, shift: float = 0.0) -> torch.Tensor:
    return torch.from_numpy((rng.standard_normal((n, d)) + shift).astype(np.float32))


def gaussian(mean, covariance) -> Moments:
    return Moments(torch.tensor(mean).double(), torch.tensor(covariance).double(), 1000)


# --- Fréchet distance ----------------------------------------------------------------------------


def test_two_gaussians_on_a_line():
    # N(1, 2²) and N(4, 5²): (1 − 4)² + (2 − 5)²
    assert frechet(gaussian([1.0], [[4.0]]), gaussian([4.0], [[25.0]])) == pytest.approx(18)


def test_gaussians_with_common_axes():
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    a, b = rng.uniform(0.1, 5, (2, 6))
    means = rng.standard_normal((2, 6))
    x, y = (gaussian(m, axes @ np.diag(v**2) @ axes.T) for m, v in zip(means, (a, b), strict=True))
    expected = np.square(means[0] - means[1]).sum() + np.square(a - b).sum()
    assert frechet(x, y) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_matrix_square_root_of_scipy(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((2, 40, 12))
    x, y = (moments(torch.from_numpy(v)) for v in (a, b + 0.3))
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T))
    expected = np.square(a.mean(0) - b.mean(0) - 0.3).sum()
    expected += np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root.real)
    assert frechet(x, y) == pytest.approx(expected, rel=1e-8)
    assert frechet(y, x) == pytest.approx(expected, rel=1e-8)


def test_fewer_images_than_features_gives_the_exact_value():
    # for X, Y centred and divided by √(n−1): tr (Σx Σy)^½ is the sum of the singular values of X Yᵀ
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 20, 100)) + rng.standard_normal((2, 1, 100))
    x, y = ((v - v.mean(0)) / math.sqrt(19) for v in (a, b))
    common = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    expected = np.square(a.mean(0) - b.mean(0)).sum()
    expected += np.square(x).sum() + np.square(y).sum() - 2 * common
    assert frechet_distance(*map(torch.from_numpy, (a, b))) == pytest.approx(expected, rel=1e-9)


def test_a_difference_in_the_same_seeds_is_surer_than_two_distances():
    rng = np.random.default_rng(3)
    y, x = normal(rng, 60, 8), normal(rng, 60, 8, 0.4)
    other = x + 0.05 * normal(rng, 60, 8)
    found = frechet_difference(x, other, y)
    assert found.value == frechet_distance(x, y) - frechet_distance(other, y)
    alone = jackknife(frechet_distance, x, y, frechet_distance(x, y))
    assert found.low < found.value < found.high
    assert found.high - found.low < 0.3 * (alone.high - alone.low)


@pytest.mark.parametrize("n", [8, 200])
def test_a_set_against_itself_is_zero_and_never_negative(n):
    x = normal(np.random.default_rng(2), n, 50)
    assert 0 <= frechet_distance(x, x) < 1e-6
    constant = torch.ones(70, 50)
    assert frechet_distance(constant, constant) == 0


# --- kernel distance -----------------------------------------------------------------------------


def test_mmd2_is_the_estimator_written_out():
    rng = np.random.default_rng(3)
    x, y = normal(rng, 7, 4), normal(rng, 9, 4, 0.5)

    def k(a, b):
        return (float(a.double() @ b.double()) / 4 + 1) ** 3

    xx = np.mean([k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    yy = np.mean([k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    xy = np.mean([k(a, b) for a in x for b in y])
    assert mmd2(x, y) == pytest.approx(xx + yy - 2 * xy, rel=1e-5)


def test_kernel_distance_is_unbiased():
    # of one and the same law the mean over many draws is 0, within its standard error
    rng = np.random.default_rng(4)
    values = [mmd2(normal(rng, 40, 5), normal(rng, 40, 5)) for _ in range(400)]
    assert abs(np.mean(values)) < 4 * np.std(values) / math.sqrt(400)
    assert min(values) < 0 < max(values)


def test_subsets_average_to_the_whole_and_one_whole_subset_has_no_deviation():
    rng = np.random.default_rng(5)
    x, y = normal(rng, 300, 6), normal(rng, 300, 6, 0.3)
    mean, deviation = kernel_distance(x, y, subsets=400, size=60)
    assert deviation is not None
    assert mean == pytest.approx(mmd2(x, y), abs=4 * deviation / math.sqrt(400))
    assert kernel_distance(x, y, subsets=400, size=60) == (mean, deviation)
    assert kernel_distance(x, y) == (mmd2(x, y), None)


# --- neighbours ----------------------------------------------------------------------------------


def brute(real: np.ndarray, samples: np.ndarray, near: int, dense: int) -> tuple[float, ...]:
    def distances(a, b):
        return np.sqrt(np.square(a[:, None] - b[None]).sum(-1))

    def radii(x, k):
        return np.sort(distances(x, x), axis=1)[:, k]  # the 0-th is the point itself

    cross = distances(real, samples)  # [n, m]
    precision = (cross <= radii(real, near)[:, None]).any(0).mean()
    recall = (cross <= radii(samples, near)).any(1).mean()
    hits = cross < radii(real, dense)[:, None]
    return precision, recall, hits.sum() / (dense * len(samples)), hits.any(1).mean()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(7, 40),
    m=st.integers(7, 40),
    shift=st.sampled_from([0.0, 1.0, 1e3]),
    memory=st.integers(1, 4000),
)
def test_neighbours_equal_brute_force_whatever_the_blocks(seed, n, m, shift, memory):
    rng = np.random.default_rng(seed)
    # far from the origin, where float32 would lose the distances
    real, samples = normal(rng, n, 3) + shift, normal(rng, m, 3, 0.5) + shift
    expected = brute(real.double().numpy(), samples.double().numpy(), 3, 5)
    assert manifold(real, samples, memory=memory) == pytest.approx(expected)


def test_neighbours_of_a_collapsed_model():
    # all samples in one place among the real images: precise, dense, and blind to the rest
    real = normal(np.random.default_rng(6), 200, 2)
    found = manifold(real, real[:1] + 1e-4 * normal(np.random.default_rng(7), 100, 2))
    assert found.precision == 1
    assert found.recall < 0.05
    assert found.coverage < 0.2


def test_too_few_for_neighbours():
    with pytest.raises(ValueError, match="5 and 9 features"):
        manifold(torch.zeros(5, 2), torch.zeros(9, 2))


# --- intervals -----------------------------------------------------------------------------------


def standard_error(interval: Interval) -> float:
    """From the half width, with 19 degrees of freedom."""
    return (interval.high - interval.low) / 2 / 2.093024


def test_jackknife_knows_the_variance_of_a_difference_of_means():
    # Var(mean x − mean y) = 1/n + 4/n
    rng = np.random.default_rng(8)
    n, found = 200, []
    for _ in range(200):
        x, y = normal(rng, n, 1), 2 * normal(rng, n, 1)

        def difference(a: torch.Tensor, b: torch.Tensor) -> float:
            return float(a.mean() - b.mean())

        found.append(jackknife(difference, x, y, difference(x, y)))
    variances = [standard_error(interval) ** 2 for interval in found]
    # a variance with 19 degrees of freedom spreads by √(2/19); the mean of 200 by 2.3 %
    assert np.mean(variances) == pytest.approx(5 / n, rel=0.1)
    covered = np.mean([interval.low <= 0 <= interval.high for interval in found])
    assert 0.9 <= covered <= 0.99


def test_jackknife_of_a_frechet_distance_agrees_with_repeating_the_experiment():
    rng = np.random.default_rng(9)
    values, variances = [], []
    for _ in range(120):
        x, y = normal(rng, 400, 4), normal(rng, 400, 4, 0.5)
        values.append(frechet_distance(x, y))
        variances.append(standard_error(jackknife(frechet_distance, x, y, values[-1])) ** 2)
    assert np.mean(variances) == pytest.approx(np.var(values), rel=0.4)
