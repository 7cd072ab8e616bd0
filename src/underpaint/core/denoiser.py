"""The denoiser: from noisy patches to the expected clean ones.

    denoise(x, sigma) = a x + b F(c_in x, c_noise),     x = x0 + sigma n

A network, the noise schedule it was trained on (`schedules`) and what its output stands for
(`preconditioning`) make one. Samplers, metrics, attacks, editing and exports know nothing else.
"""

from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from underpaint.core.masks import Mask
from underpaint.core.preconditioning import Preconditioning, spread
from underpaint.core.schedules import Process

Level = float | Tensor  # sigma: of all images, or of each [B]


class Prediction(NamedTuple):
    """What a backbone returns: F at the visible patches and, if it has them, the hidden ones."""

    visible: Tensor  # [B, V, P]
    hidden: Tensor | None = None  # [B, N − V, P]


def autocast(device: torch.device | str, bf16: bool) -> torch.autocast:
    """bf16 autocast on a device of this type where `bf16` is asked for, else none.

    Two places enter it: a training step around the loss, and `Denoiser.predict` elsewhere.
    """
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16)


class Denoiser(nn.Module):
    """A backbone, the noise it was trained on and what it predicts: x = x0 + sigma n → x0.

    All but the backbone is computed in float32 at least, also under autocast; with `bf16` set the
    backbone runs under bf16 autocast wherever it is called. `x` [B, V, P] are the patches that the
    network sees. `sigma` is a number, or [B]; `mask` None is the whole image; `labels` [B] int64,
    −1 for none, or None for a network without labels.
    """

    def __init__(self, backbone: nn.Module, process: Process, prediction: Preconditioning) -> None:
        super().__init__()
        self.backbone = backbone
        self.process = process
        self.prediction = prediction
        self.bf16 = False
        # what the sides and corners of a crop mask are multiples of, in patches
        self.stride = int(getattr(backbone, "stride", 1))
        # patches a side of the squares that masks come in
        self.unit = int(getattr(backbone, "unit", 1))

    def predict(
        self,
        x: Tensor,
        sigma: Level,
        labels: Tensor | None,
        mask: Mask | None,
        condition: Tensor | None = None,
    ) -> Prediction:
        """The backbone's raw output F; `condition` [B, D] of augmented images, if there are any."""
        x, sigma = _at_least_float32(x), _levels(sigma, x)
        c_in, c_noise = self.process.c_in(sigma), self.process.c_noise(sigma)
        mask = Mask(self.backbone.grid) if mask is None else mask  # type: ignore[arg-type]
        augmented = {} if condition is None else {"condition": condition}
        # without bf16 of its own: under the caller's autocast, if there is any
        with autocast(x.device, True) if self.bf16 else nullcontext():
            F = self.backbone(spread(c_in, x) * x, c_noise, labels, mask, **augmented)
        hidden = None if F.hidden is None else F.hidden.to(x.dtype)
        return Prediction(F.visible.to(x.dtype), hidden)

    def denoise(
        self, x: Tensor, sigma: Level, labels: Tensor | None = None, mask: Mask | None = None
    ) -> Tensor:
        """The expected x0 at the visible patches, [B, V, P]."""
        F = self.predict(x, sigma, labels, mask).visible
        return self.prediction.x0(_at_least_float32(x), F, _levels(sigma, x))

    def eps(
        self, x: Tensor, sigma: Level, labels: Tensor | None = None, mask: Mask | None = None
    ) -> Tensor:
        """The expected noise at the visible patches, [B, V, P]."""
        F = self.predict(x, sigma, labels, mask).visible
        return self.prediction.eps(_at_least_float32(x), F, _levels(sigma, x))


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _levels(sigma: Level, x: Tensor) -> Tensor:
    """sigma as [B], beside x and in its precision, float32 at least."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    sigma = torch.as_tensor(sigma, dtype=dtype, device=x.device)
    return sigma.expand(x.shape[0])
