"""Noise processes: how much noise an image carries at time t.

    x_t = alpha(t) x0 + sigma_t(t) n,   n ~ N(0, I),   t from 0 (clean) to 1 (noise)

Everything outside this file works in the frame x = x_t / alpha = x0 + sigma n with
sigma = sigma_t / alpha, in which all processes differ only in the levels that they visit:

    vp-linear  alpha² = exp(−B), B = ∫ beta = 0.1 t + 19.9 t²/2           Song 2021, 2011.13456
    vp-cosine  alpha = cos(θ)/cos(θ0), θ = π/2 (t + s)/(1 + s), s = 0.008  Nichol 2021, 2102.09672
    discrete   alpha² = ∏ (1 − beta_k), the T steps of DDPM, both betas    Ho 2020, 2006.11239
    flow       alpha = 1 − t, sigma_t = t                                  Lipman 2023, 2210.02747
    edm        alpha = 1, ln sigma ~ N(−1.2, 1.2²) in training             Karras 2022, 2206.00364
    ve         alpha = 1, ln sigma uniform in training, or NCSN's levels   Song 2019, 1907.05600

A network sees c_in(sigma)·x and c_noise(sigma): x_t and 1000 t for VP and flow; for EDM and VE x
scaled to unit variance and ln(sigma)/4. Levels are finite: sigma_max = min(sigma(1), 1000), and
sigma_min is

    0.0105 (vp-linear), 0.0064 (vp-cosine)  the level at t = 1/1000, about DDPM's first step
    0.0100 (linear), 0.0064 (cosine)        discrete: exactly the first of the T = 1000 steps
    0.001 (flow)   0.002 (edm, whose sigma_max is 80)   0.01 (ve, 50)

Every formula is chosen not to cancel: float32 is enough from sigma 1e-4 to 1000.
"""

import functools
import math

import torch
from torch import Tensor

SIGMA_CAP = 1000.0
FIRST = 1e-3  # the smallest t of the continuous processes
WITHIN = (2.0**-24, 1 - 2.0**-24)  # where the quantiles of a normal law are finite in float32
UNIFORM = 0.2  # share of the uniform times in the law `mixed`
KNOTS = 1025
TIME_LAWS = {
    "vp-linear": ("uniform",),
    "vp-cosine": ("uniform",),
    "flow": ("uniform", "logit-normal", "mixed"),
    "edm": ("log-normal",),
    "ve": ("log-uniform",),
}


class Process:
    """What every process answers; times and levels are tensors of any shape, element by element."""

    sigma_min: float
    sigma_max: float
    stratified: bool = False  # whether the times of a batch are spread over their law

    def sigma(self, t: Tensor) -> Tensor:
        """The level sigma_t / alpha: the noise in units of x0. Infinite at worst."""
        raise NotImplementedError

    def t(self, sigma: Tensor) -> Tensor:
        """The time at which the level is `sigma`: the inverse of `sigma(t)`."""
        raise NotImplementedError

    def alpha(self, sigma: Tensor) -> Tensor:
        """Scale of x0 in x_t at this level. Here: of variance preserving noise."""
        return torch.rsqrt(1 + sigma**2)

    def c_in(self, sigma: Tensor) -> Tensor:
        """What x is multiplied by before the network sees it. VP and flow: it sees x_t."""
        return self.alpha(sigma)

    def c_noise(self, sigma: Tensor) -> Tensor:
        """The noise level as the network gets it. VP and flow: 1000 t."""
        return 1000 * self.t(sigma)

    def draw_t(
        self,
        batch: int,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Training times [B], float32. Drawn where the generator lives, then moved to `device`.

        `stratified`: one in each of B equally likely parts of the law, in random order (Kingma et
        al. 2021, arXiv 2107.00630, appendix I). Each time alone still follows the law.
        """
        source = generator.device if generator is not None else device
        u = torch.rand(batch, generator=generator, device=source)
        if self.stratified:
            u = (torch.randperm(batch, generator=generator, device=source) + u) / batch
        return self.quantile(u.clamp(*WITHIN)).to(device)

    def quantile(self, u: Tensor) -> Tensor:
        """The time below which a share `u` in (0, 1) of the training times lies. Here: uniform."""
        low, high = self._time_range
        return low + (high - low) * u

    def times(self, steps: int) -> Tensor:
        """Evenly spaced times for sampling, from most noise to sigma_min's: [steps], float64."""
        return torch.linspace(1, self._time_range[0], steps, dtype=torch.float64)

    @functools.cached_property
    def _time_range(self) -> tuple[float, float]:
        ends = torch.tensor([self.sigma_min, self.sigma_max], dtype=torch.float64)
        low, high = self.t(ends).tolist()
        return low, high


class VPLinear(Process):
    """Variance preserving, beta rising linearly: the limit of DDPM's betas 1e-4..0.02, T = 1000."""

    beta_min, beta_max = 0.1, 20.0

    def __init__(self) -> None:
        self.sigma_min, self.sigma_max = _ends(self)

    def sigma(self, t: Tensor) -> Tensor:
        B = self.beta_min * t + (self.beta_max - self.beta_min) * t**2 / 2  # beta from 0 to t
        return torch.sqrt(torch.expm1(B))

    def t(self, sigma: Tensor) -> Tensor:
        B, slope = torch.log1p(sigma**2), self.beta_max - self.beta_min
        # the root of slope/2 t² + beta_min t − B = 0, written so that it does not cancel near 0
        return 2 * B / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * slope * B))


