"""Noise processes: inverses, scalings, DDPM's grid, training times, refusals."""

import copy
import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from underpaint import config, factory
from underpaint.core import schedules
from underpaint.errors import UserError

PROCESSES = {
    "vp-linear": schedules.VPLinear(),
    "vp-cosine": schedules.VPCosine(),
    "discrete-linear": schedules.Discrete("vp-linear"),
    "discrete-cosine": schedules.Discrete("vp-cosine"),
    "discrete-250": schedules.Discrete("vp-linear", 250),
    "flow": schedules.Flow("logit-normal"),
    "flow-mixed": schedules.Flow("mixed"),
    "flow-shifted": schedules.Flow("uniform", 3.0),
    "edm": schedules.EDM(),
    "ve": schedules.VE(),
    "ve-geometric": schedules.VE(steps=10),
}
VP = [name for name in PROCESSES if not name.startswith(("flow", "edm", "ve"))]
every = pytest.mark.parametrize("name", PROCESSES)


def levels(process: schedules.Process, count: int = 200) -> torch.Tensor:
    return torch.logspace(
        math.log10(process.sigma_min), math.log10(process.sigma_max), count, dtype=torch.float64
    )


@every
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-4)])
def test_t_is_the_inverse_of_sigma(name: str, dtype: torch.dtype, tolerance: float) -> None:
    process = PROCESSES[name]
    sigma = levels(process)
    back = process.sigma(process.t(sigma.to(dtype))).double()
    # the relative error of sigma at t near 1 is that of 1 − t: 1e3 times float32's
    torch.testing.assert_close(back, sigma, rtol=tolerance, atol=0)


@given(st.floats(0.0011, 0.999))
def test_sigma_rises_with_t_and_t_comes_back(t: float) -> None:
    for process in PROCESSES.values():
        both = torch.tensor([t, t * 1.0001], dtype=torch.float64)
        low, high = process.sigma(both)
        assert low <= high
        if not isinstance(process, schedules.Discrete) or t < 0.99:
            assert abs(float(process.t(low)) - t) < 1e-9


@every
def test_alpha_scales_x0_at_each_level(name: str) -> None:
    process = PROCESSES[name]
    t = torch.linspace(0.001, 0.99, 100, dtype=torch.float64)
    sigma = process.sigma(t)
    alpha = process.alpha(sigma)
    if name in VP:
        torch.testing.assert_close(alpha**2 + (alpha * sigma) ** 2, torch.ones_like(t))
        torch.testing.assert_close(process.c_in(sigma), alpha)
    elif name.startswith("flow"):
        torch.testing.assert_close(alpha, 1 - t)
        torch.testing.assert_close(alpha * sigma, t)
        torch.testing.assert_close(process.c_in(sigma), alpha)
    else:  # data of standard deviation sigma_data: unit variance at the network
        torch.testing.assert_close(alpha, torch.ones_like(t))
        variance = process.c_in(sigma) ** 2 * (0.5**2 + sigma**2)
        torch.testing.assert_close(variance, torch.ones_like(t))


@every
def test_pure_noise_is_no_error_in_float32(name: str) -> None:
    process, one = PROCESSES[name], torch.ones(1)
    assert process.sigma(one) > 0  # cos(π/2) is negative in float32
    assert 0 <= process.alpha(process.sigma(one)) <= 1


def test_linear_alpha_is_the_integral_of_beta() -> None:
    process = schedules.VPLinear()
    for t in (0.01, 0.3, 1.0):
        B, _ = integrate.quad(lambda u: 0.1 + (20 - 0.1) * u, 0, t)
        sigma = process.sigma(torch.tensor(t, dtype=torch.float64))
        assert math.isclose(float(process.alpha(sigma)), math.exp(-B / 2))


