"""How errors at different noise levels are weighted against each other.

Fixed weights w(σ) of the squared error of x0; with b = ∂x0/∂F, the error of F has the weight w b²:

    output   w = 1/b², the plain squared error of F (for eps: DDPM's loss; for edm: Karras et al.
             2022, arXiv 2206.00364)
    x0       w = 1
    min-snr  w = min(1/σ², gamma) (Hang et al. 2023, arXiv 2303.09556)
    velocity w = 1/max(t, 0.05)², t = σ/(1 + σ): the squared error of the flow's velocity, for
             networks that predict x0 (Li and He 2025, arXiv 2511.13720). Unlike min-snr it does
             not fade where there is much noise, which is where the layout is decided

Learned weights, beside the network:

    loss = E_σ  error(σ) · exp(−u(σ)) + u(σ),      least where u(σ) = ln E[error | σ]

so that every noise level pulls on the network with the same force, whatever its errors are, and
none takes over when they change (Kendall et al. 2018, arXiv 1705.07115; for noise levels, Karras
et al. 2024, arXiv 2312.02696). u is a cosine series in the log of the noise level,

    u(σ) = 10 Σ_k w_k cos(π k z)/(k + 1),   z = (ln σ + 8)/16 within [0, 1],   k = 0 … 15

which starts at zero. The factor 10 lets u follow the error within some hundred steps at the rates
that suit networks, and 1/(k + 1) keeps it smooth on the way. Nothing samples with u: it is learned
in training and kept in its checkpoints.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["WEIGHTINGS", "Uncertainty", "output_weight"]

WEIGHTINGS = ("output", "x0", "min-snr", "velocity")

LEAST_TIME = 0.05  # of the velocity's weight, which is 400 at most

TERMS = 16
REACH = 8.0  # |ln σ|, further out u is what it is there: σ from 3e-4 to 3e3
SPEED = 10.0


class Uncertainty(nn.Module):
    """u(σ) and the loss that learns it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(TERMS))

    def u(self, sigma: Tensor) -> Tensor:
        """ln of the expected error at levels sigma [B] → [B], float32."""
        z = (sigma.float().log() / (2 * REACH) + 0.5).clamp(0, 1)  # [B]
        k = torch.arange(TERMS, dtype=torch.float32, device=sigma.device)
        waves = torch.cos(math.pi * z[:, None] * k) / (k + 1)  # [B, TERMS]
        return SPEED * (waves * self.weight).sum(dim=1)

    def forward(self, error: Tensor, sigma: Tensor) -> Tensor:
        """error·exp(−u) + u of errors [B] at levels sigma [B]."""
        u = self.u(sigma)
        return error * torch.exp(-u) + u


def output_weight(weighting: str, sigma: Tensor, b: Tensor, gamma: float) -> Tensor:
    """The weight [B] of the squared error of F: w(σ)·b², where b = ∂x0/∂F.

    Raises ValueError for an unknown weighting.
    """
    match weighting:
        case "output":
            return torch.ones_like(sigma)
        case "x0":
            return b.square()
        case "min-snr":
            return sigma.pow(-2).clamp(max=gamma) * b.square()
        case "velocity":
            return (sigma / (1 + sigma)).clamp(min=LEAST_TIME).pow(-2) * b.square()
    raise ValueError(f"weighting '{weighting}' is none of {', '.join(WEIGHTINGS)}")
