"""One optimiser step: the batch is drawn, the loss computed, the weights moved.

Nothing here depends on which process computes it (see `draws`): the processes of a run share the
microbatches of a step, and the average of their gradients is that of the whole batch.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from underpaint import config
from underpaint.core import augmentation, masks, salient, spaces
from underpaint.data import Dataset, Sealed, augment
from underpaint.model import Model
from underpaint.sealed import format as sealed
from underpaint.training.optim import NORMS, clip_gradients, clip_limit, learning_rate
from underpaint.training.seeding import key
from underpaint.training.stages import Plan
from underpaint.training.state import Progress
from underpaint.training.train_state import Learner

__all__ = [
    "Batch",
    "Diverged",
    "batch_of",
    "draw_batch",
    "mask_seed",
    "microbatch",
    "step",
    "training_flops",
]

SKIPS = 3  # non-finite steps in a row before the run returns to a checkpoint


class Diverged(Exception):
    """Several steps in a row had no finite gradient."""


class Batch(NamedTuple):
    """What the loss is computed of, in the order of its arguments."""

    patches: torch.Tensor  # [B, N, P]
    labels: torch.Tensor | None  # [B]
    mask: masks.Mask
    t: torch.Tensor  # [B]
    noise: torch.Tensor  # [B, N, P]
    condition: torch.Tensor | None  # [B, D] of the augmentation, if the stage has any


def step(plan: Plan, run: config.Run, learner: Learner, progress: Progress) -> None:
    """One optimiser step on `plan.stage.batch` images, shared among all processes."""
    stage, world = plan.stage, learner.world
    count = microbatch(stage, run.train, world.size)
    positions = range(progress.stage_images, progress.stage_images + stage.batch, count)
    own = positions[world.rank :: world.size]
    level = plan.level(progress.stage_images)
    loss_sum = mse_sum = 0.0
    for position in own:
        batch = draw_batch(plan, run, learner.model, level.rate, position, count, progress.attempt)
        with learner.accumulating(more=position != own[-1]):
            loss = learner.loss(*batch)
            (loss.mean / len(own)).backward()
        loss_sum += float(loss.per_image.detach().mean()) / len(own)
        mse_sum += float(loss.x0_mse.detach().mean()) / len(own)
    # the norm is that of the average over all processes, so that each clips alike
    limit = clip_limit(stage, progress.norms)
    norm = float(clip_gradients(learner.backbone.parameters(), limit))
    rate = learning_rate(stage, progress.stage_images, plan.images) * progress.rate_factor
    loss_sum, mse_sum = (v / world.size for v in world.sums([loss_sum, mse_sum]))
    finite = math.isfinite(norm) and math.isfinite(loss_sum)
    if finite:
        for group in learner.optimizer.param_groups:
            group["lr"] = rate
        learner.optimizer.step()
        learner.ema.update()
        if stage.clip_percentile:
            progress.norms = [*progress.norms, norm][-NORMS:]
        if learner.power:
            learner.power.update(learner.ema.steps)
        _add(progress.sums, loss=loss_sum, x0_mse=mse_sum, grad_norm=norm, steps=1)
    learner.optimizer.zero_grad(set_to_none=True)
    progress.skipped_in_row = 0 if finite else progress.skipped_in_row + 1
    progress.skipped += not finite
    progress.stage_images += stage.batch
    progress.images += stage.batch
    progress.flops += stage.batch * training_flops(learner, level.visible, stage.mask)
    progress.ema_steps = learner.ema.steps
    progress.sums["rate"] = rate
    if progress.skipped_in_row >= SKIPS:
        raise Diverged(f"{SKIPS} steps in a row had no finite gradient")


def draw_batch(
    plan: Plan,
    run: config.Run,
    model: Model,
    rate: float,
    position: int,
    count: int,
    attempt: int,
) -> Batch:
    """The microbatch at `position` of the stage.

    Of sealed data there are visible patches alone, [B, V, P]; the noise is [B, N, P] all the same,
    so that they are trained on as the images would be under the same masks.
    A pure function of its arguments (see `draws`); also seeds torch's global generator, for
    dropout.
    """
    seed = key(run.train.seed, plan.index, position, attempt)
    torch.manual_seed(seed)
    return batch_of(plan, run, model, rate, plan.order.at(position, count), seed, model.device)


def batch_of(
    plan: Plan,
    run: config.Run,
    model: Model,
    rate: float,
    ids: np.ndarray,
    seed: int,
    device: torch.device,
) -> Batch:
    """The images `ids`, drawn from `seed` on `device`, a pure function of the arguments."""
    count, denoiser = len(ids), model.denoiser
    generator = torch.Generator(device).manual_seed(seed)
    patches, mask, condition = _seen(plan, ids, rate, seed, generator, denoiser.stride)
    t = denoiser.process.draw_t(count, generator, device)
    N = plan.space.grid[0] * plan.space.grid[1]
    noise = torch.randn(count, N, patches.shape[2], generator=generator, device=device)
    labels = None
    if model.label_names:
        labels = torch.from_numpy(plan.dataset.labels[ids]).to(device)
        dropped = torch.rand(count, generator=generator, device=device) < run.network.label_drop
        labels = torch.where(dropped, -1, labels)
    return Batch(patches, labels, mask, t, noise, condition)


def _seen(
    plan: Plan,
    ids: np.ndarray,
    rate: float,
    seed: int,
    generator: torch.Generator,
    multiple: int,
) -> tuple[torch.Tensor, masks.Mask, torch.Tensor | None]:
    """Patches of the images `ids`, [B, N, P] or sealed ones [B, V, P], and their mask.

    With them what the network is told of their augmentation, [B, D], if the stage has any.
    """
    stage, grid, dataset, device = plan.stage, plan.space.grid, plan.dataset, generator.device
    if isinstance(dataset, Sealed):
        values, positions = dataset.batch(ids)
        visible = torch.from_numpy(positions).to(device)
        mask = masks.showing(grid, visible, stage.mask, dataset.about["multiple"])
        return spaces.levels(values).to(device), mask, None
    planes, condition = _planes(plan, dataset, ids, seed)
    planes = planes.to(device)  # [B, C, H, W]
    of_mask: torch.Generator | list[torch.Generator] = generator
    if stage.fixed:  # by the image alone: the same in every epoch, stage and run
        of_mask = [torch.Generator().manual_seed(mask_seed(plan.mask_key, dataset, i)) for i in ids]
    mask = masks.draw(
        stage.mask,
        grid,
        len(ids),
        rate,
        block=stage.block,
        multiple=multiple,
        generator=of_mask,
        device=device,
        contrast=salient.local_variance(planes, grid) if stage.mask == "salient" else None,
        temperature=stage.temperature,
        reweight=stage.reweight,
    )
    return plan.space.encode(planes), mask, None if condition is None else condition.to(device)


def mask_seed(mask_key: bytes | None, dataset: Dataset, image: int) -> int:
    """What the fixed mask of an image is drawn from: its pixels, and the key if there is one."""
    if mask_key is not None:
        return sealed.mask_seed(mask_key, dataset.pixel_digests[image].tobytes())
    return key("mask", dataset.pixel_sha256[image])


def _planes(
    plan: Plan, dataset: Dataset, ids: np.ndarray, seed: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The augmented images `ids` in [-1, 1], or latents drawn anew: float32 [B, C, H, W].

    With them what the network is told of their augmentation.
    """
    stage, rng = plan.stage, np.random.default_rng(seed)
    if dataset.latents is not None:
        return torch.from_numpy(dataset.latents.draw(ids, rng, stage.flip)), None
    images = dataset.batch(ids)
    if stage.flip or stage.shift:
        images = augment(images, rng, stage.flip, stage.shift)
    planes = spaces.from_uint8(images)
    if not stage.augment:
        return planes, None
    # draws of their own: what flip and shift do does not depend on augment
    changes = augmentation.draw(
        np.random.default_rng(key(seed, "augment")),
        len(ids),
        stage.augment,
        square=planes.shape[2] == planes.shape[3],
        colour=planes.shape[1] == 3,
    )
    return augmentation.apply(planes, changes), augmentation.condition(changes)


def microbatch(stage: config.Stage, train: config.Train, processes: int) -> int:
    """Images of one forward pass of one process."""
    share = max(1, stage.batch // processes)
    return min(train.microbatch, share) if train.microbatch else share


def training_flops(learner: Learner, visible: int, mask: str) -> float:
    """Training FLOPs an image under a mask of this kind: forward, and twice as much backward."""
    return 3.0 * learner.model.backbone.flops(visible, mask)


def _add(sums: dict[str, float], **values: float) -> None:
    for name, value in values.items():
        sums[name] = sums.get(name, 0.0) + value
