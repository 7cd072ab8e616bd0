"""One optimiser step of a differentially private stage: DP-SGD with noise multiplicity.

    S    each of the n training images with probability q = batch / n, by itself
    g_i  mean over K draws (t, noise, mask, mirroring, label drop) of the gradient of image i's loss
    ḡ    (Σ_{i in S} g_i · min(1, C/‖g_i‖) + z·C·N(0, 1)) / batch

(Abadi et al. 2016, arXiv 1607.00133; K draws inside one clipped gradient: Dockhorn et al. 2023,
arXiv 2210.09929.) AdamW and the average see ḡ alone. S may be empty: the step is then noise alone.

What makes it private is that an image adds at most C to the sum, and that S and the noise are
unknown. Those two come straight from the operating system's generator, bytes for each number: no
state of ours could be stored, or guessed as that of a torch.Generator, whose seed is 32 bits on a
CPU. The K draws need not be secret, but what an image adds may not depend on which others are
there: they are seeded by the image's own content and the step. A gradient that is not finite counts
as zero, a rule for each image by itself; nothing else looks at the gradients.

Gradients of single images are `torch.func.vmap` of `grad`, so that any network without statistics
over the batch will do. They are in float32 whatever `train.precision` says: on CPUs torch cannot
vectorise the gradient of a layer norm under bf16 autocast.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from underpaint import config
from underpaint.core.masks import Mask
from underpaint.data import Dataset, Sealed
from underpaint.training.optim import learning_rate
from underpaint.training.seeding import key
from underpaint.training.stages import Level, Plan
from underpaint.training.state import Progress
from underpaint.training.step import Batch, batch_of, training_flops
from underpaint.training.train_state import Learner

__all__ = ["Random", "clipped_sum", "draws", "gaussian", "gradients", "poisson", "private_step"]

Random = Callable[[int], bytes]  # so many random bytes; os.urandom except in tests
MEMORY = 2**30  # bytes that the gradients of single images and their activations may take
BLOCK = 2**16  # normal numbers made at a time
CLOSE = 1e-5  # share of the clip kept free for rounding


def private_step(
    plan: Plan,
    run: config.Run,
    learner: Learner,
    progress: Progress,
    random: Random = os.urandom,
) -> None:
    """One step that costs privacy; the caller has counted it as spent beforehand."""
    stage, own = plan.stage, plan.guarantee
    assert own is not None
    number, level = progress.stage_images // stage.batch, plan.level(progress.stage_images)
    chosen = poisson(plan.order.ids, own.sampling_rate, random)
    tensors = dict(learner.loss.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in tensors.items()}
    count = _at_once(learner, run, plan, level)
    for first in range(0, len(chosen), count):
        part = [draws(plan, run, learner, level, i, number) for i in chosen[first : first + count]]
        for name, value in clipped_sum(gradients(learner, part), own.clip).items():
            total[name] += value
    for name, p in tensors.items():
        noise = torch.from_numpy(gaussian(p.numel(), random)).view(p.shape).to(p.device)
        p.grad = (total[name] + own.noise_multiplier * own.clip * noise) / stage.batch
    rate = learning_rate(stage, progress.stage_images, plan.images) * progress.rate_factor
    for group in learner.optimizer.param_groups:
        group["lr"] = rate
    learner.optimizer.step()
    learner.optimizer.zero_grad(set_to_none=True)
    learner.ema.update()
    if learner.power:
        learner.power.update(learner.ema.steps)
    progress.stage_images += stage.batch
    progress.images += stage.batch
    # of the expected batch: what was really computed tells how many images were chosen
    per_image = own.multiplicity * training_flops(learner, level.visible, stage.mask)
    progress.flops += stage.batch * per_image
    progress.ema_steps = learner.ema.steps
    progress.privacy[plan.name] = own.record(number + 1)
    progress.sums["rate"] = rate
    progress.sums["steps"] = progress.sums.get("steps", 0.0) + 1


# --- what must be secret -------------------------------------------------------------------------


def poisson(ids: NDArray[np.int64], rate: float, random: Random) -> NDArray[np.int64]:
    """Each of `ids` with probability `rate`, independently of the others: [S] in their order."""
    bits = np.frombuffer(random(8 * len(ids)), np.uint64) >> np.uint64(11)
    return ids[bits * 2.0**-53 < rate]


def gaussian(count: int, random: Random) -> NDArray[np.float32]:
    """`count` independent standard normal numbers.

    Each is half the sum of four, so that the gaps between the numbers that a computer's normal law
    can give tell less of what they were added to (Holohan & Braghin 2021, arXiv 2107.10138).
    """
    found = np.empty(count, np.float32)
    for first in range(0, count, BLOCK):
        size = min(BLOCK, count - first)
        bits = np.frombuffer(random(32 * size), np.uint64) >> np.uint64(12)
        # + 1/2: never 0, and with 52 bits never rounded to 1, where ndtri is infinite
        normal = ndtri((bits + 0.5) * 2.0**-52).reshape(4, size)
        found[first : first + size] = normal.sum(axis=0) / 2
    return found


# --- an image's gradient -------------------------------------------------------------------------


def draws(
    plan: Plan, run: config.Run, learner: Learner, level: Level, image: int, number: int
) -> Batch:
    """The K draws of one image in step `number` of the stage: a batch of K, on the CPU.

    A function of the image and the step alone, not of the other images of the step.
    """
    assert plan.guarantee is not None
    seed = key(run.train.seed, "dp", plan.index, number, _content(plan.dataset, image))
    ids = np.full(plan.guarantee.multiplicity, image)
    return batch_of(plan, run, learner.model, level.rate, ids, seed, torch.device("cpu"))


def _content(dataset: Dataset | Sealed, image: int) -> str:
    """Names an image by its pixels, or by the patches that are left of it."""
    if isinstance(dataset, Sealed):
        return hashlib.sha256(dataset.rows[image].tobytes()).hexdigest()
    return dataset.pixel_digests[image].tobytes().hex()


def gradients(learner: Learner, images: list[Batch]) -> dict[str, Tensor]:
    """The gradient of each image's mean loss over its draws, by the tensor's name: [C, …]."""
    device, grid = learner.world.device, images[0].mask.grid
    columns = list(zip(*(_tensors(batch) for batch in images), strict=True))
    there = [column[0] is not None for column in columns]
    stacked = [torch.stack(column).to(device) for column in columns if column[0] is not None]

    def loss(parameters: dict[str, Tensor], *given: Tensor) -> Tensor:
        left = iter(given)
        patches, labels, t, noise, condition, *of_mask = (next(left) if x else None for x in there)
        arguments = (patches, labels, Mask(grid, *of_mask), t, noise, condition)
        return functional_call(learner.loss, parameters, arguments, {"exact": True}).mean

    parameters = {name: p.detach() for name, p in learner.loss.named_parameters()}
    each = vmap(grad(loss), in_dims=(None, *[0] * len(stacked)))
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels cannot be vectorised over images
        return each(parameters, *stacked)


def _tensors(batch: Batch) -> tuple[Tensor | None, ...]:
    return (batch.patches, batch.labels, batch.t, batch.noise, batch.condition, *batch.mask[1:])


def clipped_sum(found: dict[str, Tensor], clip: float) -> dict[str, Tensor]:
    """The sum over images of their gradients [C, …], each scaled to a norm of at most `clip`.

    One that is not finite is zero.
    """
    squares = [g.flatten(1).square().sum(dim=1) for g in found.values()]
    norm = torch.stack(squares).sum(dim=0).sqrt()  # [C]
    scale = (clip * (1 - CLOSE) / norm).clamp(max=1.0)
    scale = torch.where(norm.isfinite(), scale, 0.0)
    # not as a matrix product, which GPUs round to ten bits: an image could add more than the clip
    return {
        name: g.nan_to_num(0.0, 0.0, 0.0).mul_(scale.view(-1, *[1] * (g.ndim - 1))).sum(dim=0)
        for name, g in found.items()
    }


def _at_once(learner: Learner, run: config.Run, plan: Plan, level: Level) -> int:
    """Images whose gradients are held at the same time: `train.microbatch`, or what fits."""
    if run.train.microbatch:
        return run.train.microbatch
    assert plan.guarantee is not None
    backbone = learner.model.backbone
    draw = backbone.activation_bytes(level.visible, plan.stage.mask, fused=False)
    image = 2 * 4 * sum(p.numel() for p in backbone.parameters())
    image += plan.guarantee.multiplicity * draw
    return max(1, min(plan.stage.batch, math.floor(MEMORY / image)))
