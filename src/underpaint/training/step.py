"""One optimiser step: the batch is drawn, the loss computed, the weights moved.

Nothing here depends on which process computes it (see `seeding`): the processes of a run share the
microbatches of a step, and the average of their gradients is that of the whole batch.
"""

import math

from underpaint import config
from underpaint.core.denoiser import autocast
from underpaint.training import counts
from underpaint.training.batch import draw_batch, microbatch
from underpaint.training.checkpointing import Progress
from underpaint.training.optim import NORMS, clip_gradients, clip_limit, learning_rate
from underpaint.training.stages import Level, PreparedStage
from underpaint.training.train_state import TrainState

SKIPS = 3  # non-finite steps in a row before the run returns to a checkpoint


class Diverged(Exception):
    """Several steps in a row had no finite gradient."""


def step(stage: PreparedStage, run: config.Run, state: TrainState, progress: Progress) -> None:
    """One optimiser step on a batch, shared among all processes."""
    settings, world = stage.settings, state.world
    count = microbatch(settings, run.train, world.size)
    positions = range(progress.stage_images, progress.stage_images + settings.batch, count)
    positions = positions[world.rank :: world.size]
    level = stage.level(progress.stage_images)
    loss_sum = mse_sum = 0.0
    for position in positions:
        batch = draw_batch(stage, run, state.model, level.rate, position, count, progress.attempt)
        with state.accumulating(more=position != positions[-1]):
            with autocast(world.device, state.bf16):
                loss = state.loss(*batch)
            (loss.mean / len(positions)).backward()
        loss_sum += float(loss.per_image.detach().mean()) / len(positions)
        mse_sum += float(loss.x0_mse.detach().mean()) / len(positions)
    # the norm is that of the average over all processes, so that each clips alike
    limit = clip_limit(settings, progress.norms)
    norm = float(clip_gradients(state.backbone.parameters(), limit))
    loss_sum, mse_sum = (v / world.size for v in world.sums([loss_sum, mse_sum]))
    finite = math.isfinite(norm) and math.isfinite(loss_sum)
    move(stage, state, progress, finite)
    if finite:
        if settings.clip_percentile:
            progress.norms = [*progress.norms, norm][-NORMS:]
        _add(progress.sums, loss=loss_sum, x0_mse=mse_sum, grad_norm=norm, steps=1)
    progress.skipped_in_row = 0 if finite else progress.skipped_in_row + 1
    progress.skipped += not finite
    progress.flops += settings.batch * training_flops(state, level.visible, settings.mask)
    if progress.skipped_in_row >= SKIPS:
        raise Diverged(f"{SKIPS} steps in a row had no finite gradient")


def move(stage: PreparedStage, state: TrainState, progress: Progress, finite: bool = True) -> None:
    """Move weights and averages by the gradients, if these are finite, and count the images."""
    rate = learning_rate(stage.settings, progress.stage_images, stage.images)
    rate *= progress.rate_factor
    if finite:
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        state.optimizer.step()
        progress.flops += state.optimizer_flops
        state.ema.update()
        if state.power:
            state.power.update(state.ema.steps)
    state.optimizer.zero_grad(set_to_none=True)
    progress.stage_images += stage.batch
    progress.images += stage.batch
    progress.ema_steps = state.ema.steps
    progress.sums["rate"] = rate


def training_flops(state: TrainState, visible: int, mask: str) -> float:
    """FLOPs an image under a mask of this kind: forward, and twice as much backward."""
    backbone = state.model.backbone
    return 3.0 * counts.flops(*backbone.built, visible, backbone.counted_kind(visible, mask))


def compute(
    stage: PreparedStage, state: TrainState, level: Level, draws: int = 1
) -> dict[str, float]:
    """FLOPs an image at this level, and of a whole one; known after a step, which counts them.

    Each with its share of the optimiser's.
    """
    patches, share = stage.space.grid[0] * stage.space.grid[1], state.optimizer_flops / stage.batch
    return {
        "flops_per_image": draws * training_flops(state, level.visible, stage.settings.mask)
        + share,
        "whole_flops_per_image": draws * training_flops(state, patches, "none") + share,
    }


def _add(sums: dict[str, float], **values: float) -> None:
    for name, value in values.items():
        sums[name] = sums.get(name, 0.0) + value