def test_cosine_alpha_is_that_of_the_paper() -> None:
    t = torch.linspace(0, 0.999, 50, dtype=torch.float64)

    def f(t: torch.Tensor) -> torch.Tensor:
        return torch.cos((t + 0.008) / 1.008 * math.pi / 2)

    process = schedules.VPCosine()
    alpha = process.alpha(process.sigma(t))
    torch.testing.assert_close(alpha, f(t) / f(torch.zeros(())).double(), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("ours", "theirs"), [("vp-linear", "linear"), ("vp-cosine", "squaredcos_cap_v2")]
)
def test_discrete_grid_is_ddpms(ours: str, theirs: str) -> None:
    reference = DDPMScheduler(1000, beta_schedule=theirs).alphas_cumprod.double()
    process = schedules.Discrete(ours)
    # theirs is a product of 1000 float32 numbers
    torch.testing.assert_close(process.alphas_cumprod, reference, rtol=2e-4, atol=0)
    betas = DDPMScheduler(1000, beta_schedule=theirs).betas.double()
    own = 1 - process.alphas_cumprod[1:] / process.alphas_cumprod[:-1]
    torch.testing.assert_close(own, betas[1:], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["discrete-linear", "discrete-cosine"])
def test_discrete_c_noise_is_the_whole_step(name: str) -> None:
    process = PROCESSES[name]
    k = torch.arange(1000)
    sigma = process.sigma(k / 1000)  # float32, as in training
    torch.testing.assert_close(process.c_noise(sigma), k.float(), rtol=0, atol=5e-3)
    exact = process.c_noise(process.sigma(k.double() / 1000))
    torch.testing.assert_close(exact, k.double(), rtol=0, atol=1e-8)


def test_discrete_is_the_continuous_process_one_step_on() -> None:
    k = torch.arange(10, 990, dtype=torch.float64)
    discrete = schedules.Discrete("vp-linear").sigma(k / 1000)
    continuous = schedules.VPLinear().sigma((k + 1) / 1000)
    torch.testing.assert_close(discrete, continuous, rtol=0.06, atol=0)


def test_discrete_interpolates_log_sigma_and_clamps() -> None:
    process = schedules.Discrete("vp-linear")
    a, b = process.sigma(torch.tensor([0.5, 0.501], dtype=torch.float64))
    assert math.isclose(float(process.t((a * b).sqrt())), 0.5005)
    outside = process.c_noise(torch.tensor([1e-9, 1e9]))
    assert outside.tolist() == [0.0, 999.0]


@every
def test_ends_are_finite_and_as_documented(name: str) -> None:
    low, high = {
        "vp-linear": (0.0105, 152.2),
        "vp-cosine": (0.0064, 1000),
        "discrete-linear": (0.0100, 157.4),
        "discrete-cosine": (0.0064, 1000),
        "discrete-250": (0.0200, 175.0),  # ln(1 − 4 beta) < 4 ln(1 − beta): a little noisier
        "flow": (0.001, 1000),
        "flow-mixed": (0.001, 1000),
        "flow-shifted": (0.001, 1000),
        "edm": (0.002, 80),
        "ve": (0.01, 50),
        "ve-geometric": (0.01, 50),
    }[name]
    process = PROCESSES[name]
    assert process.sigma_min == pytest.approx(low, rel=0.02)
    assert process.sigma_max == pytest.approx(high, rel=0.02)


@every
def test_float32_is_enough(name: str) -> None:
    process = PROCESSES[name]
    sigma = torch.logspace(-4, 3, 300, dtype=torch.float64)
    single = sigma.float()
    torch.testing.assert_close(
        process.c_in(single).double(), process.c_in(sigma), rtol=1e-6, atol=0
    )
    tolerance = 5e-3 if name.startswith("discrete") else 2e-3  # of 1000 steps
    torch.testing.assert_close(
        process.c_noise(single).double(), process.c_noise(sigma), rtol=2e-6, atol=tolerance
    )
    if name.startswith(("vp", "flow")):  # no cancellation at small sigma either
        torch.testing.assert_close(process.t(single).double(), process.t(sigma), rtol=2e-6, atol=0)


