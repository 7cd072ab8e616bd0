"""The model of an exported folder of diffusers: noisy patches → clean ones, and patches → images.

This module is exported as one file with all that it uses (`bundle`), and with `NETWORK`, the class
of the network. It is not run from here.
"""

from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from underpaint.core import preconditioning, samplers, schedules, spaces
from underpaint.core.denoiser import Denoiser

NETWORK: Any  # the export writes which


class ImageDenoiser(ModelMixin, ConfigMixin):
    """A network, its noise schedule and the space that it works in.

    `network`: arguments of the network's class; `noise`, `space`: those of `schedules.build` and
    `spaces.build`; `prediction`: what the network's output stands for.
    """

    @register_to_config
    def __init__(
        self,
        network: dict[str, Any],
        noise: dict[str, Any],
        prediction: str,
        space: dict[str, Any],
    ) -> None:
        super().__init__()
        given = {name: tuple(v) if isinstance(v, list) else v for name, v in network.items()}
        self.space = spaces.build(**space)
        process = schedules.build(**noise)
        predicted = preconditioning.build(prediction, noise["process"], noise["sigma_data"])
        self.denoiser = Denoiser(NETWORK(**given), process, predicted)  # noqa: F821

    @property
    def shape(self) -> tuple[int, int]:
        """Patches an image, and numbers a patch."""
        return self.space.grid[0] * self.space.grid[1], self.space.patch_dim

    @property
    def classes(self) -> int:
        """How many labels there are; 0: none."""
        return int(self.config["network"]["classes"])

    def levels(self, steps: int, grid: str) -> Tensor:
        """The noise levels of `steps` sampling steps, falling, the last 0: [steps + 1] float64."""
        return samplers.sigmas(self.denoiser.process, steps, grid)

    def forward(self, x: Tensor, sigma: float | Tensor, labels: Tensor | None = None) -> Tensor:
        """Patches x = x0 + sigma·n [B, N, P], labels [B] (-1: none) → the expected x0 [B, N, P]."""
        # all but the network's multiplications is in float32, also with weights of half precision
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.denoiser.denoise(x, sigma, labels)

    def patches(self, planes: Tensor) -> Tensor:
        """Planes [B, c, h, w] of numbers, as they are cut into patches → patches [B, N, P]."""
        if planes.shape[1:] != self.space.cut:
            given, wanted = ("×".join(map(str, s)) for s in (planes.shape[1:], self.space.cut))
            raise ValueError(f"latents of {given} per image: this model takes {wanted}")
        return spaces.to_patches(planes, self.space.patch)

    def planes(self, patches: Tensor) -> Tensor:
        """Patches [B, N, P] → images (or latents) [B, C, H, W]."""
        return self.space.decode(patches)
