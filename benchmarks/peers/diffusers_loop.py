"""diffusers' `UNet2DModel` and `DDPMScheduler` in the loop of its training tutorial.

https://huggingface.co/docs/diffusers/tutorials/basic_training: batches of 16, AdamW, gradients of
norm 1 at most, a cosine schedule after a warm-up; the average and AdamW's settings as in its script
`examples/unconditional_image_generation`. Channels as in its course for images of 28×28
(https://huggingface.co/learn/diffusion-course/unit1/3), with attention at the lowest level alone:
at two levels it would take over a third of a step on a CPU. Samples by DDIM.

Not as there: a fused AdamW, which does the same in less time; a warm-up of a tenth of the steps at
most; no mirrored images, since no other arm mirrors any; no accelerate, around a loop of one
process in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BATCH = 16
CHANNELS = (32, 64, 64)  # at 32, 16 and 8 pixels
TIMES = 1000
STEPS = 25  # of DDIM
AT_ONCE = 50  # samples


class Loop(NamedTuple):
    """A network and its training."""

    network: torch.nn.Module
    step: Callable[[], None]
    average: Any  # diffusers' EMAModel


def begun(x0: Tensor, rate: float, steps: int) -> Loop:
    """The loop on x0 [n, C, H, W] in [-1, 1], before the first of so many `steps`."""
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_cosine_schedule_with_warmup
    from diffusers.training_utils import EMAModel

    network = unet(x0.shape[1], x0.shape[-1])
    noising = DDPMScheduler(num_train_timesteps=TIMES)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=rate, betas=(0.95, 0.999), weight_decay=1e-6, fused=True
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, min(500, steps // 10), steps)
    average = EMAModel(
        network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=3 / 4
    )
    batches = _batches(x0)

    def step() -> None:
        clean = next(batches)
        noise, t = torch.randn_like(clean), torch.randint(0, TIMES, (len(clean),))
        found = network(noising.add_noise(clean, noise, t), t).sample
        F.mse_loss(found, noise).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        average.step(network.parameters())

    return Loop(network, step, average)


def unet(channels: int, size: int) -> torch.nn.Module:
    """The network, of 1.6 million parameters, with new weights."""
    from diffusers import UNet2DModel

    network: Any = UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=2,
        block_out_channels=CHANNELS,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )
    assert isinstance(network, torch.nn.Module)
    return network


def _batches(x0: Tensor) -> Iterator[Tensor]:
    """Batches without end, every image once in each pass."""
    images = cast("torch.utils.data.Dataset[Tensor]", x0)  # a tensor has what a loader asks for
    while True:
        yield from torch.utils.data.DataLoader(images, BATCH, shuffle=True, drop_last=True)


def keep(loop: Loop, path: Path) -> None:
    """Write the averaged weights, which the network has from now on."""
    loop.average.copy_to(loop.network.parameters())
    torch.save(loop.network.state_dict(), path)


@torch.inference_mode()
def samples(path: Path, n: int, channels: int, size: int) -> np.ndarray:
    """The first `n` of seed 0 of the weights in `path`, uint8 [n, H, W, C]."""
    from diffusers import DDIMScheduler

    network = unet(channels, size).eval()
    network.load_state_dict(torch.load(path, weights_only=True))
    scheduler = DDIMScheduler(num_train_timesteps=TIMES)
    torch.manual_seed(0)
    parts = []
    for _ in range(-(-n // AT_ONCE)):
        scheduler.set_timesteps(STEPS)
        x = torch.randn(AT_ONCE, channels, size, size)
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t).sample, t, x).prev_sample
        parts.append(x)
    levels = (torch.cat(parts)[:n].clamp(-1, 1) + 1) * 127.5
    return levels.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