class VPCosine(Process):
    """Variance preserving with a cosine: noise rises slowly at both ends."""

    s = 0.008

    def __init__(self) -> None:
        self.theta0 = math.pi / 2 * self.s / (1 + self.s)
        self.sigma_min, self.sigma_max = _ends(self)

    def sigma(self, t: Tensor) -> Tensor:
        u = math.pi / 2 * t / (1 + self.s)  # θ − θ0: cos²θ0 − cos²θ = sin(θ − θ0) sin(θ + θ0)
        sigma_t = torch.sqrt(torch.sin(u) * torch.sin(u + 2 * self.theta0)) / math.cos(self.theta0)
        # cos(θ) as a sine of what is left to π/2: in float32 cos(π/2) is negative
        alpha = torch.sin(math.pi / 2 * (1 - t) / (1 + self.s)) / math.cos(self.theta0)
        return sigma_t / alpha

    def t(self, sigma: Tensor) -> Tensor:
        sin0, cos0 = math.sin(self.theta0), math.cos(self.theta0)
        root = torch.sqrt(sigma**2 + sin0**2)  # tan θ = root / cos θ0
        # tan θ − tan θ0 = sigma² / (cos θ0 (root + sin θ0)), then the tangent of a difference
        return (
            (2 / math.pi)
            * (1 + self.s)
            * torch.atan2(sigma**2 / (root + sin0), cos0 + root * sin0 / cos0)
        )


class Discrete(Process):
    """The T steps of DDPM. Step k = 0..T−1 is t = k/T, so that at T = 1000 c_noise is k itself.

    Between two steps ln sigma is interpolated linearly in t; outside of them t is clamped to the
    first and the last. (In the continuous process the same level lies at (k + 1)/T.) At other T the
    linear betas are scaled by 1000/T, so that the end stays equally noisy (Nichol 2021).
    """

    def __init__(self, schedule: str, steps: int = 1000) -> None:
        self.steps = steps
        if schedule == "vp-linear":
            betas = torch.linspace(1e-4, 0.02, steps, dtype=torch.float64) * (1000 / steps)
        else:
            k = torch.arange(steps + 1, dtype=torch.float64)
            bar = torch.cos((k / steps + 0.008) / 1.008 * math.pi / 2) ** 2
            betas = (1 - bar[1:] / bar[:-1]).clamp(max=0.999)
        log_bar = torch.log1p(-betas).cumsum(0)  # ln of alphas_cumprod
        self.alphas_cumprod = log_bar.exp()  # [T] float64
        self._log_sigma = (torch.log(-torch.expm1(log_bar)) - log_bar) / 2  # [T] float64
        self._tables: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self.sigma_min = float(self._log_sigma[0].exp())
        self.sigma_max = min(float(self._log_sigma[-1].exp()), SIGMA_CAP)

    def _table(self, like: Tensor) -> Tensor:
        key = (like.device, like.dtype)
        if key not in self._tables:  # copied to each device once, not at every step
            self._tables[key] = self._log_sigma.to(*key, non_blocking=True)
        return self._tables[key]

    def sigma(self, t: Tensor) -> Tensor:
        table = self._table(t)
        place = (t * self.steps).clamp(0, self.steps - 1)
        k = place.floor().clamp(max=self.steps - 2).long()
        return torch.lerp(table[k], table[k + 1], place - k).exp()

    def t(self, sigma: Tensor) -> Tensor:
        table, level = self._table(sigma), torch.log(sigma)
        # a search in the sorted table, in operations that every exporter knows
        k = ((table <= level[..., None]).sum(-1) - 1).clamp(0, self.steps - 2)
        place = k + (level - table[k]) / (table[k + 1] - table[k])
        return place.clamp(0, self.steps - 1) / self.steps

    def quantile(self, u: Tensor) -> Tensor:
        """One of the T steps, each equally likely: k/T."""
        return (u * self.steps).floor() / self.steps

    def times(self, steps: int) -> Tensor:
        """Whole steps, evenly spaced from T − 1 (not T, which is no step) down to 0."""
        _within_grid(steps, self.steps)
        k = torch.linspace(self.steps - 1, 0, steps, dtype=torch.float64).round()
        return k / self.steps


