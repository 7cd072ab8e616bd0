"""Samplers: order against exact trajectories, mean and covariance, parity with diffusers, seeds."""

import math
from itertools import pairwise

import diffusers
import pytest
import torch
from torch import Tensor, nn

from tests.core.gaussian import Gaussian
from underpaint import config, factory
from underpaint.core import denoiser, samplers, schedules
from underpaint.core.preconditioning import Preconditioning
from underpaint.core.samplers import SAMPLERS, Sampling, SeededNoise, sigmas
from underpaint.errors import UserError

DATA = Gaussian([1.0, 0.3, 0.05])
STEADY = {"churn": 30.0, "churn_min": 0.0, "churn_max": math.inf, "churn_noise": 1.0}


def sample(denoise, x: Tensor, levels: Tensor, sampler: str, **changes) -> Tensor:
    """`samplers.sample`, by default without clipping, which Gaussian data would not survive."""
    manners = {k: changes.pop(k) for k in ("noise", "callback") if k in changes}
    sampling = Sampling(sampler, **{"clip": "none", **changes})
    return samplers.sample(denoise, x, levels, sampling, **manners)


def drawing(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64):
    g = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(shape, generator=g, dtype=dtype)


# --- deterministic samplers follow the trajectory


@pytest.mark.parametrize(
    ("sampler", "options", "order"),
    [
        ("euler", {}, 1),
        ("ancestral", {"eta": 0.0, "noise": drawing((8, 3))}, 1),
        ("heun", {}, 2),
        ("churn", {"churn": 0.0, "noise": drawing((8, 3))}, 2),
        ("dpm++", {}, 2),
    ],
)
def test_order_of_convergence(sampler: str, options: dict, order: int) -> None:
    x, high, low = DATA.draw(8, 10.0), 10.0, 0.1
    exact = DATA.exact(x, high, low)
    errors = []
    for steps in (40, 80, 160):
        ramp = torch.linspace(10 ** (1 / 7), 0.1 ** (1 / 7), steps + 1, dtype=torch.float64)
        levels = ramp**7  # uneven in λ, as the multistep rule must allow for
        x_low = sample(DATA.denoise, x, levels, sampler, **options)
        errors.append(float((x_low - exact).norm()))
    assert errors[-1] < 0.05
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("kind", ["karras", "log-snr", "uniform"])
@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm++"])
@pytest.mark.parametrize(
    "process",
    [
        schedules.Flow("uniform"),
        schedules.VPLinear(),
        schedules.VPCosine(),
        schedules.Discrete("vp-cosine"),
    ],
    ids=["flow", "vp-linear", "vp-cosine", "discrete-cosine"],
)
def test_few_steps_from_pure_noise_come_near(process, sampler: str, kind: str) -> None:
    """Every grid of every process, with eigenvalues as images have them (300: the mean colour).

    The mean slope of a plain Heun step from flow's 1000 to 19 would be off by a factor of ten.
    """
    data = Gaussian([300.0, 1.0], mean=0.0)
    levels = sigmas(process, 30, kind)
    high = float(levels[0])
    x = (data.axes * (data.values + high**2).sqrt()).T  # one for each direction
    x0, exact = sample(data.denoise, x, levels, sampler), data.exact(x, high, 0.0)
    ratio = (x0 * exact).sum(1) / exact.square().sum(1)
    low, high = (0.85, 1.1) if sampler == "heun" else (0.65, 1.1)
    assert (ratio > low).all()
    assert (ratio < high).all()


# --- stochastic ones reach the distribution


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        ("ancestral", {"eta": 1.0}),
        ("ancestral", {"eta": 0.5}),
        ("churn", STEADY),
        ("pc", {}),
        ("pc", {"corrections": 3, "snr": 0.1}),
    ],
)
def test_mean_and_covariance(sampler: str, options: dict) -> None:
    count, steps = 40_000, 200
    levels = torch.logspace(1, -1.5, steps + 1, dtype=torch.float64)
    draw = drawing((count, 3), seed=7)
    x = DATA.draw(count, 10.0)
    end = sample(DATA.denoise, x, levels, sampler, noise=draw, **options)
    low = float(levels[-1])
    cov = DATA.cov + low**2 * torch.eye(3, dtype=torch.float64)
    assert (end.mean(0) - DATA.mean).abs().max() < 0.02
    # in the eigenbasis each variance is known: the relative error is what matters
    y = (end - end.mean(0)) @ DATA.axes
    scaled = torch.cov(y.T) / (DATA.values + low**2).sqrt().outer((DATA.values + low**2).sqrt())
    torch.testing.assert_close(scaled, torch.eye(3, dtype=torch.float64), rtol=0, atol=0.04)
    torch.testing.assert_close(torch.cov(end.T), cov, rtol=0, atol=0.04)
    # and noise was added: the end is not a function of the beginning
    deterministic = sample(DATA.denoise, x, levels, "euler")
    assert float((end - deterministic).std()) > 0.1


