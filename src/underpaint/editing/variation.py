"""Whole images: `vary`, and `interpolate` between seeds."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from underpaint.core import samplers, spaces
from underpaint.core.samplers import Draw, SeededNoise
from underpaint.editing.drawing import Drawing, Pictures, checked
from underpaint.errors import UserError


def vary(drawing: Drawing, images: Pictures, strength: float) -> Pictures:
    """Noise images to a level, and draw them from there: see `Model.vary`."""
    images = checked(drawing, images)
    if not 0 < strength <= 1:
        raise UserError(
            f"strength {strength:g}: give a number above 0 (the image as it is), up to 1 "
            "(nothing of it is left)"
        )
    levels = _from(drawing.sigmas, strength)
    step = drawing.counter(len(levels) - 1)
    found = np.empty_like(images)
    for part, source, first in drawing.parts():
        chosen, x = slice(part.start, part.stop), first * float(levels[0])
        if strength < 1:
            x = x + _encoded(drawing, spaces.from_uint8(images[chosen]).to(drawing.device))
        found[chosen] = _sampled(drawing, part, x, levels, source.step, step)
    return found


def interpolate(drawing: Drawing, seed_a: int, seed_b: int) -> Pictures:
    """Images between those of two seeds, whatever `drawing.seeds`: see `Model.interpolate`."""
    if drawing.sampling.sampler in samplers.NOISY:
        raise UserError(
            f"sampler {drawing.sampling.sampler} adds noise of its own at every step, between "
            "which nothing can be interpolated; use euler, heun or dpm++"
        )
    for seed in (seed_a, seed_b):
        if not 0 <= seed < 2**63:
            raise UserError(f"seed {seed}: give a whole number from 0 to 2^63 - 1")
    n = len(drawing.seeds)
    if n < 2:
        raise UserError(f"{n} images to interpolate two seeds: both ends alone are 2; give more")
    shape = (math.prod(drawing.space.grid), drawing.space.patch_dim)
    a, b = (SeededNoise([seed]).initial(shape)[0] for seed in (seed_a, seed_b))
    noise = torch.stack([slerp(a, b, i / (n - 1)) for i in range(n)])
    step = drawing.counter(len(drawing.sigmas) - 1)
    found = np.empty((n, *drawing.space.size, drawing.space.channels), np.uint8)
    for part, source, _ in drawing.parts():
        chosen = slice(part.start, part.stop)
        x = noise[chosen].to(drawing.device) * float(drawing.sigmas[0])
        found[chosen] = _sampled(drawing, part, x, drawing.sigmas, source.step, step)
    return found


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """From a (t = 0) to b (t = 1) along the sphere; the norm goes evenly from a's to b's.

    Where the noise of a straight line would be too small: by √½ in its middle.
    """
    if t in (0, 1):
        return b if t else a
    norms = a.norm(), b.norm()
    u, v = a / norms[0], b / norms[1]
    angle = torch.acos((u * v).sum().clamp(-1, 1))
    if angle < 1e-4:  # the line and the sphere are the same there
        found = (1 - t) * u + t * v
    else:
        found = (torch.sin((1 - t) * angle) * u + torch.sin(t * angle) * v) / torch.sin(angle)
    return found / found.norm() * ((1 - t) * norms[0] + t * norms[1])


def _from(sigmas: Tensor, strength: float) -> Tensor:
    """The levels from the one at which the last `strength` of the steps begin.

    A level between two of the grid is found between their logarithms, below the last one linearly.
    """
    place = (1 - strength) * (len(sigmas) - 1)
    i = min(int(place), len(sigmas) - 2)
    rest, (high, low) = place - i, sigmas[i : i + 2].tolist()
    start = high ** (1 - rest) * low**rest if low > 0 else high * (1 - rest)
    return torch.cat([sigmas.new_tensor([start]), sigmas[i + 1 :]])


def _sampled(
    drawing: Drawing, part: range, x: Tensor, levels: Tensor, draw: Draw, step: Callable[[], None]
) -> Pictures:
    """x [B, N, P] at the first level, drawn to the end."""
    x0 = samplers.sample(
        drawing.denoise(part),
        x,
        levels,
        drawing.sampling,
        noise=draw,
        callback=lambda i, x, x0: step(),
    )
    return spaces.to_uint8(drawing.images(x0)).numpy()


def _encoded(drawing: Drawing, planes: Tensor) -> Tensor:
    """Images [B, C, H, W] in [-1, 1] → patches [B, N, P], through the autoencoder if any."""
    return drawing.space.encode(planes if drawing.vae is None else drawing.vae.latents(planes))
