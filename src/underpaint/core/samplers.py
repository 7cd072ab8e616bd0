"""Samplers: from noise to an image, by asking the denoiser at falling levels.

All work in the frame x = x0 + sigma n, where every process has the same probability-flow equation

    dx/dsigma = (x − D(x, sigma)) / sigma,     D(x, sigma) = E[x0 | x]

so that one Euler step is DDIM (eta 0) and flow matching's Euler at once. A sampler is a generator
that yields (x at the new level, the D it used) once a step; s is the level now, r < s the next one.
The last level is 0, where a step gives D itself.

    euler      1st order                  Song 2021, arXiv 2010.02502 (DDIM)
    heun       2nd order, two calls       Karras 2022, 2206.00364, algorithm 1
    dpm++      2nd order, one call        Lu 2022, 2211.01095 (DPM-Solver++, 2M)
    ancestral  DDIM with noise eta        Song 2021; eta 1 is DDPM
    churn      Heun after adding noise    Karras 2022, algorithm 2
    langevin   Langevin at every level    Song & Ermon 2019, 1907.05600 (annealed)
    pc         ancestral, then Langevin   Song 2021, 2011.13456 (predictor–corrector)

A Langevin step at level r follows the score (D − x)/r² and adds noise, which leaves p(x; r) as it
is: x ← x + δ/2 (D − x) + √δ r z, δ = 4 snr². The papers measure step and score by norms over the
batch; ours takes both at their level's scale, so that a sample depends on its own seed alone.
"""

import difflib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from underpaint.core.schedules import Process

Denoise = Callable[[Tensor, float], Tensor]  # x [B, ...], sigma → x0 [B, ...]
Draw = Callable[[], Tensor]  # standard normal [B, ...], new at each call
Steps = Iterator[tuple[Tensor, Tensor]]  # x after the step, the x0 that led there

SAMPLERS = ("euler", "heun", "dpm++", "ancestral", "churn", "langevin", "pc")
GRIDS = ("karras", "uniform", "log-snr")
NOISY = ("ancestral", "churn", "langevin", "pc")
LARGEST_SNR = 0.5  # δ = 1: half the way to D
DYNAMIC_QUANTILE = 0.995  # of |x0|; Saharia 2022, arXiv 2205.11487


@dataclass(frozen=True)
class Sampling:
    """How images are drawn, but for their noise: which sampler, at which levels, and its settings.

    Langevin steps: 0.16 and one correction are Song's for predictor–corrector sampling. `langevin`
    alone lags behind the levels: variances end too large by about h/(2 corrections snr²), h the
    step in ln sigma. It needs many levels and corrections (232 and 5: Song & Ermon 2020,
    2006.09011).
    """

    sampler: str = "heun"
    steps: int = 20
    grid: str = "uniform"  # of the noise levels, as in `sigmas`
    guidance: float = 1.0  # 1: none
    clip: str = "static"  # of each x0: none; static: to [−1, 1]; dynamic: by its 0.995 quantile
    eta: float = 1.0  # ancestral: 0 is DDIM, 1 is DDPM
    corrections: int = 1  # langevin, pc: steps at each level
    snr: float = 0.16  # langevin, pc: size of a step
    churn: float = 40.0  # churn: noise added over all steps,
    churn_min: float = 0.05  # at levels from here
    churn_max: float = 50.0  # to here,
    churn_noise: float = 1.003  # scaled by this, which makes up for what networks lose of it

    def check(self) -> None:
        """Raise ValueError for settings that cannot work."""
        if self.sampler not in SAMPLERS:
            close = difflib.get_close_matches(self.sampler, SAMPLERS, 1, 0.5)
            hint = f"did you mean '{close[0]}'?" if close else f"use one of {', '.join(SAMPLERS)}"
            raise ValueError(f"sampler '{self.sampler}' does not exist; {hint}")
        if self.grid not in GRIDS:
            raise ValueError(f"grid '{self.grid}' does not exist; use karras, uniform or log-snr")
        if self.clip not in CLIPS:
            raise ValueError(f"clip '{self.clip}' does not exist; use {', '.join(CLIPS)}")
        if self.steps < 1:
            raise ValueError(f"steps {self.steps}: give at least 1")
        if self.sampler == "ancestral" and self.eta < 0:
            raise ValueError(f"eta {self.eta:g}: give 0 (no noise, DDIM) or more (1: DDPM)")
        if self.sampler not in ("langevin", "pc"):
            return
        least = 1 if self.sampler == "langevin" else 0
        if self.corrections < least:
            raise ValueError(
                f"corrections {self.corrections}: sampler {self.sampler} needs at least {least}"
            )
        if not 0 < self.snr <= LARGEST_SNR:
            raise ValueError(
                f"snr {self.snr:g}: give a number above 0, up to {LARGEST_SNR:g}, beyond which "
                "Langevin steps overshoot"
            )