@pytest.mark.parametrize(("corrections", "snr", "apart"), [(5, 0.16, 0.3), (25, 0.25, 0.03)])
def test_annealed_langevin_in_mean_and_covariance(
    corrections: int, snr: float, apart: float
) -> None:
    """Near the data, and exactly where the chain's own recursion is.

    With a = δ r²/2(v + r²) a step is x ← x − a (x − mean) + √δ r z for a direction of variance v:
    the variance goes to (1 − a)² variance + δ r².
    """
    count, delta = 10_000, 4 * snr**2
    levels = torch.logspace(1, -1.5, 101, dtype=torch.float64)
    x = DATA.draw(count, 10.0)
    given = {"corrections": corrections, "snr": snr}
    end = sample(DATA.denoise, x, levels, "langevin", noise=drawing((count, 3), 7), **given)
    v = DATA.values
    variance = v + levels[0] ** 2
    for r in levels[1:]:
        for _ in range(corrections):
            variance = (1 - delta * r**2 / (v + r**2) / 2) ** 2 * variance + delta * r**2
    assert (end.mean(0) - DATA.mean).abs().max() < 0.03
    y = (end - end.mean(0)) @ DATA.axes
    scaled = torch.cov(y.T) / variance.sqrt().outer(variance.sqrt())
    torch.testing.assert_close(scaled, torch.eye(3, dtype=torch.float64), rtol=0, atol=0.05)
    truth = v + levels[-1] ** 2
    assert ((variance / truth - 1).abs() < apart).all()
    lag = math.log(10) * 2.5 / 100 / (2 * corrections * snr**2)
    assert float(variance[0] / truth[0] - 1) == pytest.approx(lag, rel=0.5)


def test_langevin_steps_forget_where_they_came_from() -> None:
    """At one level, from anywhere: to N(mean, cov + r²), a little wide by the step's size.

    With a = δ r²/2V the variance of the chain x ← x − a (x − mean) + √δ r z is V/(1 − a/2).
    """
    r, snr, count = 2.0, 0.3, 20_000
    x = torch.full((count, 3), 9.0, dtype=torch.float64)
    given, levels = {"corrections": 100, "snr": snr}, torch.tensor([r * 1.0001, r])
    end = sample(DATA.denoise, x, levels, "langevin", noise=drawing((count, 3)), **given)
    V = DATA.values + r**2
    wide = V / (1 - 4 * snr**2 * r**2 / V / 4)
    assert (end.mean(0) - DATA.mean).abs().max() < 0.06
    measured = ((end - end.mean(0)) @ DATA.axes).var(0)
    torch.testing.assert_close(measured, wide, rtol=0.04, atol=0)


def test_predictor_without_corrections_is_ddpm() -> None:
    """Song's predictor for variance exploding noise, x + (s² − r²) score + r √(s² − r²)/s z."""
    levels = sigmas(schedules.VE(), 12)
    x = DATA.draw(5, 50.0)
    pc = sample(DATA.denoise, x, levels, "pc", noise=drawing((5, 3)), corrections=0)
    assert torch.equal(pc, sample(DATA.denoise, x, levels, "ancestral", noise=drawing((5, 3))))
    z = drawing((5, 3))
    for s, r in pairwise(levels.tolist()):
        score = (DATA.denoise(x, s) - x) / s**2
        x = x + (s**2 - r**2) * score
        if r > 0:
            x = x + r * math.sqrt(s**2 - r**2) / s * z()
    torch.testing.assert_close(pc, x)


