"""Train in two stages, draw images, remove noise: three minutes on two CPU cores."""

import torch

import underpaint as up
from underpaint.core.spaces import from_uint8

run = up.preset("quickstart")  # a recipe: `underpaint presets quickstart` prints it
run.data.source = "avatars:pixel-art"  # or your folder
up.train(run, "runs/pixel-art")

model = up.load("runs/pixel-art")
heads = model.sample(8, seed=0, labels=model.label_names)  # uint8 [8, 32, 32, 3]
x0 = from_uint8(heads)  # [8, 3, 32, 32] in [-1, 1]
noisy = x0 + 0.5 * torch.randn_like(x0)
clean = model.denoise(noisy, sigma=0.5, labels=model.label_names)  # the expected x0