class Flow(Process):
    """Flow matching: straight lines from data to noise.

    `shift` s moves times towards noise, t' = s t / (1 + (s − 1) t), in training and in the uniform
    sampling grid (Esser et al. 2024, arXiv 2403.03206, as the logit-normal law of `time`). `mixed`
    is logit-normal for 80 % of the times and uniform for the others: of logit-normal times one in
    250 is above 0.93, and a short training can lose what to do with almost pure noise.
    """

    def __init__(self, time: str = "mixed", shift: float = 1.0) -> None:
        self.time, self.shift = time, shift
        self.sigma_min, self.sigma_max = _ends(self)

    def alpha(self, sigma: Tensor) -> Tensor:
        return 1 / (1 + sigma)

    def sigma(self, t: Tensor) -> Tensor:
        return t / (1 - t)

    def t(self, sigma: Tensor) -> Tensor:
        return sigma / (1 + sigma)

    def _shifted(self, t: Tensor) -> Tensor:
        return self.shift * t / (1 + (self.shift - 1) * t)

    def quantile(self, u: Tensor) -> Tensor:
        """Of the law of `time`, shifted; within the times of sigma_min and sigma_max."""
        if self.time == "logit-normal":
            u = _normal(u).sigmoid()
        elif self.time == "mixed":
            u = _mixed(u)
        return self._shifted(u).clamp(*self._time_range)

    def times(self, steps: int) -> Tensor:
        """1, 1 − 1/steps, …, 1/steps, then shifted; the next, 0, is the clean image."""
        return self._shifted(torch.linspace(1, 0, steps + 1, dtype=torch.float64)[:-1])


