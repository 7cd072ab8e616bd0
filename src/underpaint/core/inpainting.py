"""Inpainting by replacement: a sampler goes down from noise, and what is known is put in.

Before each step from level s to r < s the known part is the truth at that level,

    x := mix(x, x0 + s n)        n drawn anew at each step

(the replacement method, Song et al. 2021, arXiv 2011.13456). With one n for all steps the model
would be shown the same blurred evidence again and again. What it has drawn so far still hardly fits
to what is put in; so each step is taken `resample` times, with noise in between that brings x back
to where the step began (RePaint, Lugmayr et al. 2022, arXiv 2201.09865):

    x ← x + √(s² − r²) n

Steps below the level FROM or above TO are taken once: there nothing, or everything, is still open.
A jump back is the end of what a multistep sampler remembers, so that only one-step samplers are
taken.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from underpaint.core import samplers
from underpaint.core.samplers import CLIPS, Denoise, Draw, Sampling

ONE_STEP = ("euler", "heun", "ancestral")
FROM, TO = 0.1, 10.0  # levels between which it is decided what the image shows

Mix = Callable[[Tensor, Tensor], Tensor]  # x, other [B, ...] → x with the known part of other


class Step(NamedTuple):
    """From level s to r; `again`: then back to s."""

    s: float
    r: float
    again: bool


def steps(sigmas: Tensor, resample: int) -> list[Step]:
    """Every step that is taken: those between FROM and TO `resample` times.

    Raises ValueError for fewer than one time.
    """
    if resample < 1:
        raise ValueError(f"resample {resample}: give at least 1 (each step is taken once)")
    found = []
    for s, r in pairwise(sigmas.tolist()):
        times = resample if FROM < s < TO else 1
        found += [Step(s, r, i < times - 1) for i in range(times)]
    return found


def check(sampling: Sampling) -> None:
    """Raise ValueError for a sampler that takes no single steps."""
    sampling.check()
    if sampling.sampler not in ONE_STEP:
        raise ValueError(
            f"sampler '{sampling.sampler}' cannot go back and take a step again; use one of "
            f"{', '.join(ONE_STEP)}"
        )


@torch.no_grad()
def repaint(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    sampling: Sampling,
    truth: Tensor,
    mix: Mix,
    *,
    noise: Draw,
    resample: int = 1,
    callback: Callable[[], None] | None = None,
) -> Tensor:
    """Bring x [B, ...] from level sigmas[0] down to 0, given the known part of `truth` [B, ...].

    `mix(x, other)` puts the known part of `other` into x; nothing else of `truth` is used. x and
    `noise` as in `samplers.sample`. Returns where the sampler ends, in which the known part is the
    model's guess of it: `mix(end, truth)` is the image. `callback` is called after each of `steps`.
    Raises ValueError as `check` and `steps` do.
    """
    check(sampling)
    clip = CLIPS[sampling.clip]

    def D(x: Tensor, sigma: float) -> Tensor:  # noqa: N802
        return clip(denoise(x, sigma).to(x.dtype))

    def z() -> Tensor:
        return noise().to(x)

    for s, r, again in steps(sigmas, resample):
        x = mix(x, truth + s * z())
        match sampling.sampler:
            case "heun":
                x, _ = samplers.heun_step(D, x, s, r)
            case "ancestral":
                x, _ = samplers.ancestral_step(D, x, s, r, z, sampling.eta)
            case _:
                x0 = D(x, s)
                x = x0 + (r / s) * (x - x0)
        if again:
            x = x + math.sqrt(s**2 - r**2) * z()
        if callback:
            callback()
    return x
