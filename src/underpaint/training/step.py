"""One optimiser step: the batch is drawn, the loss computed, the weights moved.

Nothing here depends on which process computes it (see `seeding`): the processes of a run share the
microbatches of a step, and the average of their gradients is that of the whole batch.
"""

import torch
from torch import Tensor

from underpaint import config
from underpaint.core.denoiser import autocast
from underpaint.training import counts
from underpaint.training.batch import draw_batch, microbatch, request
from underpaint.training.checkpointing import Progress
from underpaint.training.feed import Request
from underpaint.training.optim import clip_limit, learning_rate, step_where
from underpaint.training.stages import Level, PreparedStage
from underpaint.training.tally import Tally
from underpaint.training.train_state import TrainState

SKIPS = 3  # non-finite steps in a row before the run returns to a checkpoint


class Diverged(Exception):
    """Several steps in a row had no finite gradient."""


def step(stage: PreparedStage, run: config.Run, state: TrainState, progress: Progress) -> None:
    """One optimiser step on a batch, shared among all processes.

    Nothing is read of a GPU: `settle` does that. Raises Diverged where `state` reads at once.
    """
    settings, world, first = stage.settings, state.world, progress.stage_images
    count = microbatch(settings, run.train, world)
    positions = range(first, first + settings.batch, count)[world.rank :: world.size]
    level = stage.level(first)
    tally = state.tally = state.tally or Tally(progress, state.reads_on)
    errors = torch.zeros(2, dtype=torch.float64, device=state.reads_on)  # loss, x0's
    for position in positions:
        more = position != positions[-1]
        asked = request(stage, run, level.rate, position, count, progress.attempt, world.size)
        gathered = state.feed.take(asked, _next(stage, run, progress, asked))
        batch = draw_batch(
            stage, run, state.model, level.rate, position, count, progress.attempt, gathered
        )
        with state.accumulating(more):
            with autocast(world.device, state.bf16):
                loss = state.loss(*batch)
            (loss.mean / len(positions)).backward()
        means = torch.stack([loss.per_image.detach().mean(), loss.x0_mse.mean()])
        errors += means.to(state.reads_on).double() / len(positions)
    # the norm is that of the average over all processes, so that each clips alike
    limit = clip_limit(settings, tally.norms)
    norm = state.clip(limit).to(state.reads_on)
    world.add(errors)
    errors /= world.size
    finite = norm.isfinite() & errors[0].isfinite()
    tally.add(errors, norm, finite, keep=settings.clip_percentile > 0)
    move(stage, state, progress, finite)
    progress.flops += settings.batch * training_flops(state, level.visible, settings.mask)
    if not state.deferred:
        settle(state, progress)


def _next(
    stage: PreparedStage, run: config.Run, progress: Progress, asked: Request
) -> Request | None:
    """What will most likely be asked for after this microbatch."""
    position, count = asked.position + asked.stride, asked.images
    step = position // stage.batch * stage.batch
    if step >= stage.images:
        return None
    rate, processes = stage.level(step).rate, asked.stride // count
    return request(stage, run, rate, position, count, progress.attempt, processes)


def settle(state: TrainState, progress: Progress) -> None:
    """Write into `progress` what steps have left on the device, which is waited for.

    Raises Diverged if several of them in a row had no finite gradient.
    """
    if state.tally is None:
        return
    longest, state.tally = state.tally.read(progress), None
    if longest >= SKIPS:
        raise Diverged(f"{SKIPS} steps in a row had no finite gradient")


def move(
    stage: PreparedStage, state: TrainState, progress: Progress, finite: Tensor | None = None
) -> None:
    """Move weights and averages by the gradients, and count the images.

    `finite`, a bool on the device: where it is not true, weights and the optimiser's state stay as
    they are, and the averages come nearer to them.
    """
    rate = learning_rate(stage.settings, progress.stage_images, stage.images)
    rate *= progress.rate_factor
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    step_where(state.optimizer, finite, state.deferred)
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
    """FLOPs per image under a mask of this kind: forward, and twice as much backward."""
    backbone = state.model.backbone
    return 3.0 * counts.flops(*backbone.built, visible, backbone.counted_kind(visible, mask))


def compute(
    stage: PreparedStage, state: TrainState, level: Level, draws: int = 1
) -> dict[str, float]:
    """FLOPs per image at this level, and of a whole one; known after a step, which counts them.

    Each with its share of the optimiser's.
    """
    patches, share = stage.space.grid[0] * stage.space.grid[1], state.optimizer_flops / stage.batch
    return {
        "flops_per_image": draws * training_flops(state, level.visible, stage.settings.mask)
        + share,
        "whole_flops_per_image": draws * training_flops(state, patches, "none") + share,
    }