def test_corrections_are_asked_at_the_level_they_correct() -> None:
    asked: list[float] = []

    def denoise(x: Tensor, sigma: float) -> Tensor:
        asked.append(sigma)
        return x * 0

    levels, x = torch.tensor([4.0, 2.0, 1.0, 0.0], dtype=torch.float64), torch.zeros(1, 2)
    for sampler, expected in (
        ("langevin", [2, 2, 1, 1, 1]),  # and the last step, without noise
        ("pc", [4, 2, 2, 2, 1, 1, 1]),
    ):
        asked.clear()
        sample(denoise, x, levels, sampler, noise=lambda: x, corrections=2)
        assert asked == expected


def test_churn_goes_up_by_its_amount_between_its_bounds() -> None:
    asked: list[float] = []

    def denoise(x: Tensor, sigma: float) -> Tensor:
        asked.append(sigma)
        return x * 0

    levels = torch.tensor([10.0, 5.0, 1.0, 0.0], dtype=torch.float64)
    x = torch.zeros(1, 2)
    for amount, gamma in ((0.3, 0.1), (99.0, math.sqrt(2) - 1)):
        asked.clear()
        given = {"churn": amount, "churn_min": 2.0, "churn_max": 7.0}
        sample(denoise, x, levels, "churn", noise=lambda: x, **given)
        # twice a step; only 5 lies within the bounds
        assert asked == pytest.approx([10, 5, 5 * (1 + gamma), 1, 1])


# --- parity with diffusers on the same levels


def start(sigma: float) -> Tensor:
    return sigma * torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


def trace(
    sampler: str, levels: Tensor, model=DATA.denoise, **options
) -> tuple[Tensor, list[Tensor]]:
    steps: list[Tensor] = []
    end = sample(
        model,
        start(float(levels[0])),
        levels,
        sampler,
        callback=lambda i, x, x0: steps.append(x),
        **options,
    )
    return end, steps


def same(ours: Tensor, theirs: Tensor, sigma: float) -> None:
    """≤ 1e-5 in x_t, that is relative to the level's scale."""
    scale = math.sqrt(1 + sigma**2)
    torch.testing.assert_close(ours / scale, theirs / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("karras", [False, True])
def test_euler_is_diffusers_euler(karras: bool) -> None:
    scheduler = diffusers.EulerDiscreteScheduler(prediction_type="sample", use_karras_sigmas=karras)
    scheduler.set_timesteps(25)
    levels = scheduler.sigmas.double()
    end, steps = trace("euler", levels)
    x = start(float(levels[0]))
    scheduler.is_scale_input_called = True
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(DATA.denoise(x, float(levels[i])), t, x).prev_sample
        same(steps[i], x, float(levels[i + 1]))
    same(end, x, 0.0)


@pytest.mark.parametrize("karras", [False, True])
def test_heun_is_diffusers_heun(karras: bool) -> None:
    scheduler = diffusers.HeunDiscreteScheduler(prediction_type="sample", use_karras_sigmas=karras)
    scheduler.set_timesteps(20)
    levels = torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1::2]]).double()
    end, _ = trace("heun", levels)
    x = start(float(levels[0]))
    asked = [level for level in levels[:-1].tolist() for _ in range(2)][1:]
    for t, sigma in zip(scheduler.timesteps, asked, strict=True):
        x = scheduler.step(DATA.denoise(x, sigma), t, x).prev_sample
    same(end, x, 0.0)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("clip", ["none", "static", "dynamic"])
def test_ancestral_is_ddim(eta: float, clip: str) -> None:
    scheduler = diffusers.DDIMScheduler(
        prediction_type="sample",
        clip_sample=clip == "static",
        thresholding=clip == "dynamic",
        sample_max_value=100.0,  # the default, 1, would make it static
    )
    scheduler.set_timesteps(50)
    bar = scheduler.alphas_cumprod.double()[scheduler.timesteps]
    levels = torch.cat([((1 - bar) / bar).sqrt(), torch.zeros(1)])
    wide = Gaussian([3.0, 1.0, 0.05], mean=1.0).denoise  # leaves [−1, 1]
    z = drawing((5, 3), seed=3, dtype=torch.float32)
    noises = [z() for _ in range(50)]
    mine = iter(noises)
    end, steps = trace("ancestral", levels, wide, noise=lambda: next(mine), eta=eta, clip=clip)
    x_t = start(float(levels[0])) * float(bar[0].sqrt())
    for i, t in enumerate(scheduler.timesteps):
        x0 = wide(x_t / float(bar[i].sqrt()), float(levels[i]))
        # two axes more: its thresholding expects images
        x0, x_t, z_i = (v[..., None, None] for v in (x0, x_t, noises[i]))
        x_t = scheduler.step(
            x0, t, x_t, eta=eta, use_clipped_model_output=True, variance_noise=z_i
        ).prev_sample[..., 0, 0]
        alpha = float(bar[i + 1].sqrt()) if i + 1 < len(bar) else 1.0
        torch.testing.assert_close(steps[i] * alpha, x_t, rtol=0, atol=1e-5)
    torch.testing.assert_close(end, x_t, rtol=0, atol=1e-5)