@every
def test_drawn_times_are_usable(name: str) -> None:
    process = PROCESSES[name]
    t = process.draw_t(20_000, torch.Generator().manual_seed(0), "cpu")
    assert t.shape == (20_000,)
    assert t.dtype == torch.float32
    sigma = process.sigma(t)
    assert torch.isfinite(sigma).all()
    assert (sigma > 0).all()
    again = process.draw_t(20_000, torch.Generator().manual_seed(0), "cpu")
    assert torch.equal(t, again)


@pytest.mark.parametrize(
    ("name", "quantity", "law"),
    [
        ("vp-linear", lambda p, t: t, stats.uniform()),
        ("vp-cosine", lambda p, t: t, stats.uniform()),
        ("discrete-linear", lambda p, t: t + 0.0005, stats.uniform()),
        ("flow", lambda p, t: torch.logit(t), stats.norm()),
        # t' = s u/(1 + (s − 1) u) undone: u = t'/(s − (s − 1) t')
        ("flow-shifted", lambda p, t: t / (3 - 2 * t), stats.uniform()),
        ("edm", lambda p, t: p.sigma(t).log(), stats.norm(-1.2, 1.2)),
        (
            "ve",
            lambda p, t: p.sigma(t).log(),
            stats.uniform(math.log(0.01), math.log(50 / 0.01)),
        ),
    ],
)
def test_law_of_the_training_times(name: str, quantity, law) -> None:
    process = PROCESSES[name]
    t = process.draw_t(5_000, torch.Generator().manual_seed(3)).double()
    assert stats.kstest(quantity(process, t).numpy(), law.cdf).pvalue > 0.01


def test_the_mixed_law() -> None:
    """Four fifths logit-normal, one uniform: both shares counted, and the law itself."""

    def cdf(t):
        return 0.8 * stats.norm.cdf(np.log(t / (1 - t))) + 0.2 * t

    t = schedules.Flow("mixed").draw_t(50_000, torch.Generator().manual_seed(3)).double().numpy()
    inside = (t > 0.002) & (t < 0.998)  # outside of it times are cut off
    assert (
        stats.kstest(t[inside], lambda t: (cdf(t) - cdf(0.002)) / (cdf(0.998) - cdf(0.002))).pvalue
        > 0.01
    )
    assert (t > 0.95).mean() == pytest.approx(1 - cdf(0.95), abs=0.0015)
    assert 1 - cdf(0.95) > 5 * (1 - stats.norm.cdf(np.log(19)))  # where logit-normal is not


@every
def test_stratified_times_fill_their_law(name: str) -> None:
    """Of 8 times, one lies in each eighth of the law; each alone follows it, in any order."""
    process = copy.copy(PROCESSES[name])
    process.stratified = True
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([process.draw_t(8, generator) for _ in range(500)])  # [500, 8]
    edges = process.quantile((torch.arange(9) / 8).clamp(1e-6, 1 - 1e-6))
    sorted_ = drawn.sort(dim=1).values
    assert (sorted_ >= edges[:-1] - 1e-6).all()
    assert (sorted_ <= edges[1:] + 1e-6).all()
    process.stratified = False
    free = torch.stack([process.draw_t(8, generator) for _ in range(500)])
    assert drawn.mean(dim=1).std() < 0.5 * free.mean(dim=1).std()
    for place in (0, 7):  # neither the first nor the last of a batch is special
        assert stats.ks_2samp(drawn[:, place], free.flatten()).pvalue > 0.005
    assert stats.ks_2samp(drawn.flatten(), free.flatten()).pvalue > 0.005


def test_the_recipe_says_whether_times_are_stratified() -> None:
    for wanted in (False, True):
        assert factory.noise_schedule(config.Noise(stratified=wanted)).stratified is wanted


