"""A trial: a small convolutional head draws each patch from its noisy pixels and its token.

Networks `dit-detail` and `hourglass-detail`: F = linear(t) + detail(patch, t), t the last block's
token after its modulated norm. `detail` is a U of convolutions inside the patch, 3×3, of
`channels` at its full side and twice as many at each halving, down to 2×2, where the token comes
in; its last layer starts at zero. After the patch detailer head of DiP (arXiv 2511.18822), whose
patches are of 16×16. Nothing passes from patch to patch, so that masks mean what they meant.

They are no part of underpaint, since they did not pay: see the README beside this file.
"""

import math

import torch
from torch import Tensor, nn

from underpaint.backbones.base import Prediction, register
from underpaint.backbones.dit import DiT
from underpaint.backbones.hourglass import Hourglass
from underpaint.core.masks import Mask


def convolution(inputs: int, outputs: int) -> nn.Sequential:
    """3×3, of the same side, then SiLU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.SiLU())


class Detail(nn.Module):
    """Noisy patches [B, V, P] and tokens [B, V, width] → what is added to F [B, V, P]."""

    def __init__(self, patch_dim: int, width: int, patch: int, channels: int) -> None:
        super().__init__()
        self.patch, planes = patch, patch_dim // patch**2
        widths = [channels << level for level in range(int(math.log2(patch)))]  # down to 2×2
        self.down = nn.ModuleList(
            convolution(i, o) for i, o in zip([planes, *widths], widths, strict=False)
        )
        self.token = nn.Linear(width, widths[-1])
        self.up = nn.ModuleList(
            convolution(i + o, o) for i, o in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.out = nn.Conv2d(channels, planes, 1, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, patches: Tensor, tokens: Tensor) -> Tensor:
        """As the class says."""
        x = patches.flatten(0, 1).unflatten(1, (-1, self.patch, self.patch))  # [B·V, C, p, p]
        skips = []
        for level, layer in enumerate(self.down):
            x = layer(x if level == 0 else nn.functional.avg_pool2d(x, 2))
            skips.append(x)
        x = skips.pop() + self.token(tokens).flatten(0, 1)[:, :, None, None]
        for layer in self.up:
            x = layer(torch.cat([nn.functional.interpolate(x, scale_factor=2), skips.pop()], 1))
        return self.out(x).flatten(1).unflatten(0, patches.shape[:2])


class Head(nn.Module):
    """Noisy patches [B, V, P] and tokens [B, V, width] → F [B, V, P]."""

    def __init__(self, linear: nn.Linear, patch: int, channels: int) -> None:
        super().__init__()
        self.linear = linear
        self.detail = Detail(linear.out_features, linear.in_features, patch, channels)

    def forward(self, patches: Tensor, tokens: Tensor) -> Tensor:
        """As the class says."""
        return self.linear(tokens) + self.detail(patches, tokens)


def detailed(kind: type[DiT] | type[Hourglass], name: str) -> None:
    """Register `kind` with this head as the network `name`."""

    class Detailed(kind):  # type: ignore[misc, valid-type]
        """The network's tokens, read by `Head`."""

        def __init__(
            self,
            grid: tuple[int, int],
            patch_dim: int,
            classes: int = 0,
            *,
            width: int,
            depth: int,
            heads: int,
            patch: int,
            channels: int = 8,
        ) -> None:
            super().__init__(grid, patch_dim, classes, width=width, depth=depth, heads=heads)
            linear = nn.Linear(width, patch_dim)  # starts at zero, as the network's
            nn.init.zeros_(linear.weight), nn.init.zeros_(linear.bias)
            self.conv_out = Head(linear, patch, channels)  # moved by AdamW, as its name says
            self.head = nn.Identity()

        def forward(
            self, patches: Tensor, c_noise: Tensor, labels: Tensor | None, mask: Mask
        ) -> Prediction:
            """As the network's."""
            tokens = super().forward(patches, c_noise, labels, mask).visible
            return Prediction(self.conv_out(patches, tokens))

    register(name, "a trial of studies/ladder")(Detailed)


detailed(DiT, "dit-detail")
detailed(Hourglass, "hourglass-detail")
