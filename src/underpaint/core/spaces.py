"""Spaces: how an image becomes patches at positions, and back.

A space maps images [B, C, H, W] in [-1, 1] to `patches [B, N, P]` on a grid of h × w patches,
N = h·w, numbered row by row, and is exactly invertible:

    patches[:, i·w + j] = images[:, :, i·p : (i+1)·p, j·p : (j+1)·p],   P = C·p²

with the numbers of a patch in the order channel, row, column (that of a convolution's kernel).

`Wavelets` cuts Haar coefficients instead of pixels. A level makes four planes of half the side out
of each plane, from its squares (a b / c d):

    LL = (a + b + c + d)/4    LH = (a + b − c − d)/4
    HL = (a − b + c − d)/4    HH = (a − b − c + d)/4

The orthonormal transform divides by 2; by 4, all bands reach from −1 to 1 exactly, so that clipping
x0 is right for each of them. Squared errors in pixels are 4^levels times those of the coefficients.

`Latents` cuts an autoencoder's latents [B, c, H/f, W/f] (`underpaint.vae`) as if they were images.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from underpaint.core import alpha

KINDS = ("pixels", "wavelets", "latents")


def to_patches(planes: Tensor, patch: int) -> Tensor:
    """Planes [B, C, H, W] → patches [B, N, C·p²]."""
    return F.pixel_unshuffle(planes, patch).flatten(2).transpose(1, 2).contiguous()


def to_planes(patches: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """The inverse of `to_patches`, for a grid of h × w patches."""
    return F.pixel_shuffle(patches.transpose(1, 2).unflatten(2, grid), patch).contiguous()


class Space:
    """Where the diffusion runs: planes of numbers, cut into square patches of p × p."""

    def __init__(
        self,
        size: tuple[int, int],
        channels: int,
        patch: int,
        planes: tuple[int, int, int],
        cut: tuple[int, int, int] | None = None,
    ) -> None:
        """`planes`: shape of what is encoded (images, latents); `cut`: of what is cut, if other."""
        self.size, self.channels = size, channels  # of the images: H, W in pixels
        self.patch, self.planes, self.cut = patch, planes, cut or planes
        self.grid = (self.cut[1] // patch, self.cut[2] // patch)  # h, w in patches
        self.patch_dim = self.cut[0] * patch**2  # P

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] in [-1, 1] → patches [B, N, P]."""
        return to_patches(images.reshape(-1, *self.cut), self.patch)

    def decode(self, patches: Tensor) -> Tensor:
        """Patches [B, N, P] → images [B, C, H, W]."""
        N = self.grid[0] * self.grid[1]
        return to_planes(patches.reshape(-1, N, self.patch_dim), self.grid, self.patch)


class Pixels(Space):
    """Square patches of p × p pixels as they are."""

    def __init__(self, size: tuple[int, int], channels: int, patch: int) -> None:
        """Raises ValueError if `patch` does not divide the height and the width of `size`."""
        if patch < 1 or size[0] % patch or size[1] % patch:
            raise ValueError(
                f"size {size[0]}×{size[1]} is not divisible by patch {patch}; give a patch that "
                f"divides both sides, or another size"
            )
        super().__init__(size, channels, patch, (channels, *size))