@pytest.mark.parametrize("flow", [False, True])
def test_dpm_is_diffusers_multistep(flow: bool) -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction" if flow else "sample", use_flow_sigmas=flow
    )
    scheduler.set_timesteps(20)
    theirs = scheduler.sigmas.double()
    levels = theirs / (1 - theirs) if flow else theirs
    alpha = 1 - theirs if flow else (1 + theirs**2).rsqrt()
    end, steps = trace("dpm++", levels)
    x_t = start(float(levels[0])) * float(alpha[0])
    for i, t in enumerate(scheduler.timesteps):
        x0 = DATA.denoise(x_t / float(alpha[i]), float(levels[i]))
        output = (x_t - x0) / float(theirs[i]) if flow else x0  # n − x0
        x_t = scheduler.step(output, t, x_t).prev_sample
        torch.testing.assert_close(steps[i] * float(alpha[i + 1]), x_t, rtol=0, atol=1e-5)
    torch.testing.assert_close(end, x_t, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_and_flows_uniform_grid_are_flow_match_euler(shift: float) -> None:
    levels = sigmas(schedules.Flow("uniform", shift), 20, "uniform")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    # 1, 0.95, …: they shift themselves. Our first is at 1000/1001 instead of 1
    scheduler.set_timesteps(sigmas=torch.linspace(1, 0, 21)[:-1].tolist())
    torch.testing.assert_close(scheduler.sigmas[1:], (levels / (1 + levels))[1:].float())
    scheduler.sigmas[0] = 1000 / 1001
    end, steps = trace("euler", levels)
    x_t = start(float(levels[0])) / 1001
    for i, t in enumerate(scheduler.timesteps):
        x0 = DATA.denoise(x_t * float(1 + levels[i]), float(levels[i]))
        x_t = scheduler.step((x_t - x0) / scheduler.sigmas[i], t, x_t).prev_sample
        torch.testing.assert_close(steps[i] / float(1 + levels[i + 1]), x_t, rtol=0, atol=1e-5)
    torch.testing.assert_close(end, x_t, rtol=0, atol=1e-5)


class Toy(nn.Module):
    """A smooth nothing in the place of a network."""

    grid = (1, 1)

    def raw(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return torch.sin(2 * x + 0.01 * c_noise.view(-1, *[1] * (x.ndim - 1)))

    def forward(self, x, c_noise, labels, mask):
        return denoiser.Prediction(self.raw(x, c_noise))


def test_edm_denoiser_and_karras_grid_are_diffusers_edm() -> None:
    scheduler = diffusers.EDMEulerScheduler(sigma_data=0.5)
    scheduler.set_timesteps(20)
    process = schedules.EDM()
    levels = sigmas(process, 20, "karras")
    torch.testing.assert_close(scheduler.sigmas.double(), levels, rtol=1e-5, atol=0)
    toy = Toy()
    model = denoiser.Denoiser(toy, process, Preconditioning("edm"))
    end, steps = trace("euler", levels, model.denoise)
    x = start(float(levels[0]))
    for i, t in enumerate(scheduler.timesteps):
        F = toy.raw(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(F, t, x).prev_sample
        same(steps[i], x, float(levels[i + 1]))
    torch.testing.assert_close(end, x, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("ours", "theirs"), [("eps", "epsilon"), ("x0", "sample"), ("v", "v_prediction")]
)
@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_discrete_denoiser_and_uniform_grid_are_diffusers(ours, theirs, schedule) -> None:
    scheduler = diffusers.DDIMScheduler(
        prediction_type=theirs,
        beta_schedule=schedule,
        timestep_spacing="linspace",
        clip_sample=False,
    )
    process = schedules.Discrete("vp-linear" if schedule == "linear" else "vp-cosine")
    levels = sigmas(process, 28, "uniform")  # 999, 962, …, 0: whole steps of 37
    toy = Toy()
    model = denoiser.Denoiser(toy, process, Preconditioning(ours))
    scheduler.set_timesteps(28)
    scheduler.num_inference_steps = 27  # it computes the step before as t − 1000 // this: 37
    skip = 1 if schedule != "linear" else 0  # the last cosine step has sigma 20,000, ours 1000
    x = start(float(levels[skip]))
    end = sample(model.denoise, x, levels[skip:], "euler")
    bar = scheduler.alphas_cumprod[scheduler.timesteps]
    x_t = x * bar[skip].sqrt()
    for t in scheduler.timesteps[skip:]:
        x_t = scheduler.step(toy.raw(x_t, t.float().view(1)), int(t), x_t).prev_sample
    # their alphas_cumprod is a float32 product of 1000 terms: compare the images, not the roundings
    torch.testing.assert_close(end, x_t, rtol=0, atol=1e-3)


# --- grids


@pytest.mark.parametrize("kind", ["karras", "uniform", "log-snr"])
@pytest.mark.parametrize("steps", [1, 2, 7, 250])
@pytest.mark.parametrize(
    "process",
    [
        schedules.VPLinear(),
        schedules.VPCosine(),
        schedules.Discrete("vp-linear"),
        schedules.Discrete("vp-cosine"),
        schedules.Flow("uniform", 2.0),
        schedules.EDM(),
    ],
    ids=lambda p: type(p).__name__,
)
def test_grids_fall_from_sigma_max_to_zero(process, kind: str, steps: int) -> None:
    levels = sigmas(process, steps, kind)
    assert levels.dtype == torch.float64
    assert levels.shape == (steps + 1,)
    assert torch.isfinite(levels).all()
    assert float(levels[0]) == pytest.approx(process.sigma_max)
    assert process.sigma_max <= 1000
    assert float(levels[-1]) == 0
    assert (levels.diff() < 0).all()
    if kind != "uniform" and steps > 1:
        assert float(levels[-2]) == pytest.approx(process.sigma_min)


def test_karras_and_log_snr_are_evenly_spaced_in_their_own_variable() -> None:
    karras = sigmas(schedules.EDM(), 9, "karras", rho=5.0)[:-1] ** (1 / 5)
    log_snr = sigmas(schedules.EDM(), 9, "log-snr")[:-1].log()
    for even in (karras, log_snr):
        torch.testing.assert_close(even.diff(), even.diff()[:1].expand(8))


def test_discrete_uniform_grid_ends_one_before_t() -> None:
    process = schedules.Discrete("vp-linear")
    levels = sigmas(process, 250, "uniform")
    k = process.c_noise(levels[:-1])
    torch.testing.assert_close(k, k.round(), rtol=0, atol=1e-8)
    assert [round(v) for v in (k[0].item(), k[1].item(), k[-1].item())] == [999, 995, 0]


# --- seeds, clipping, manners


def test_a_sample_depends_on_its_seed_only() -> None:
    levels = sigmas(schedules.EDM(), 8)
    x0 = {}
    noisy = ("ancestral", "churn", "langevin", "pc")
    for seeds in ([3], [1, 2, 3, 4, 5], [5, 3], [3, 1]):
        for sampler in noisy:
            source = SeededNoise(seeds)
            x = source.initial((3,)) * levels[0]
            out = sample(DATA.denoise, x, levels, sampler, noise=source.step)
            x0[tuple(seeds), sampler] = dict(zip(seeds, out, strict=True))
    for sampler in noisy:
        alone = x0[(3,), sampler][3]
        for seeds in ((1, 2, 3, 4, 5), (5, 3), (3, 1)):
            assert torch.equal(x0[seeds, sampler][3], alone)
        assert not torch.allclose(x0[(5, 3), sampler][5], alone)


def test_seeded_noise_is_fresh_each_step_and_starts_anew() -> None:
    source = SeededNoise([1, 2])
    first, second = source.initial((50, 4)), source.step()
    assert first.shape == (2, 50, 4)
    assert abs(float(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1])) < 0.2
    assert torch.equal(source.initial((50, 4)), first)
    assert torch.equal(source.step(), second)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_ends_in_x0_and_keeps_the_precision(sampler: str) -> None:
    for dtype in (torch.float32, torch.float64):
        seen: list[tuple[int, Tensor, Tensor]] = []
        levels = sigmas(schedules.EDM(), 6)
        x = DATA.draw(4, 80.0).to(dtype).requires_grad_()
        end = sample(
            DATA.denoise,
            x,
            levels,
            sampler,
            noise=drawing((4, 3)),
            callback=lambda i, x, x0, seen=seen: seen.append((i, x, x0)),
        )
        assert end.dtype == dtype
        assert not end.requires_grad
        assert [i for i, _, _ in seen] == list(range(6))
        assert torch.equal(end, seen[-1][1])
        assert torch.equal(end, seen[-1][2])  # the step to 0 gives the last x0


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_clipped_x0_carries_the_noise_along(sampler: str) -> None:
    """Static clipping equals a denoiser that never leaves [−1, 1]."""
    levels = sigmas(schedules.EDM(), 10)
    x = DATA.draw(20, 80.0) * 3
    clipped = sample(DATA.denoise, x, levels, sampler, noise=drawing((20, 3)), clip="static")
    bounded = sample(
        lambda x, s: DATA.denoise(x, s).clamp(-1, 1), x, levels, sampler, noise=drawing((20, 3))
    )
    assert torch.equal(clipped, bounded)
    assert clipped.abs().max() <= 1
    free = sample(DATA.denoise, x, levels, sampler, noise=drawing((20, 3)))
    assert free.abs().max() > 1


def test_dynamic_clipping_is_per_sample() -> None:
    x0 = torch.stack([torch.linspace(-0.5, 0.5, 1001), torch.linspace(-4, 4, 1001)])
    end = sample(lambda x, s: x0, x0, torch.tensor([1.0, 0.0]), "euler", clip="dynamic")
    assert torch.equal(end[0], x0[0])  # within [−1, 1]: untouched
    limit = 4 * 0.995  # 0.995 quantile of |x0|, evenly spread over [0, 4]
    torch.testing.assert_close(end[1], x0[1].clamp(-limit, limit) / limit, rtol=0, atol=2e-3)


def test_wrong_use() -> None:
    process, x, levels = schedules.EDM(), torch.zeros(1, 3), torch.tensor([1.0, 0.0])
    for call, says in [
        (lambda: sigmas(process, 0), "steps 0: give at least 1"),
        (lambda: sigmas(process, 5, "cosine"), "grid 'cosine' does not exist; use karras"),
        (lambda: sigmas(schedules.Discrete("vp-linear"), 2000, "uniform"), "grid of 1000"),
        (lambda: sample(DATA.denoise, x, levels, "huen"), "did you mean 'heun'?"),
        (
            lambda: sample(DATA.denoise, x, levels, "heun", clip="hard"),
            "clip 'hard' does not exist",
        ),
        (
            lambda: sample(DATA.denoise, x, levels, "ancestral", eta=-1, noise=lambda: x),
            "eta -1",
        ),
        (
            lambda: sample(DATA.denoise, x, levels, "langevin", corrections=0),
            "sampler langevin needs at least 1",
        ),
        (
            lambda: sample(DATA.denoise, x, levels, "pc", snr=0.9),
            "snr 0.9: give a number above 0, up to 0.5",
        ),
    ]:
        with pytest.raises(ValueError) as error:  # noqa: PT011
            call()
        assert says in str(error.value)
    with pytest.raises(ValueError, match="pass noise="):
        sample(DATA.denoise, x, levels, "churn")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"sampler": "huen"}, "sampling.sampler 'huen' does not exist; did you mean 'heun'?"),
        ({"grid": "cosine"}, "sampling.grid 'cosine' does not exist; use karras"),
        ({"clip": "hard"}, "sampling.clip 'hard' does not exist; use none"),
        ({"steps": 0}, "sampling.steps 0: give at least 1"),
        ({"sampler": "ancestral", "eta": -1.0}, "sampling.eta -1: give 0"),
        ({"sampler": "langevin", "corrections": 0}, "sampling.corrections 0: sampler langevin"),
        ({"sampler": "pc", "snr": 0.9}, "sampling.snr 0.9: give a number above 0, up to 0.5"),
    ],
)
def test_wrong_settings_are_named(given: dict, says: str) -> None:
    with pytest.raises(UserError) as error:
        factory.sampling(config.Sampling(**given))
    assert str(error.value).startswith(says)
    assert "\n" not in str(error.value)
