"""What is compared in `run.py`: two other libraries, each in the loop that its documentation shows.

All work on one CPU thread in float32, on images x0 [n, C, 32, 32] in [-1, 1] without labels. Both
are U-Nets, smaller than those their documentation has for GPUs, so that a core makes some hundred
steps in minutes. What is set here and not there: a fused AdamW, which is several times faster on a
CPU and does the same; a warm-up of a tenth of the steps at most; and no mirrored images, since
underpaint mirrors none either.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BATCH = 16  # of both
LEVELS = (32, 64, 64)  # channels at 32, 16 and 8 pixels
STEPS = 25  # of DDIM
AT_ONCE = 50  # samples


class Peer(NamedTuple):
    """A network and its training: one step, and samples of the averaged weights."""

    step: Callable[[], None]
    sample: Callable[[int], Tensor]  # n → [n, C, 32, 32] in [-1, 1]
    averaged: torch.nn.Module  # in which `weights` put the average
    average: Callable[[], None]


def diffusers(x0: Tensor, rate: float, steps: int) -> Peer:
    """`UNet2DModel` and `DDPMScheduler` in the loop of diffusers' training tutorial.

    https://huggingface.co/docs/diffusers/tutorials/basic_training: batches of 16, AdamW, gradients
    of norm 1 at most, a cosine schedule after a warm-up; the average and AdamW's settings as in its
    script `examples/unconditional_image_generation`. Channels as in its course for images of 28×28
    (https://huggingface.co/learn/diffusion-course/unit1/3), with attention at the lowest level
    alone: at two levels it would take over a third of a step on a CPU. accelerate, around a loop of
    one process in float32, is left out. Samples by DDIM.
    """
    from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
    from diffusers.optimization import get_cosine_schedule_with_warmup
    from diffusers.training_utils import EMAModel

    network = UNet2DModel(
        sample_size=x0.shape[-1],
        in_channels=x0.shape[1],
        out_channels=x0.shape[1],
        layers_per_block=2,
        block_out_channels=LEVELS,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )
    noising = DDPMScheduler(num_train_timesteps=1000)
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
        noise, t = torch.randn_like(clean), torch.randint(0, 1000, (len(clean),))
        found = network(noising.add_noise(clean, noise, t), t).sample
        F.mse_loss(found, noise).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        average.step(network.parameters())

    def sample(n: int) -> Tensor:
        scheduler = DDIMScheduler.from_config(noising.config)
        scheduler.set_timesteps(STEPS)
        x = torch.randn(n, *x0.shape[1:])
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t).sample, t, x).prev_sample
        return x

    return Peer(step, sample, network, lambda: average.copy_to(network.parameters()))


def denoising_diffusion_pytorch(x0: Tensor, rate: float, steps: int) -> Peer:
    """`Unet`, `GaussianDiffusion` and the loop of denoising-diffusion-pytorch's `Trainer`.

    Its defaults: predicts the velocity on a sigmoid schedule, batches of 16, Adam at a constant
    rate, gradients of norm 1 at most, an average by ema-pytorch. Of its network, widths 32, 64 and
    64 in place of 64, 128, 256 and 512. `Trainer` reads files of a folder; here the images are an
    array. Samples by its DDIM. `steps` changes nothing.
    """
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet
    from ema_pytorch import EMA

    mults = tuple(width // LEVELS[0] for width in LEVELS)
    network = Unet(LEVELS[0], dim_mults=mults, channels=x0.shape[1])
    diffusion = GaussianDiffusion(network, image_size=x0.shape[-1], sampling_timesteps=STEPS)
    optimizer = torch.optim.Adam(network.parameters(), lr=rate, betas=(0.9, 0.99), fused=True)
    average = EMA(diffusion, beta=0.995, update_every=10)
    batches = _batches(x0)

    def step() -> None:
        diffusion(next(batches) / 2 + 0.5).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update()

    def sample(n: int) -> Tensor:
        found: Tensor = diffusion.sample(batch_size=n)
        return 2 * found - 1

    def averaged() -> None:
        diffusion.load_state_dict(average.ema_model.state_dict())

    return Peer(step, sample, diffusion, averaged)


PEERS: dict[str, Callable[[Tensor, float, int], Peer]] = {
    "diffusers": diffusers,
    "denoising-diffusion-pytorch": denoising_diffusion_pytorch,
}


def _batches(x0: Tensor) -> Any:
    """Batches without end, every image once in each pass."""
    while True:
        loader = torch.utils.data.DataLoader(x0, batch_size=BATCH, shuffle=True, drop_last=True)
        yield from loader


@torch.inference_mode()
def drawn(peer: Peer, n: int) -> np.ndarray:
    """The first `n` samples of seed 0, uint8 [n, 32, 32, C]."""
    torch.manual_seed(0)
    peer.averaged.eval()
    parts = [peer.sample(AT_ONCE) for _ in range(-(-n // AT_ONCE))]
    levels = (torch.cat(parts)[:n].clamp(-1, 1) + 1) * 127.5
    return levels.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def keep(peer: Peer, path: Path) -> None:
    """Write the averaged weights, which the network has from now on."""
    peer.average()
    torch.save(peer.averaged.state_dict(), path)


def kept(peer: Peer, path: Path) -> Peer:
    """The peer with the weights of `path`."""
    peer.averaged.load_state_dict(torch.load(path, weights_only=True))
    return peer
