"""The objective: denoising score matching on the visible patches alone.

    loss = E_{x0, mask, t, n}  w(σ) · mean over visible patches ‖D(x0^ + σ n^, σ) − x0^‖²

with ^ the restriction to visible patches and σ = sigma_t/alpha_t (MaskDM, Lei et al. 2023, arXiv
2306.11363). With nothing hidden it is the ordinary diffusion loss. D = a x + b F and F's target F*
have closed forms, so the error is taken on the network's output, where nothing cancels:

    w(σ) ‖D − x0‖² = w(σ) b(σ)² ‖F − F*‖²

Weights:  output   w = 1/b², the plain squared error of F (for eps: DDPM's loss; for edm: Karras et
                   al. 2022, arXiv 2206.00364)
          x0       w = 1
          min-snr  w = min(1/σ², gamma) (Hang et al. 2023, arXiv 2303.09556)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from underpaint.core.denoiser import Denoiser
from underpaint.core.masks import Mask, gather, see

__all__ = ["Loss", "masked_loss", "output_weight"]


class Loss(NamedTuple):
    """What one batch gives."""

    mean: Tensor  # scalar, to be minimised
    per_image: Tensor  # [B] weighted
    x0_mse: Tensor  # [B] unweighted mean squared error of x0 over the visible numbers


def masked_loss(
    denoiser: Denoiser,
    patches: Tensor,
    labels: Tensor | None,
    mask: Mask,
    *,
    t: Tensor,
    noise: Tensor,
    weighting: str = "output",
    gamma: float = 5.0,
) -> Loss:
    """The loss of clean `patches` [B, N, P] noised by `noise` [B, N, P] at times `t` [B].

    In float32 also under autocast. A network that sees visible patches alone gets them before any
    noise is added: hidden pixels are never touched, whatever they hold.
    """
    prediction, sees = denoiser.prediction, str(denoiser.backbone.sees)
    sigma = denoiser.process.sigma(t).to(patches.dtype)  # [B]
    seen, seen_noise = see(patches, mask, sees), see(noise, mask, sees)
    output = denoiser.predict(seen + sigma[:, None, None] * seen_noise, sigma, labels, mask)
    if sees == "all":
        seen, seen_noise = gather(seen, mask.visible), gather(seen_noise, mask.visible)
    target = prediction.target(seen, seen_noise, sigma)  # [B, V, P]
    error = (output.visible - target).square().mean(dim=(1, 2))  # [B]
    b = prediction.b(sigma)
    per_image = output_weight(weighting, sigma, b, gamma) * error
    return Loss(per_image.mean(), per_image, (b.square() * error).detach())


def output_weight(weighting: str, sigma: Tensor, b: Tensor, gamma: float) -> Tensor:
    """The weight [B] of the squared error of F: w(σ)·b², where b = ∂x0/∂F."""
    match weighting:
        case "output":
            return torch.ones_like(sigma)
        case "x0":
            return b.square()
        case "min-snr":
            return sigma.pow(-2).clamp(max=gamma) * b.square()
    raise ValueError(f"weighting '{weighting}' is none of output, x0, min-snr")
