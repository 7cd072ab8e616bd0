"""From what a network says to the expected clean image.

A network gets c_in(sigma)·x and c_noise(sigma) and returns F. What F stands for is the
parameterisation: three pairs of coefficients in the frame x = x0 + s n, where s is sigma.

            x0 = a x + b F                   n = c x + d F                  F = e x0 + f n
    eps     x − s F                          F                              n
    x0      F                                (x − F)/s                      x0
    v       x/(1+s²) − s F/√(1+s²)           s x/(1+s²) + F/√(1+s²)         (n − s x0)/√(1+s²)
    flow    (x − s F)/(1+s)                  (x + F)/(1+s)                  n − x0
    score   x + s F                          −F                             −n
    edm     q² x/(s²+q²) + s q F/√(s²+q²)    s x/(s²+q²) − q F/√(s²+q²)     (s x0/q − q n)/√(s²+q²)

(q is sigma_data.) Only eps and x0 suit every process: v is alpha n − sigma_t x0 of variance
preserving ones (Salimans & Ho 2022, arXiv 2202.00512), flow the velocity of flow matching (Lipman
et al. 2023, 2210.02747), edm the preconditioning of Karras et al. (2022, 2206.00364), and the score
∇ ln p(x) of noise that is only added is F/s (Song & Ermon 2019, 1907.05600): its loss weighted by
λ = s² is the plain error of F. The noise comes straight from F, since (x − x0)/s cancels at small
s; only an x0 network has no other way.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from underpaint import config
from underpaint.core.masks import Mask, gather, whole
from underpaint.core.schedules import Process
from underpaint.errors import UserError

__all__ = [
    "Coefficients",
    "Denoiser",
    "Parameterisation",
    "Prediction",
    "guided",
    "parameterisation",
]

PROCESSES = {  # of each prediction
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


class Prediction(NamedTuple):
    """What a backbone returns: F at the visible patches and, if it has them, the hidden ones."""

    visible: Tensor  # [B, V, P]
    hidden: Tensor | None = None  # [B, N − V, P]


class Coefficients(NamedTuple):
    """x0 = a x + b F, n = c x + d F, and the target of F = e x0 + f n; each as sigma's shape."""

    a: Tensor
    b: Tensor
    c: Tensor
    d: Tensor
    e: Tensor
    f: Tensor


