"""Seconds of a training step that was never run, from a few that were.

    seconds = Σ_i c_i · work_i,   c ≥ 0

with the work of a step in six currencies, each of which something of a machine is slow at:

    tensors       trainable tensors: calls and launches, which cost the same for one image as for 64
    parameters    the optimiser, the average and the clip pass over each, whatever the batch
    linear        FLOPs of linear layers and convolutions, forward and backward (3 · forward)
    attention     FLOPs that grow with the square of the patches: smaller matrices, and a softmax
    activations   bytes kept for the backward pass: norms, GELUs and sums move them, and do no FLOPs
    values        numbers in the images, hidden ones too: they are decoded, encoded, and given noise

Throughput depends on tokens and width through the ratio of these: a narrow network does few FLOPs
for each byte. The coefficients are fitted to measured steps by least squares of the relative error
with c ≥ 0 (Lawson and Hanson 1974), so that none makes up for another with a negative sign, and a
larger step is never predicted to be faster.

Where there is no machine to measure, `of_device` takes them from its data sheet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize

from underpaint.backbones import Backbone
from underpaint.planning.devices import Device

__all__ = ["Pace", "Work", "fit", "of_device", "work"]

# Bytes a parameter that a step moves beside the network: AdamW reads four tensors of float32 and
# writes three, the average reads two and writes one, the clip reads the gradient and writes it.
MOVED = 12 * 4
# What is kept for the backward pass is written once and read about twice, and so is its gradient.
TRAFFIC = 6


class Work(NamedTuple):
    """What one step is made of."""

    tensors: float
    parameters: float
    linear: float  # FLOPs
    attention: float  # FLOPs
    activations: float  # bytes
    values: float


class Pace(NamedTuple):
    """Seconds for each unit of work."""

    coefficients: tuple[float, ...]

    def seconds(self, of: Work) -> float:
        """Seconds of a step."""
        return float(np.dot(self.coefficients, of))


def work(
    backbone: Backbone, visible: int, batch: int, bytes_per: int = 4, microbatch: int = 0
) -> Work:
    """The work of a step on `batch` images of `visible` patches that are computed on.

    `microbatch`: images of a forward pass; 0: all. `bytes_per`: of a number that is kept.
    """
    attention = backbone.attention_flops(visible)
    parameters = [p.numel() for p in backbone.parameters()]
    patches = backbone.grid[0] * backbone.grid[1]
    passes = -(-batch // microbatch) if microbatch else 1
    return Work(
        tensors=passes * len(parameters),
        parameters=sum(parameters),
        linear=3.0 * batch * (backbone.flops(visible) - attention),
        attention=3.0 * batch * attention,
        activations=batch * backbone.activation_bytes(visible, bytes_per=bytes_per),
        values=batch * patches * backbone.patch_dim,
    )


def fit(works: Sequence[Work], seconds: Sequence[float]) -> Pace:
    """The pace of the machine on which steps of these works took so many seconds.

    Fewer steps than currencies leave some of the coefficients zero.
    """
    if not works or len(works) != len(seconds) or min(seconds) <= 0:
        raise ValueError("give as many positive seconds as works, and one at least")
    matrix = np.array(works, dtype=float)
    scale = matrix.max(0)
    scale[scale == 0] = 1.0
    relative = matrix / scale / np.array(seconds)[:, None]
    coefficients, _ = optimize.nnls(relative, np.ones(len(works)))
    return Pace(tuple(float(c) for c in coefficients / scale))


def of_device(device: Device) -> Pace:
    """The pace that a data sheet promises, at the utilisation that is assumed."""
    a_flop = 1 / (device.flop_per_s * device.utilisation)
    return Pace(
        (
            device.seconds_a_tensor,
            MOVED / device.bytes_per_s,
            a_flop,
            a_flop,
            TRAFFIC / device.bytes_per_s,
            device.seconds_a_value,
        )
    )
