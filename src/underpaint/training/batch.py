"""The batch of a step: images, masks, times and noise, all drawn from its position in the run."""

from typing import NamedTuple

import torch
from torch import Tensor

from underpaint import config
from underpaint.core import masks
from underpaint.core.masks import Mask
from underpaint.model import Model
from underpaint.training.distributed import World
from underpaint.training.feed import Request
from underpaint.training.seeding import seed_from
from underpaint.training.stages import PreparedStage
from underpaint.training.training_set import Gathered


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
    gathered: Gathered | None = None,
) -> Batch:
    """The microbatch of `count` images at `position` of the stage (see `seeding`).

    `gathered`: its images, if they have been read. Also seeds torch's global generator, for
    dropout.
    """
    asked = request(stage, run, rate, position, count, attempt)
    torch.manual_seed(asked.seed)
    gathered = asked.read().to(model.device) if gathered is None else gathered
    return noised(stage, run, model, rate, gathered, asked.seed, model.device)


def request(
    stage: PreparedStage,
    run: config.Run,
    rate: float,
    position: int,
    count: int,
    attempt: int,
    processes: int = 0,
) -> Request:
    """What the images of the microbatch at `position` follow from.

    `processes` that share a step: then it is one of a sequence, which is read ahead.
    """
    seed = seed_from(run.train.seed, stage.index, position, attempt)
    return Request(stage, rate, position, count, seed, count * processes)


def noised(
    stage: PreparedStage,
    run: config.Run,
    model: Model,
    rate: float,
    gathered: Gathered,
    seed: int,
    device: torch.device,
) -> Batch:
    """The images, which are on `device`, with masks, times and noise that are drawn from `seed`.

    A pure function of the arguments.
    """
    B = len(gathered.x0)
    generator = torch.Generator(device).manual_seed(seed)
    visible = stage.training_set.visible(gathered, rate, generator)
    t = model.denoiser.process.draw_t(B, generator, device)
    # of all patches, so that the same image under another mask has the same noise
    N = stage.space.grid[0] * stage.space.grid[1]
    noise = torch.randn(B, N, visible.patches.shape[2], generator=generator, device=device)
    labels = None
    if model.label_names:
        dropped = torch.rand(B, generator=generator, device=device) < run.network.label_drop
        labels = torch.where(dropped, -1, gathered.labels)
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


def microbatch(stage: config.Stage, train: config.Train, world: World) -> int:
    """Images of one forward pass of one process.

    Where they are not asked for, a run that goes on with fewer processes keeps those that it began
    with, by whose positions masks, times and noise are drawn.
    """
    share, before = (max(1, stage.batch // n) for n in (world.size, max(world.size, world.began)))
    if train.microbatch > 0:
        return min(train.microbatch, share)
    return share if share % before else before