@dataclass(frozen=True)
class Parameterisation:
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
        return _spread(at.a, x) * x + _spread(at.b, x) * F

    def eps(self, x: Tensor, F: Tensor, sigma: Tensor) -> Tensor:
        """The noise n from x and F [B, V, P] at levels sigma [B]: x = x0 + sigma n."""
        at = self.coefficients(sigma)
        return _spread(at.c, x) * x + _spread(at.d, x) * F

    def target(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """What F should be, from x0 and the noise [B, V, P] at levels sigma [B]."""
        at = self.coefficients(sigma)
        return _spread(at.e, x0) * x0 + _spread(at.f, x0) * noise

    def b(self, sigma: Tensor) -> Tensor:
        """∂x0/∂F: a weight w on x0's squared error is the weight w b² on F's."""
        return self.coefficients(sigma).b


def parameterisation(config: config.Noise) -> Parameterisation:
    """The one that `config` asks for. Raises UserError where it does not suit the process."""
    name = config.prediction
    if name not in PROCESSES:
        raise UserError(f"noise.prediction '{name}' is unknown; use one of {', '.join(PROCESSES)}")
    if config.process not in PROCESSES[name]:
        suits = [p for p, processes in PROCESSES.items() if config.process in processes]
        raise UserError(
            f"noise.prediction '{name}' does not go with process {config.process}, since "
            f"{REASONS[name]}; use {', '.join(suits)}"
        )
    return Parameterisation(name, config.sigma_data)


class Denoiser(nn.Module):
    """A backbone, the noise it was trained on and what it predicts: x = x0 + sigma n → x0.

    All but the backbone is computed in float32 at least, also under autocast; with `bf16` set the
    backbone runs under bf16 autocast wherever it is called. `x` is what the backbone sees:
    [B, V, P] of the visible patches if `backbone.sees == "visible"`, else [B, N, P]. `sigma` is a
    number, or [B]; `mask` None is the whole image; `labels` [B] int64, −1 for none, or None for a
    network without labels.
    """

    def __init__(self, backbone: nn.Module, process: Process, prediction: Parameterisation) -> None:
        super().__init__()
        self.backbone = backbone
        self.process = process
        self.prediction = prediction
        self.bf16 = False
        # what the sides and corners of a crop mask are multiples of, in patches
        self.stride = int(getattr(backbone, "stride", 1))

    def predict(
        self,
        x: Tensor,
        sigma: float | Tensor,
        labels: Tensor | None,
        mask: Mask | None,
        condition: Tensor | None = None,
    ) -> Prediction:
        """The backbone's raw output F; `condition` [B, D] of augmented images, if there are any."""
        x, sigma = _at_least_float32(x), _levels(sigma, x)
        c_in, c_noise = self.process.c_in(sigma), self.process.c_noise(sigma)
        mask = whole(self.backbone.grid) if mask is None else mask  # type: ignore[arg-type]
        told = {} if condition is None else {"condition": condition}
        fast = torch.autocast(x.device.type, torch.bfloat16) if self.bf16 else nullcontext()
        with fast:
            F = self.backbone(_spread(c_in, x) * x, c_noise, labels, mask, **told)
        hidden = None if F.hidden is None else F.hidden.to(x.dtype)
        return Prediction(F.visible.to(x.dtype), hidden)

    def denoise(
        self,
        x: Tensor,
        sigma: float | Tensor,
        labels: Tensor | None = None,
        mask: Mask | None = None,
    ) -> Tensor:
        """The expected x0 at the visible patches, [B, V, P]."""
        F = self.predict(x, sigma, labels, mask).visible
        return self.prediction.x0(self._visible(x, mask), F, _levels(sigma, x))

    def eps(
        self,
        x: Tensor,
        sigma: float | Tensor,
        labels: Tensor | None = None,
        mask: Mask | None = None,
    ) -> Tensor:
        """The expected noise at the visible patches, [B, V, P]."""
        F = self.predict(x, sigma, labels, mask).visible
        return self.prediction.eps(self._visible(x, mask), F, _levels(sigma, x))

    def _visible(self, x: Tensor, mask: Mask | None) -> Tensor:
        if mask is not None and self.backbone.sees == "all":
            x = gather(x, mask.visible)
        return _at_least_float32(x)


def guided(
    denoise: Callable[[Tensor, Any, Any], Tensor],
    labels: Tensor | None,
    null_labels: Tensor | None,
    scale: float,
) -> Callable[[Tensor, float | Tensor], Tensor]:
    """Classifier-free guidance: x0 = x0(null) + scale·(x0(labels) − x0(null)).

    `denoise(x, sigma, labels)` gives x0; the result is a function of x [B, …] and sigma alone.
    Both are asked in one batch of twice the size; at scale 1 (no guidance) only x0(labels) is
    computed. Ho & Salimans 2022, arXiv 2207.12598.
    """
    if scale == 1 or labels is None or null_labels is None:
        return lambda x, sigma: denoise(x, sigma, labels)
    both = torch.cat([null_labels, labels])

    def combined(x: Tensor, sigma: float | Tensor) -> Tensor:
        if isinstance(sigma, Tensor) and sigma.ndim:
            sigma = torch.cat([sigma, sigma])
        null, asked = denoise(torch.cat([x, x]), sigma, both).chunk(2)
        return null + scale * (asked - null)

    return combined


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _levels(sigma: float | Tensor, x: Tensor) -> Tensor:
    """sigma as [B], beside x and in its precision, float32 at least."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    sigma = torch.as_tensor(sigma, dtype=dtype, device=x.device)
    return sigma.expand(len(x))


def _spread(coefficient: Tensor, x: Tensor) -> Tensor:
    """[B] → [B, 1, …], to multiply x."""
    return coefficient.view(-1, *[1] * (x.ndim - 1))