def test_geometric_levels_of_score_networks() -> None:
    """NCSN's geomspace(50, 0.01, 10): drawn equally often, and nothing between."""
    process = PROCESSES["ve-geometric"]
    levels, counts = process.sigma(
        process.draw_t(20_000, torch.Generator().manual_seed(0)).double()
    ).unique(return_counts=True)
    expected = torch.logspace(-2, math.log10(50), 10, dtype=torch.float64)
    torch.testing.assert_close(levels, expected, rtol=1e-5, atol=0)
    assert stats.chisquare(counts).pvalue > 0.01
    assert process.sigma(process.times(10)).tolist() == pytest.approx(expected.flip(0).tolist())
    assert (process.times(4) * 9).tolist() == pytest.approx([9, 6, 3, 0])
    assert schedules.VE().times(3).tolist() == pytest.approx([1, 0.5, 0])
    with pytest.raises(ValueError, match="grid of 10"):
        process.times(11)


def test_times_of_the_uniform_grid() -> None:
    assert schedules.Flow("uniform").times(4).tolist() == [1.0, 0.75, 0.5, 0.25]
    assert schedules.Flow("uniform", 3.0).times(4).tolist() == pytest.approx([1, 0.9, 0.75, 0.5])
    assert schedules.VPLinear().times(4).tolist() == pytest.approx([1, 0.667, 0.334, 0.001])
    assert schedules.EDM().times(3).tolist() == pytest.approx([1, 0.5, 0])
    # T − 1, not T
    steps = (schedules.Discrete("vp-linear").times(4) * 1000).tolist()
    assert steps == pytest.approx([999, 666, 333, 0])
    with pytest.raises(ValueError, match="grid of 1000"):
        schedules.Discrete("vp-linear").times(1001)


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({}, schedules.Flow),
        ({"process": "flow", "time": "uniform", "shift": 2.0}, schedules.Flow),
        ({"process": "vp-linear", "time": "uniform"}, schedules.VPLinear),
        ({"process": "vp-cosine", "time": "uniform"}, schedules.VPCosine),
        ({"process": "vp-linear", "time": "uniform", "steps": 1000}, schedules.Discrete),
        ({"process": "edm", "time": "log-normal", "sigma_data": 0.4}, schedules.EDM),
        ({"process": "ve", "time": "log-uniform"}, schedules.VE),
        ({"process": "ve", "time": "log-uniform", "steps": 10}, schedules.VE),
    ],
)
def test_build(settings: dict, kind: type) -> None:
    assert isinstance(schedules.build(**settings), kind)
    assert isinstance(factory.noise_schedule(config.Noise(**settings)), kind)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"process": "vp"}, "noise.process 'vp' is unknown"),
        (
            {"process": "vp-linear"},
            "'mixed' does not go with process vp-linear; use uniform",
        ),
        ({"process": "edm", "time": "uniform"}, "use log-normal"),
        ({"process": "ve", "time": "log-normal"}, "use log-uniform"),
        ({"process": "ve", "time": "log-uniform", "steps": 1}, "noise.steps 1: give 0"),
        ({"process": "ve", "time": "log-uniform", "shift": 2.0}, "noise.shift 2 is for process"),
        ({"time": "log-normal"}, "use uniform or logit-normal"),
        ({"process": "vp-linear", "time": "uniform", "shift": 2.0}, "noise.shift 2 is for process"),
        ({"shift": 0.0}, "noise.shift 0: give a number above 0"),
        ({"steps": 1000}, "noise.steps 1000: only vp-linear"),
        ({"process": "vp-linear", "time": "uniform", "steps": 10}, "noise.steps 10: give 0"),
        ({"process": "edm", "time": "log-normal", "sigma_data": 0.0}, "noise.sigma_data 0"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict, says: str) -> None:
    with pytest.raises(UserError) as named:
        factory.noise_schedule(config.Noise(**settings))
    assert says in str(named.value)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        schedules.build(**{"time": config.Noise().time, **settings})
    assert str(error.value) == str(named.value).removeprefix("noise.")
    assert "\n" not in str(error.value)
