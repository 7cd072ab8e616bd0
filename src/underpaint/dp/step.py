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
from underpaint.dp.accounting import Guarantee
from underpaint.training.batch import Batch, noised
from underpaint.training.checkpointing import Progress
from underpaint.training.seeding import seed_from
from underpaint.training.stages import Level, PreparedStage
from underpaint.training.step import move, training_flops
from underpaint.training.train_state import TrainState

Random = Callable[[int], bytes]  # so many random bytes; os.urandom except in tests
MEMORY = 2**30  # bytes that the gradients of single images and their activations may take
BLOCK = 2**16  # normal numbers made at a time
CLOSE = 1e-5  # share of the clip kept free for rounding


def private_step(
    stage: PreparedStage,
    run: config.Run,
    state: TrainState,
    progress: Progress,
    random: Random = os.urandom,
) -> None:
    """One step that costs privacy; the caller has counted it as spent beforehand."""
    budget: Guarantee = stage.guarantee
    number, level = progress.stage_images // stage.batch, stage.level(progress.stage_images)
    chosen = poisson(stage.order.ids, budget.sampling_rate, random)
    tensors = dict(state.loss.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in tensors.items()}
    count = _at_once(state, run, stage, level)
    for first in range(0, len(chosen), count):
        part = [draws(stage, run, state, level, i, number) for i in chosen[first : first + count]]
        for name, value in clipped_sum(gradients(state, part), budget.clip).items():
            total[name] += value
    for name, p in tensors.items():
        noise = torch.from_numpy(gaussian(p.numel(), random)).view(p.shape).to(p.device)
        p.grad = (total[name] + budget.noise_multiplier * budget.clip * noise) / stage.batch
    move(stage, state, progress)
    # of the expected batch: what was really computed tells how many images were chosen
    per_image = budget.multiplicity * training_flops(state, level.visible, stage.settings.mask)
    progress.flops += stage.batch * per_image
    progress.privacy[stage.name] = budget.record(number + 1)
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
    stage: PreparedStage, run: config.Run, state: TrainState, level: Level, image: int, number: int
) -> Batch:
    """The K draws of one image in step `number` of the stage: a batch of K, on the CPU.

    A function of the image and the step alone, not of the other images of the step.
    """
    content = stage.training_set.content(image)
    seed = seed_from(run.train.seed, "dp", stage.index, number, content)
    ids = np.full(stage.guarantee.multiplicity, image)
    augment = stage.augment(number * stage.batch)
    gathered = stage.training_set.gather(ids, level.rate, augment, seed)
    return noised(stage, run, state.model, level.rate, gathered, seed, torch.device("cpu"))


def gradients(state: TrainState, images: list[Batch]) -> dict[str, Tensor]:
    """The gradient of each image's mean loss over its draws, by the tensor's name: [C, …]."""
    device, grid = state.world.device, images[0].mask.grid
    columns = list(zip(*(_tensors(batch) for batch in images), strict=True))
    there = [column[0] is not None for column in columns]
    stacked = [torch.stack(column).to(device) for column in columns if column[0] is not None]

    def loss(parameters: dict[str, Tensor], *given: Tensor) -> Tensor:
        left = iter(given)
        values = [next(left) if x else None for x in there]
        patches, labels, *rest = values[:7]
        arguments = (patches, labels, Mask(grid, *values[7:]), *rest)
        return functional_call(state.loss, parameters, arguments).mean

    parameters = {name: p.detach() for name, p in state.loss.named_parameters()}
    each = vmap(grad(loss), in_dims=(None, *[0] * len(stacked)))
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels cannot be vectorised over images
        return each(parameters, *stacked)


def _tensors(batch: Batch) -> tuple[Tensor | None, ...]:
    """The batch's tensors in the loss's order, its mask's at the end."""
    mask, rest = batch.mask, (batch.t, batch.noise, batch.condition)
    return (batch.patches, batch.labels, *rest, batch.hidden, batch.hidden_noise, *mask[1:])


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


def _at_once(state: TrainState, run: config.Run, stage: PreparedStage, level: Level) -> int:
    """Images whose gradients are held at the same time: `train.microbatch`, or what fits."""
    if run.train.microbatch:
        return run.train.microbatch
    backbone = state.model.backbone
    draw = backbone.activation_bytes(level.visible, stage.settings.mask, fused=False)
    image = 2 * 4 * sum(p.numel() for p in backbone.parameters())
    image += stage.guarantee.multiplicity * draw
    return max(1, min(stage.batch, math.floor(MEMORY / image)))
