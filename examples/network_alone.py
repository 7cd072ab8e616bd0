"""A U-ViT on a quarter of the patches, in a training loop of one's own (flow matching)."""

import torch

import underpaint as up
from underpaint import config
from underpaint.backbones import UViT
from underpaint.core import masks, spaces

STEPS, BATCH = 60, 32

heads = up.prepare(config.Data(source="avatars:lorelei"))
space = spaces.build("pixels", heads.size, heads.channels, patch=4)
torch.manual_seed(0)
network = UViT(space.grid, space.patch_dim, width=64, depth=3, heads=4)
optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)

losses = []
for step in range(STEPS):
    images = heads.batch(heads.train_ids[step * BATCH :][:BATCH])
    mask = masks.draw(masks.MaskSpec("patch", 0.75), space.grid, BATCH, generator=None)
    x0 = masks.gather(space.encode(spaces.from_uint8(images)), mask.visible)  # [B, V, P]
    noise, t = torch.randn_like(x0), torch.rand(BATCH)
    x_t = (1 - t[:, None, None]) * x0 + t[:, None, None] * noise
    velocity = network(x_t, 1000 * t, None, mask).visible
    loss = (velocity - (noise - x0)).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())

N, V = space.grid[0] * space.grid[1], x0.shape[1]
print(f"{V} of {N} patches for {network.flops(V) / network.flops(N):.0%} of the FLOPs")
print(f"loss {losses[0]:.2f} → {sum(losses[-10:]) / 10:.2f} after {STEPS} steps")
