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

A network with a decoder also says something of the hidden patches. MaskDiT (Zheng et al. 2024,
arXiv 2306.09305) asks it for the hidden *noisy* patches x, each with its own mean and deviation
taken away, which gives the encoder a reason to know the whole image:

    hidden loss = mean over hidden patches ‖D(x, σ) − (x − mean(x))/√(var(x) + 1e-6)‖²

It needs the pixels that the masks hide.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from underpaint.core.denoiser import Denoiser, Prediction
from underpaint.core.masks import Mask, gather, see, shown

__all__ = ["Loss", "hidden_loss", "masked_loss", "output_weight", "predict"]


class Loss(NamedTuple):
    """What one batch gives."""

    mean: Tensor  # scalar, to be minimised
    per_image: Tensor  # [B] weighted
    x0_mse: Tensor  # [B] unweighted mean squared error of x0 over the visible numbers


def predict(
    denoiser: Denoiser,
    patches: Tensor,
    labels: Tensor | None,
    mask: Mask,
    *,
    t: Tensor,
    noise: Tensor,
    condition: Tensor | None = None,
) -> Prediction:
    """The network's F for clean `patches` [B, N, P] noised by `noise` [B, N, P] at times `t` [B].

    A network that sees visible patches alone gets them before any noise is added: hidden pixels
    are never touched, whatever they hold. Nor need they exist: `patches` may be the visible ones
    alone, [B, V, P]. `condition` [B, D] says how the images were augmented.
    """
    sees = str(denoiser.backbone.sees)
    sigma = denoiser.process.sigma(t).to(patches.dtype)  # [B]
    x = see(patches, mask, sees) + sigma[:, None, None] * see(noise, mask, sees)
    return denoiser.predict(x, sigma, labels, mask, condition)


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
    output: Prediction | None = None,
) -> Loss:
    """The loss of clean `patches` [B, N, P] noised by `noise` [B, N, P] at times `t` [B].

    In float32 also under autocast. Hidden pixels change nothing, see `predict`; what that gave for
    the same arguments is `output`, if it has been computed. `mask.weights`, where there are some,
    multiply the errors of single patches.
    """
    if output is None:
        output = predict(denoiser, patches, labels, mask, t=t, noise=noise)
    sigma = denoiser.process.sigma(t).to(patches.dtype)  # [B]
    x0, n = shown(patches, mask), shown(noise, mask)  # [B, V, P]
    squares = (output.visible - denoiser.prediction.target(x0, n, sigma)).square()
    error = squares.mean(dim=(1, 2))  # [B]
    b = denoiser.prediction.b(sigma)
    x0_mse = (b.square() * error).detach()
    if mask.weights is not None:
        error = (mask.weights * squares.mean(dim=2)).mean(dim=1)
    per_image = output_weight(weighting, sigma, b, gamma) * error
    return Loss(per_image.mean(), per_image, x0_mse)


def hidden_loss(
    denoiser: Denoiser,
    patches: Tensor,
    mask: Mask,
    output: Prediction,
    *,
    t: Tensor,
    noise: Tensor,
) -> Tensor:
    """MaskDiT's loss [B] of the hidden patches that `output` has; arguments as in `predict`.

    The mean over hidden patches and their numbers, unweighted. Zero where nothing is hidden.
    """
    if output.hidden is None:
        return torch.zeros_like(t, dtype=patches.dtype)
    sigma = denoiser.process.sigma(t).to(patches.dtype)  # [B]
    x = gather(patches, mask.hidden) + sigma[:, None, None] * gather(noise, mask.hidden)
    variance, mean = torch.var_mean(x, dim=2, keepdim=True)  # unbiased
    target = (x - mean) * torch.rsqrt(variance + 1e-6)
    return (denoiser.prediction.x0(x, output.hidden, sigma) - target).square().mean(dim=(1, 2))


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
