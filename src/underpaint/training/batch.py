"""The batch of a step: images, masks, times and noise, all drawn from its position in the run."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from underpaint import config
from underpaint.core import masks
from underpaint.core.masks import Mask
from underpaint.model import Model
from underpaint.training.seeding import seed_from
from underpaint.training.stages import PreparedStage


class Batch(NamedTuple):
    """What the loss is computed of, in the order of its arguments."""

    patches: Tensor  # [B, V, P] clean
    labels: Tensor | None  # [B]
    mask: Mask
    t: Tensor  # [B]
    noise: Tensor  # [B, V, P]
    condition: Tensor | None = None  # [B, D] of the augmentation, if the stage has any
    hidden: Tensor | None = None  # [B, N − V, P], if the loss looks at hidden patches
    hidden_noise: Tensor | None = None


def draw_batch(
    stage: PreparedStage,
    run: config.Run,
    model: Model,
    rate: float,
    position: int,
    count: int,
    attempt: int,
) -> Batch:
    """The microbatch of `count` images at `position` of the stage (see `seeding`).

    Also seeds torch's global generator, for dropout.
    """
    seed = seed_from(run.train.seed, stage.index, position, attempt)
    torch.manual_seed(seed)
    ids = stage.order.at(position, count)
    return batch_of(stage, run, model, rate, stage.augment(position), ids, seed, model.device)


def batch_of(
    stage: PreparedStage,
    run: config.Run,
    model: Model,
    rate: float,
    augment: float,
    ids: np.ndarray,
    seed: int,
    device: torch.device,
) -> Batch:
    """The images `ids`, drawn from `seed` on `device`, a pure function of the arguments."""
    B = len(ids)
    generator = torch.Generator(device).manual_seed(seed)
    visible = stage.training_set.visible(ids, rate, augment, seed, generator)
    t = model.denoiser.process.draw_t(B, generator, device)
    # of all patches, so that the same image under another mask has the same noise
    N = stage.space.grid[0] * stage.space.grid[1]
    noise = torch.randn(B, N, visible.patches.shape[2], generator=generator, device=device)
    labels = None
    if model.label_names:
        labels = torch.from_numpy(stage.training_set.labels[ids]).to(device)
        dropped = torch.rand(B, generator=generator, device=device) < run.network.label_drop
        labels = torch.where(dropped, -1, labels)
    return Batch(
        visible.patches,
        labels,
        visible.mask,
        t,
        masks.gather(noise, visible.mask.visible),
        visible.condition,
        visible.hidden,
        None if visible.hidden is None else masks.gather(noise, visible.mask.hidden),
    )


def microbatch(stage: config.Stage, train: config.Train, processes: int) -> int:
    """Images of one forward pass of one process."""
    share = max(1, stage.batch // processes)
    return min(train.microbatch, share) if train.microbatch > 0 else share
