"""One optimiser step: the batch is drawn, the loss computed, the weights moved.

Nothing here depends on which process computes it (see `draws`): the processes of a run share the
microbatches of a step, and the average of their gradients is that of the whole batch.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from underpaint import config
from underpaint.core import masks, salient, spaces
from underpaint.data import augment
from underpaint.model import Model
from underpaint.training.draws import key
from underpaint.training.learner import Learner
from underpaint.training.optimiser import clip_gradients, learning_rate
from underpaint.training.stages import Plan
from underpaint.training.state import Progress

__all__ = ["Diverged", "draw_batch", "microbatch", "step", "training_flops"]

SKIPS = 3  # non-finite steps in a row before the run returns to a checkpoint


class Diverged(Exception):
    """Several steps in a row had no finite gradient."""


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
        loss_sum += float(loss.mean.detach()) / len(own)
        mse_sum += float(loss.x0_mse.detach().mean()) / len(own)
    norm = float(clip_gradients(learner.backbone.parameters(), stage.clip))
    rate = learning_rate(stage, progress.stage_images, plan.images) * progress.rate_factor
    loss_sum, mse_sum = (v / world.size for v in world.sums([loss_sum, mse_sum]))
    finite = math.isfinite(norm) and math.isfinite(loss_sum)
    if finite:
        for group in learner.optimizer.param_groups:
            group["lr"] = rate
        learner.optimizer.step()
        learner.ema.update()
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
) -> tuple[torch.Tensor, torch.Tensor | None, masks.Mask, torch.Tensor, torch.Tensor]:
    """Patches, labels, mask, times and noise of the microbatch at `position` of the stage.

    A pure function of its arguments (see `draws`); also seeds torch's global generator, for
    dropout.
    """
    stage, device, denoiser = plan.stage, model.device, model.denoiser
    seed = key(run.train.seed, plan.index, position, attempt)
    torch.manual_seed(seed)
    generator = torch.Generator(device).manual_seed(seed)
    ids = plan.order.at(position, count)
    planes = _planes(plan, ids, seed).to(device)  # [B, C, H, W]
    patches = plan.space.encode(planes)
    of_mask: torch.Generator | list[torch.Generator] = generator
    if stage.fixed:  # by the image alone: the same in every epoch, stage and run
        hashes = [plan.dataset.pixel_sha256[i] for i in ids]
        of_mask = [torch.Generator().manual_seed(key("mask", each)) for each in hashes]
    grid, chosen = plan.space.grid, stage.mask == "salient"
    mask = masks.draw(
        stage.mask,
        grid,
        count,
        rate,
        block=stage.block,
        multiple=denoiser.stride,
        generator=of_mask,
        device=device,
        contrast=salient.local_variance(planes, grid) if chosen else None,
        temperature=stage.temperature,
        reweight=stage.reweight,
    )
    t = denoiser.process.draw_t(count, generator, device)
    noise = torch.randn(patches.shape, generator=generator, device=device)
    labels = None
    if model.label_names:
        labels = torch.from_numpy(plan.dataset.labels[ids]).to(device)
        dropped = torch.rand(count, generator=generator, device=device) < run.network.label_drop
        labels = torch.where(dropped, -1, labels)
    return patches, labels, mask, t, noise


def _planes(plan: Plan, ids: np.ndarray, seed: int) -> torch.Tensor:
    """The augmented images `ids` in [-1, 1], or latents drawn anew: float32 [B, C, H, W]."""
    stage, rng = plan.stage, np.random.default_rng(seed)
    if plan.dataset.latents is not None:
        return torch.from_numpy(plan.dataset.latents.draw(ids, rng, stage.flip))
    images = plan.dataset.batch(ids)
    if stage.flip or stage.shift:
        images = augment(images, rng, stage.flip, stage.shift)
    return spaces.from_uint8(images)


def microbatch(stage: config.Stage, train: config.Train, processes: int) -> int:
    """Images of one forward pass of one process."""
    share = max(1, stage.batch // processes)
    return min(train.microbatch, share) if train.microbatch else share


def training_flops(learner: Learner, visible: int, mask: str) -> float:
    """Training FLOPs an image under a mask of this kind: forward, and twice as much backward."""
    backbone = learner.model.backbone
    return 3.0 * backbone.flops(backbone.processed(visible, mask))


def _add(sums: dict[str, float], **values: float) -> None:
    for name, value in values.items():
        sums[name] = sums.get(name, 0.0) + value