def sigmas(process: Process, steps: int, kind: str = "karras", rho: float = 7.0) -> Tensor:
    """The levels of `steps` sampling steps: [steps + 1] float64 on the CPU, falling, the last 0.

    karras: evenly spaced in sigma^(1/rho); log-snr: in ln sigma; both from sigma_max to sigma_min.
    uniform: at the evenly spaced times of the process (Process.times).
    Raises ValueError for an unknown kind or too few or too many steps.
    """
    if steps < 1:
        raise ValueError(f"steps {steps}: give at least 1")
    high, low = process.sigma_max, process.sigma_min
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    if kind == "karras":
        levels = (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    elif kind == "log-snr":
        levels = torch.exp(math.log(high) + ramp * (math.log(low) - math.log(high)))
    elif kind == "uniform":
        levels = process.sigma(process.times(steps)).clamp(max=high)  # sigma(1) may be infinite
    else:
        raise ValueError(f"grid '{kind}' does not exist; use karras, uniform or log-snr")
    return torch.cat([levels, levels.new_zeros(1)])


class SeededNoise:
    """Noise in which each sample depends on its own seed alone: one CPU generator a sample."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = list(seeds)

    def initial(self, shape: Sequence[int]) -> Tensor:
        """The first noise of each sample, [B, *shape], standard normal; starts the seeds anew."""
        self._shape = tuple(shape)
        self._generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]
        return self.step()

    def step(self) -> Tensor:
        """The next noise of each sample, of the same shape; after `initial`."""
        return torch.stack([torch.randn(self._shape, generator=g) for g in self._generators])


@torch.no_grad()
def sample(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    sampling: Sampling,
    *,
    noise: Draw | None = None,
    callback: Callable[[int, Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Bring x [B, ...] from level sigmas[0] down to sigmas[-1] (x0 where that is 0).

    x must *be* at that level: `seeded.initial(shape) * sigmas[0]`, or `x0 + sigmas[0] * noise`.
    `noise` gives standard normal tensors like x to the samplers that add some. `sampling.clip` acts
    on every x0: static: to [−1, 1]; dynamic: to the 0.995 quantile s of |x0| if above 1, then
    divided by s. `callback(i, x, x0)` hears of every step. x keeps its precision; levels are
    float64. Raises ValueError as `Sampling.check`.
    """
    sampling.check()
    sampler, clip = sampling.sampler, CLIPS[sampling.clip]
    if sampler in NOISY and noise is None:
        raise ValueError(f"sampler '{sampler}' adds noise: pass noise=SeededNoise(…).step")

    def D(x: Tensor, sigma: float) -> Tensor:  # noqa: N802
        return clip(denoise(x, sigma).to(x.dtype))

    def z() -> Tensor:
        assert noise is not None
        return noise().to(x)

    levels = sigmas.tolist()
    steps = {
        "euler": lambda: euler(D, x, levels),
        "heun": lambda: heun(D, x, levels),
        "dpm++": lambda: dpm_plus_plus(D, x, levels),
        "ancestral": lambda: ancestral(D, x, levels, z, sampling.eta),
        "churn": lambda: churned(D, x, levels, z, sampling),
        "langevin": lambda: annealed(D, x, levels, z, sampling),
        "pc": lambda: corrected(D, x, levels, z, sampling),
    }[sampler]()
    for i, (x, x0) in enumerate(steps):
        if callback:
            callback(i, x, x0)
    return x


def euler(D: Denoise, x: Tensor, levels: Sequence[float]) -> Steps:
    """Straight on along the slope: DDIM."""
    for s, r in pairwise(levels):
        x0 = D(x, s)
        x = x0 + (r / s) * (x - x0)
        yield x, x0


def heun(D: Denoise, x: Tensor, levels: Sequence[float]) -> Steps:
    """The mean of the slopes at both ends of the step; the step to 0 has only one."""
    for s, r in pairwise(levels):
        x, x0 = heun_step(D, x, s, r)
        yield x, x0


def heun_step(D: Denoise, x: Tensor, s: float, r: float) -> tuple[Tensor, Tensor]:
    """One step from level s to r.

    The mean slope holds D at r with the weight (s − r)/2r, which runs away in a long step through
    almost pure noise (1000 → 19 in flow matching's uniform grid): there the mean of both D is held
    fixed over the step instead (second order too).
    """
    x0 = D(x, s)
    if r == 0:
        return x0, x0
    ahead = x0 + (r / s) * (x - x0)
    x0_ahead = D(ahead, r)
    if s > 3 * max(r, 1):
        mean = (x0 + x0_ahead) / 2
        return mean + (r / s) * (x - mean), x0
    return x + (r - s) * ((x - x0) / s + (ahead - x0_ahead) / r) / 2, x0


def dpm_plus_plus(D: Denoise, x: Tensor, levels: Sequence[float]) -> Steps:
    """Exact in the linear part; D is extrapolated in λ = −ln sigma from the step before."""
    previous = None
    for i, (s, r) in enumerate(pairwise(levels)):
        x0 = guess = D(x, s)
        if previous is not None and r > 0:  # the step to 0 is infinitely long in λ: first order
            q = math.log(levels[i - 1] / s) / math.log(s / r)
            guess = x0 + (x0 - previous) / (2 * q)
        x = guess + (r / s) * (x - guess)
        previous = x0
        yield x, x0


def ancestral(D: Denoise, x: Tensor, levels: Sequence[float], z: Draw, eta: float) -> Steps:
    """A little too far down, then noise back up to r. `eta` 0 is `euler`, 1 is DDPM."""
    for s, r in pairwise(levels):
        x, x0 = ancestral_step(D, x, s, r, z, eta)
        yield x, x0


def ancestral_step(
    D: Denoise, x: Tensor, s: float, r: float, z: Draw, eta: float
) -> tuple[Tensor, Tensor]:
    """One step from level s to r, and the D it used."""
    x0 = D(x, s)
    up = min(r, eta * r * math.sqrt(s**2 - r**2) / s)
    down = math.sqrt(r**2 - up**2)
    x = x0 + (down / s) * (x - x0)
    return (x + up * z() if up > 0 else x), x0


def churned(D: Denoise, x: Tensor, levels: Sequence[float], z: Draw, sampling: Sampling) -> Steps:
    """Before each step noise up from s to a higher level, then Heun from there."""
    most = min(sampling.churn / (len(levels) - 1), math.sqrt(2) - 1)
    for s, r in pairwise(levels):
        up = s * (1 + most) if sampling.churn_min <= s <= sampling.churn_max else s
        if up > s:
            x = x + math.sqrt(up**2 - s**2) * sampling.churn_noise * z()
        x, x0 = heun_step(D, x, up, r)
        yield x, x0


def langevin_step(D: Denoise, x: Tensor, r: float, z: Draw, snr: float) -> tuple[Tensor, Tensor]:
    """One step at level r, and the D it used."""
    x0, delta = D(x, r), 4 * snr**2
    return x + delta / 2 * (x0 - x) + math.sqrt(delta) * r * z(), x0


def annealed(D: Denoise, x: Tensor, levels: Sequence[float], z: Draw, sampling: Sampling) -> Steps:
    """x as it is goes on at the next level, where Langevin steps take away what is too much."""
    for s, r in pairwise(levels):
        if r == 0:
            x = x0 = D(x, s)
        for _ in range(sampling.corrections if r > 0 else 0):
            x, x0 = langevin_step(D, x, r, z, sampling.snr)
        yield x, x0


def corrected(D: Denoise, x: Tensor, levels: Sequence[float], z: Draw, sampling: Sampling) -> Steps:
    """DDPM's step down, which is Song's predictor, then Langevin steps where it arrives."""
    for s, r in pairwise(levels):
        x, x0 = ancestral_step(D, x, s, r, z, 1.0)
        for _ in range(sampling.corrections if r > 0 else 0):
            x, x0 = langevin_step(D, x, r, z, sampling.snr)
        yield x, x0


def _dynamic(x0: Tensor) -> Tensor:
    s = torch.quantile(x0.abs().flatten(1).float(), DYNAMIC_QUANTILE, dim=1).clamp(min=1).to(x0)
    s = s.view(-1, *[1] * (x0.ndim - 1))  # [B, 1, …]
    return x0.clamp(-s, s) / s


CLIPS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x0: x0,
    "static": lambda x0: x0.clamp(-1, 1),
    "dynamic": _dynamic,
}
