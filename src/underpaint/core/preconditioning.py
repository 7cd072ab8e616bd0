"""Preconditioning: what a network's output F stands for.

A network gets c_in(sigma)·x and c_noise(sigma) and returns F. What F stands for is given by three
pairs of coefficients in the frame x = x0 + s n, where s is sigma.

            x0 = a x + b F                   n = c x + d F                  F = e x0 + f n
    eps     x − s F                          F                              n
    x0      F                                (x − F)/s                      x0
    v       x/(1+s²) − s F/√(1+s²)           s x/(1+s²) + F/√(1+s²)         (n − s x0)/√(1+s²)
    flow    (x − s F)/(1+s)                  (x + F)/(1+s)                  n − x0
    score   x + s F                          −F                             −n
    edm     q² x/(s²+q²) + s q F/√(s²+q²)    s x/(s²+q²) − q F/√(s²+q²)     (s x0/q − q n)/√(s²+q²)

(q is sigma_data.) Only eps and x0 suit every noise schedule: v is alpha n − sigma_t x0 of variance
preserving ones (Salimans & Ho 2022, arXiv 2202.00512), flow the velocity of flow matching (Lipman
et al. 2023, 2210.02747), edm the preconditioning of Karras et al. (2022, 2206.00364), and the score
∇ ln p(x) of noise that is only added is F/s (Song & Ermon 2019, 1907.05600): its loss weighted by
λ = s² is the plain error of F. The noise comes straight from F, since (x − x0)/s cancels at small
s; only an x0 network has no other way.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

SCHEDULES = {  # that each prediction goes with
    "eps": ("vp-linear", "vp-cosine", "flow", "edm", "ve"),
    "x0": ("vp-linear", "vp-cosine", "flow", "edm", "ve"),
    "v": ("vp-linear", "vp-cosine"),
    "flow": ("flow",),
    "score": ("ve", "edm"),
    "edm": ("edm", "ve"),
}
REASONS = {  # why not with the others
    "v": "it turns x0 into noise at constant variance, as vp-linear and vp-cosine do",
    "flow": "it is the velocity of process flow",
    "score": "it is scaled for noise that is only added, as in ve and edm",
    "edm": "its scalings are for noise that is only added, as in edm and ve",
}


class Coefficients(NamedTuple):
    """x0 = a x + b F, n = c x + d F, and the target of F = e x0 + f n; each as sigma's shape."""

    a: Tensor
    b: Tensor
    c: Tensor
    d: Tensor
    e: Tensor
    f: Tensor


@dataclass(frozen=True)
class Preconditioning:
    """What F stands for. `sigma_data` matters to edm alone."""

    name: str
    sigma_data: float = 0.5

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """The six coefficients of the table above, at each level."""
        s, q = sigma, self.sigma_data
        one, zero = torch.ones_like(s), torch.zeros_like(s)
        if self.name == "eps":
            return Coefficients(one, -s, zero, one, zero, one)
        if self.name == "x0":
            return Coefficients(zero, one, 1 / s, -1 / s, one, zero)
        if self.name == "score":
            return Coefficients(one, s, zero, -one, zero, -one)
        if self.name == "flow":
            r = 1 / (1 + s)
            return Coefficients(r, -s * r, r, r, -one, one)
        if self.name == "v":
            r = torch.rsqrt(1 + s**2)
            return Coefficients(r**2, -s * r, s * r**2, r, -s * r, r)
        r = torch.rsqrt(s**2 + q**2)
        return Coefficients((q * r) ** 2, s * q * r, s * r**2, -q * r, s * r / q, -q * r)

    def x0(self, x: Tensor, F: Tensor, sigma: Tensor) -> Tensor:
        """x0 from x and F [B, V, P] at levels sigma [B]."""
        at = self.coefficients(sigma)
        return spread(at.a, x) * x + spread(at.b, x) * F

    def eps(self, x: Tensor, F: Tensor, sigma: Tensor) -> Tensor:
        """The noise n from x and F [B, V, P] at levels sigma [B]: x = x0 + sigma n."""
        at = self.coefficients(sigma)
        return spread(at.c, x) * x + spread(at.d, x) * F

    def target(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """What F should be, from x0 and the noise [B, V, P] at levels sigma [B]."""
        at = self.coefficients(sigma)
        return spread(at.e, x0) * x0 + spread(at.f, x0) * noise

    def b(self, sigma: Tensor) -> Tensor:
        """∂x0/∂F: a weight w on x0's squared error is the weight w b² on F's."""
        return self.coefficients(sigma).b


def build(prediction: str, schedule: str, sigma_data: float = 0.5) -> Preconditioning:
    """Of `prediction` with this noise schedule. Raises ValueError where they do not go together."""
    if prediction not in SCHEDULES:
        raise ValueError(f"prediction '{prediction}' is unknown; use one of {', '.join(SCHEDULES)}")
    if schedule not in SCHEDULES[prediction]:
        suits = [name for name, schedules in SCHEDULES.items() if schedule in schedules]
        raise ValueError(
            f"prediction '{prediction}' does not go with process {schedule}, since "
            f"{REASONS[prediction]}; use {', '.join(suits)}"
        )
    return Preconditioning(prediction, sigma_data)


def spread(coefficient: Tensor, x: Tensor) -> Tensor:
    """[B] → [B, 1, …], to multiply x [B, …]."""
    return coefficient.view(-1, *[1] * (x.ndim - 1))
