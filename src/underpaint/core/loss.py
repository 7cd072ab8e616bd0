"""The loss: denoising score matching on the visible patches alone.

    loss = E_{x0, mask, t, n}  w(σ) · mean over visible patches ‖D(x0^ + σ n^, σ) − x0^‖²

with ^ the restriction to visible patches and σ = sigma_t/alpha_t (MaskDM, Lei et al. 2023, arXiv
2306.11363). With nothing hidden it is the ordinary diffusion loss. D = a x + b F and F's target F*
have closed forms, so the error is taken on the network's output, where nothing cancels:

    w(σ) ‖D − x0‖² = w(σ) b(σ)² ‖F − F*‖²

with the weights w of `loss_weighting`. A network with a decoder also predicts the hidden patches.
MaskDiT (Zheng et al. 2024, arXiv 2306.09305) asks it for the hidden *noisy* patches x, each with
its own mean and deviation taken away, which gives the encoder a reason to know the whole image:

    hidden loss = mean over hidden patches ‖D(x, σ) − (x − mean(x))/√(var(x) + 1e-6)‖²

It needs the pixels that the masks hide. Nothing else ever does: hidden patches are left out before
noise is added.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from underpaint.core.denoiser import Denoiser, Prediction
from underpaint.core.loss_weighting import Uncertainty, output_weight
from underpaint.core.masks import Mask


class Loss(NamedTuple):
    """What one batch gives."""

    mean: Tensor  # scalar, to be minimised
    per_image: Tensor  # [B] weighted
    x0_mse: Tensor  # [B] unweighted mean squared error of x0 over the visible numbers


class DenoisingLoss(nn.Module):
    """What training minimises, as one call, which is what DistributedDataParallel wraps.

    `weighting` and `gamma` as in `loss_weighting.output_weight`; `hidden_weight`: of the hidden
    loss; `learned`: divide by the size of the error at each noise level, learned in training.
    In float32 also under autocast, but for the network.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        weighting: str = "output",
        gamma: float = 5.0,
        hidden_weight: float = 0.0,
        learned: bool = False,
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.weighting, self.gamma, self.hidden_weight = weighting, gamma, hidden_weight
        self.uncertainty = Uncertainty() if learned else None

    def forward(
        self,
        patches: Tensor,
        labels: Tensor | None,
        mask: Mask,
        t: Tensor,
        noise: Tensor,
        condition: Tensor | None = None,
        hidden: Tensor | None = None,
        hidden_noise: Tensor | None = None,
    ) -> Loss:
        """The loss of clean visible `patches` [B, V, P] noised by `noise` at times `t` [B].

        `condition` [B, D] says how the images were augmented. `hidden` and `hidden_noise`
        [B, N − V, P] are the hidden patches and their noise, which the hidden loss alone looks at.
        `mask.weights`, where there are some, multiply the errors of single patches. With learned
        weights `per_image` is the error before them.
        """
        sigma = self.denoiser.process.sigma(t).to(patches.dtype)  # [B]
        x = patches + sigma[:, None, None] * noise
        F = self.denoiser.predict(x, sigma, labels, mask, condition)
        squares = (F.visible - self.denoiser.prediction.target(patches, noise, sigma)).square()
        error = squares.mean(dim=(1, 2))  # [B]
        b = self.denoiser.prediction.b(sigma)
        x0_mse = (b.square() * error).detach()
        if mask.weights is not None:
            error = (mask.weights * squares.mean(dim=2)).mean(dim=1)
        per_image = output_weight(self.weighting, sigma, b, self.gamma) * error
        if self.hidden_weight and hidden is not None and hidden_noise is not None:
            of_hidden = self.hidden_loss(F, hidden + sigma[:, None, None] * hidden_noise, sigma)
            per_image = per_image + self.hidden_weight * of_hidden
        mean = per_image.mean()
        if self.uncertainty is not None:
            mean = self.uncertainty(per_image, sigma).mean()
        return Loss(mean, per_image, x0_mse)

    def hidden_loss(self, F: Prediction, x: Tensor, sigma: Tensor) -> Tensor:
        """MaskDiT's loss [B] of the noisy hidden patches `x` [B, N − V, P] at levels sigma [B].

        The mean over hidden patches and their numbers, unweighted. Zero where nothing is hidden.
        """
        if F.hidden is None:
            return torch.zeros_like(sigma)
        variance, mean = torch.var_mean(x, dim=2, keepdim=True)  # unbiased
        target = (x - mean) * torch.rsqrt(variance + 1e-6)
        x0 = self.denoiser.prediction.x0(x, F.hidden, sigma)
        return (x0 - target).square().mean(dim=(1, 2))
