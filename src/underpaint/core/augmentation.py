"""Augmentation that a network is given as a condition, so that it does not leak into samples.

Each change below is made to an image with probability p, independently, and its strength goes to
the network as a condition vector; the zero vector says "nothing was changed" and is what sampling
gives (Karras et al. 2020, arXiv 2006.06676; for diffusion 2022, arXiv 2206.00364; strengths are
ours). It is learned late where much noise leaves a change open, as which side is up: a network of a
short run draws turned images as often as it was shown them.

    kind         change                                            condition
    flip         left ↔ right, half of the times                   1
    turn         0, 1, 2 or 3 quarter turns (not square: 0 or 2)   cos − 1, sin of the angle
    shift        whole pixels, up to 1/8 of each side              share of the largest shift, ×2
    scale        by 2^s, s normal of deviation 0.2, |s| ≤ 0.5      s/0.2
    brightness   + b, b normal of deviation 0.2                    b/0.2
    contrast     × 2^c about grey, c normal of deviation 0.5       c/0.5
    saturation   × 2^s about the mean of the colours, deviation 1  s

What shift and scale leave empty repeats the image mirrored at its edge. Colours may leave [−1, 1]
and are not cut, which keeps the change linear. Of images with transparency colours are changed as
if they were not premultiplied, and alpha is not: of a pixel of transparency 1 − α, b becomes α b,
and grey lies at α − 1.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

CONDITION = 9
ALPHA = 4  # channels of images with transparency
SHIFT = 1 / 8  # of a side
SCALE, BRIGHTNESS, CONTRAST, SATURATION = 0.2, 0.2, 0.5, 1.0  # deviations
_DRAWS = 19  # uniform numbers an image: 7 that choose a kind, 12 that say how


class Changes(NamedTuple):
    """What is done to each image of a batch; zeros change nothing."""

    flip: NDArray[np.bool_]  # [B]
    turns: NDArray[np.int64]  # [B] quarter turns, anticlockwise
    shift: NDArray[np.float64]  # [B, 2] down, right, as shares of the largest shift
    scale: NDArray[np.float64]  # [B] log2
    brightness: NDArray[np.float64]  # [B]
    contrast: NDArray[np.float64]  # [B] log2
    saturation: NDArray[np.float64]  # [B] log2


def draw(rng: np.random.Generator, batch: int, p: float, *, square: bool, colour: bool) -> Changes:
    """Changes of `batch` images, each kind with probability `p`.

    `square`: whether quarter turns keep the shape; `colour`: whether there is a saturation. The
    i-th image uses the i-th draws of `rng`, so it does not depend on how many follow.
    """
    draws = rng.random((batch, _DRAWS))
    on = draws[:, :7] < p  # [B, 7]
    u = draws[:, 7:]
    turns = np.floor(u[:, 1] * 4).astype(np.int64)
    if not square:
        turns = turns // 2 * 2
    return Changes(
        flip=on[:, 0] & (u[:, 0] < 0.5),
        turns=turns * on[:, 1],
        shift=(2 * u[:, 2:4] - 1) * on[:, 2, None],
        scale=np.clip(SCALE * _normal(u[:, 4:6]), -0.5, 0.5) * on[:, 3],
        brightness=BRIGHTNESS * _normal(u[:, 6:8]) * on[:, 4],
        contrast=CONTRAST * _normal(u[:, 8:10]) * on[:, 5],
        saturation=SATURATION * _normal(u[:, 10:12]) * on[:, 6] * colour,
    )


def condition(changes: Changes) -> Tensor:
    """The condition that describes `changes`: float32 [B, CONDITION], zero where there is none."""
    # a table, since cos and sin of whole quarters are not exactly 0 and ±1 in floating point
    cos, sin = np.array([0, -1, -2, -1]), np.array([0, 1, 0, -1])
    columns = [
        changes.flip,
        cos[changes.turns],
        sin[changes.turns],
        2 * changes.shift[:, 0],
        2 * changes.shift[:, 1],
        changes.scale / SCALE,
        changes.brightness / BRIGHTNESS,
        changes.contrast / CONTRAST,
        changes.saturation / SATURATION,
    ]
    return torch.from_numpy(np.stack([np.asarray(c, np.float32) for c in columns], axis=1))


def apply(images: Tensor, changes: Changes) -> Tensor:
    """Images [B, C, H, W] float32 in [−1, 1], changed; what changes nothing is left bit for bit."""
    out = images.clone()
    for i in np.flatnonzero(changes.flip):
        out[i] = out[i].flip(-1)
    for i in np.flatnonzero(changes.turns):
        out[i] = out[i].rot90(int(changes.turns[i]), (-2, -1))
    moved = np.flatnonzero(changes.shift.any(axis=1) | (changes.scale != 0))
    if len(moved):
        out[moved] = _moved(out[moved], changes.shift[moved], changes.scale[moved])
    colours = out[:, :3]  # a view; [B, 1 or 3, H, W]
    alpha = (out[:, 3:] + 1) / 2 if out.shape[1] == ALPHA else torch.ones(())  # [B, 1, H, W]
    if changes.contrast.any():
        _scale(colours, alpha - 1, changes.contrast)
    if changes.saturation.any():
        _scale(colours, colours.mean(dim=1, keepdim=True), changes.saturation)
    if changes.brightness.any():
        colours += _column(changes.brightness) * alpha
    return out


def _scale(colours: Tensor, middle: Tensor, strength: NDArray[np.float64]) -> None:
    """Colours [B, C, H, W] times 2^strength about their middle, in place."""
    factor = _column(2.0**strength)
    colours.copy_(torch.where(factor == 1, colours, middle + factor * (colours - middle)))


def _moved(images: Tensor, shift: NDArray[np.float64], scale: NDArray[np.float64]) -> Tensor:
    """Scaled about the middle, then shifted by whole pixels, with mirrored edges (bilinear)."""
    H, W = images.shape[-2:]
    pixels = np.round(shift * SHIFT * np.array([H, W]))  # [B, 2]
    still = torch.from_numpy(scale == 0)
    out = images.clone()
    for i in torch.nonzero(still).flatten().tolist():
        down, right = (int(v) for v in pixels[i])
        rows = _mirrored(torch.arange(H) - down, H)
        columns = _mirrored(torch.arange(W) - right, W)
        out[i] = images[i][:, rows][:, :, columns]
    if still.all():
        return out
    # grid_sample asks where each pixel comes from, in units of half a side
    zoom = torch.from_numpy(2.0**-scale).float()
    theta = torch.zeros(len(images), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = zoom
    theta[:, 0, 2] = -zoom * torch.from_numpy(pixels[:, 1] * 2 / W).float()
    theta[:, 1, 2] = -zoom * torch.from_numpy(pixels[:, 0] * 2 / H).float()
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    sampled = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    return torch.where(still[:, None, None, None], out, sampled)


def _mirrored(index: Tensor, length: int) -> Tensor:
    """Indices outside 0 … length − 1 as in a mirror at the image's border (d c b a | a b c d)."""
    index = index % (2 * length)
    return torch.where(index < length, index, 2 * length - 1 - index)


def _normal(u: NDArray[np.float64]) -> NDArray[np.float64]:
    """A standard normal number from each row of two uniform ones [B, 2] (Box and Muller)."""
    return np.sqrt(-2 * np.log1p(-u[:, 0])) * np.cos(2 * math.pi * u[:, 1])


def _column(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values).float()[:, None, None, None]