class EDM(Process):
    """Noise is added and nothing shrinks: x_t = x0 + sigma n.

    t is only a name for the level: the place of ln sigma between sigma_min (t = 0) and sigma_max
    (t = 1). Training levels are log-normal and may lie outside, where t is below 0 or above 1.
    """

    ends = (0.002, 80.0)
    mean, std = -1.2, 1.2  # of ln sigma in training

    def __init__(self, sigma_data: float = 0.5) -> None:
        self.sigma_data = sigma_data
        self.sigma_min, self.sigma_max = self.ends
        self._low = math.log(self.sigma_min)
        self._span = math.log(self.sigma_max) - self._low

    def alpha(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.exp(self._low + self._span * t)

    def t(self, sigma: Tensor) -> Tensor:
        return (torch.log(sigma) - self._low) / self._span

    def c_in(self, sigma: Tensor) -> Tensor:
        return torch.rsqrt(sigma**2 + self.sigma_data**2)

    def c_noise(self, sigma: Tensor) -> Tensor:
        return torch.log(sigma) / 4

    def quantile(self, u: Tensor) -> Tensor:
        """Of times whose levels are log-normal."""
        return (self.mean + self.std * _normal(u) - self._low) / self._span


class VE(EDM):
    """Variance exploding: EDM's frame with the levels of score networks, from 0.01 to 50.

    In training ln sigma is uniform; with `steps` it takes that many values, evenly spaced: the
    geometric levels of NCSN (10 in Song & Ermon 2019, 232 in 2020, arXiv 2006.09011).
    """

    ends = (0.01, 50.0)

    def __init__(self, sigma_data: float = 0.5, steps: int = 0) -> None:
        super().__init__(sigma_data)
        self.steps = steps

    def quantile(self, u: Tensor) -> Tensor:
        """Uniform in [0, 1], or one of the levels, each equally likely."""
        return (u * self.steps).floor() / (self.steps - 1) if self.steps else u

    def times(self, steps: int) -> Tensor:
        """Evenly spaced from 1 to 0; of a grid, its levels alone."""
        if not self.steps:
            return super().times(steps)
        _within_grid(steps, self.steps)
        last = self.steps - 1
        return torch.linspace(last, 0, steps, dtype=torch.float64).round() / last


def build(
    process: str = "flow",
    *,
    time: str = "",
    steps: int = 0,
    shift: float = 1.0,
    sigma_data: float = 0.5,
    stratified: bool = False,
) -> Process:
    """The noise schedule of this name.

    `time`: the law of the training times (default: the schedule's last). `steps`: of a discrete
    grid; 0: continuous. Raises ValueError where they do not go together.
    """
    if process not in TIME_LAWS:
        raise ValueError(f"process '{process}' is unknown; use one of {', '.join(TIME_LAWS)}")
    time = time or TIME_LAWS[process][-1]
    if time not in TIME_LAWS[process]:
        laws = " or ".join(TIME_LAWS[process])
        raise ValueError(f"time '{time}' does not go with process {process}; use {laws}")
    if shift != 1 and process != "flow":
        raise ValueError(f"shift {shift:g} is for process flow; leave it 1 with {process}")
    if not 0 < shift < math.inf:
        raise ValueError(f"shift {shift:g}: give a number above 0 (1: no shift)")
    if not 0 < sigma_data < math.inf and process in ("edm", "ve"):
        raise ValueError(f"sigma_data {sigma_data:g}: give a number above 0")
    if process.startswith("vp") and steps and steps < 100:  # the scaled linear betas come near one
        raise ValueError(f"steps {steps}: give 0 (continuous time) or at least 100 (DDPM: 1000)")
    if process == "ve" and (steps < 0 or steps == 1):
        raise ValueError(f"steps {steps}: give 0 (all levels) or at least 2 (NCSN: 10 to 232)")
    if process in ("flow", "edm") and steps:
        raise ValueError(
            f"steps {steps}: only vp-linear, vp-cosine and ve have a discrete grid; "
            f"leave it 0 with {process}"
        )
    schedule: Process
    if process.startswith("vp"):
        continuous = VPLinear if process == "vp-linear" else VPCosine
        schedule = Discrete(process, steps) if steps else continuous()
    elif process == "flow":
        schedule = Flow(time, shift)
    else:
        schedule = EDM(sigma_data) if process == "edm" else VE(sigma_data, steps)
    schedule.stratified = stratified
    return schedule


def _normal(u: Tensor) -> Tensor:
    """The quantile of the standard normal law."""
    return math.sqrt(2) * torch.erfinv(2 * u - 1)


def _mixed(u: Tensor) -> Tensor:
    """The quantile of the law `mixed`, which has no formula: linear between `KNOTS` times."""
    t = torch.linspace(0, 1, KNOTS, device=u.device)
    logit_normal = (torch.erf(torch.logit(t) / math.sqrt(2)) + 1) / 2
    share = torch.lerp(logit_normal, t, UNIFORM)  # of the law below t
    k = torch.searchsorted(share, u).clamp(1, KNOTS - 1)
    return torch.lerp(t[k - 1], t[k], (u - share[k - 1]) / (share[k] - share[k - 1]))


def _ends(process: Process) -> tuple[float, float]:
    low, high = process.sigma(torch.tensor([FIRST, 1.0], dtype=torch.float64)).tolist()
    return low, min(high, SIGMA_CAP)


def _within_grid(steps: int, grid: int) -> None:
    if steps > grid:
        raise ValueError(
            f"{steps} sampling steps: the model's noise has a grid of {grid}; "
            "ask for fewer steps or for another grid"
        )