class Wavelets(Space):
    """Square patches of p × p Haar coefficients: C·4^levels planes of side / 2^levels.

    A level splits every plane again (a full packet of wavelets), so that all planes have one size.
    Each plane's four follow one another in the order LL, LH, HL, HH.
    """

    def __init__(self, size: tuple[int, int], channels: int, patch: int, levels: int = 1) -> None:
        """Raises ValueError if patch · 2^levels does not divide the height and width of `size`."""
        side = 2**levels if levels > 0 else 0
        unit = patch * side
        if unit < 1 or size[0] % unit or size[1] % unit:
            raise ValueError(
                f"size {size[0]}×{size[1]}: {levels} levels of wavelets with patch {patch} need "
                f"sides divisible by patch · 2^levels = {unit}; give another size, patch or levels"
            )
        coefficients = (channels * side**2, size[0] // side, size[1] // side)
        super().__init__(size, channels, patch, (channels, *size), coefficients)
        self.levels = levels

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] → patches [B, N, P]."""
        x = images
        for _ in range(self.levels):
            x = _four(x[..., ::2, ::2], x[..., ::2, 1::2], x[..., 1::2, ::2], x[..., 1::2, 1::2])
            x = (x / 4).flatten(1, 2)  # [B, 4C, H/2, W/2]
        return super().encode(x)

    def decode(self, patches: Tensor) -> Tensor:
        """Patches [B, N, P] → images [B, C, H, W]."""
        x = super().decode(patches)
        for _ in range(self.levels):
            squares = _four(*x.unflatten(1, (-1, 4)).unbind(2))  # [B, C, 4, h, w]
            rows = squares.unflatten(2, (2, 2)).permute(0, 1, 4, 2, 5, 3)  # [B, C, h, 2, w, 2]
            x = rows.flatten(4, 5).flatten(2, 3)
        return x


def _four(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """The four sums of the Haar transform [B, C, 4, h, w], which are its inverse as well (· 4)."""
    s, t, u, v = a + b, c + d, a - b, c - d
    return torch.stack([s + t, s - t, u + v, u - v], dim=2)


class Latents(Space):
    """Square patches of p × p latents, each of which stands for `factor` × `factor` pixels."""

    def __init__(
        self, size: tuple[int, int], channels: int, patch: int, factor: int, latent_channels: int
    ) -> None:
        """Raises ValueError if patch · factor does not divide the height and width of `size`."""
        unit = patch * factor
        if unit < 1 or size[0] % unit or size[1] % unit:
            raise ValueError(
                f"size {size[0]}×{size[1]}: latents of 1/{factor} with patch {patch} need sides "
                f"divisible by {unit}; give another size or patch"
            )
        latents = (latent_channels, size[0] // factor, size[1] // factor)
        super().__init__(size, channels, patch, latents)


def build(
    kind: str,
    size: tuple[int, int],
    channels: int,
    *,
    patch: int = 4,
    levels: int = 1,
    factor: int = 8,
    latent_channels: int = 4,
) -> Space:
    """The space of this kind for images of `size` (height, width) in pixels.

    Raises ValueError for an unknown kind and for sizes that patches do not divide.
    """
    match kind:
        case "pixels":
            return Pixels(size, channels, patch)
        case "wavelets":
            return Wavelets(size, channels, patch, levels)
        case "latents":
            return Latents(size, channels, patch, factor, latent_channels)
    raise ValueError(f"kind '{kind}' does not exist; use one of {', '.join(KINDS)}")


def from_uint8(images: Tensor | np.ndarray) -> Tensor:
    """Decoded images uint8 [B, H, W, C] → float32 [B, C, H, W] in [-1, 1].

    Of four channels the colours are premultiplied, as in all that is computed (`alpha`).
    """
    if images.shape[-1] == alpha.CHANNELS:
        images = alpha.premultiplied(np.asarray(images))
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(np.require(images, requirements=["C", "W"]))
    planes = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    return planes.div_(127.5).sub_(1)


def levels(values: np.ndarray) -> Tensor:
    """uint8 values of any shape → float32 in [-1, 1], the same as `from_uint8` gives them.

    But for alpha: values are taken as they are.
    """
    return torch.from_numpy(values.astype(np.float32)).div_(127.5).sub_(1)


def to_uint8(images: Tensor) -> Tensor:
    """Images [B, C, H, W] → uint8 [B, H, W, C] on the CPU; the inverse of `from_uint8`.

    What lies outside [-1, 1] is clipped, and a colour at its alpha.
    """
    levels = (images.float() + 1).mul_(127.5).round_().clamp_(0, 255)
    found = levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()
    return torch.from_numpy(alpha.straight(found.numpy()))
