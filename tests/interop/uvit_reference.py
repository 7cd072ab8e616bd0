"""U-ViT's forward pass on a whole image, from its description, by its authors' names.

tokens = [label, time, patches] + positions; pre-norm blocks with the erf GELU; late blocks begin
with linear(concat(x, the partner's x)); norm, linear head, perhaps a convolution on the image.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


def weights(
    *,
    width: int,
    depth: int,
    patch: int,
    side: int,
    channels: int = 3,
    classes: int = 0,
    conv: bool,
) -> State:
    """Random weights of an official U-ViT on side × side pixels; `depth` without the middle."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return 0.15 * torch.randn(*shape, generator=generator)

    extras = 2 if classes else 1
    state = {
        "pos_embed": draw(1, extras + (side // patch) ** 2, width),
        "patch_embed.proj.weight": draw(width, channels, patch, patch),
        "patch_embed.proj.bias": draw(width),
        "norm.weight": 1 + draw(width),
        "norm.bias": draw(width),
        "decoder_pred.weight": draw(channels * patch**2, width),
        "decoder_pred.bias": draw(channels * patch**2),
    }
    if classes:
        state["label_emb.weight"] = draw(classes, width)
    if conv:
        state |= {"final_layer.weight": draw(channels, channels, 3, 3)}
        state |= {"final_layer.bias": draw(channels)}
    blocks = [f"{kind}_blocks.{i}" for kind in ("in", "out") for i in range(depth // 2)]
    for block in (*blocks, "mid_block"):
        layers = {"attn.proj": (width, width), "mlp.fc1": (4 * width, width)}
        layers["mlp.fc2"] = (width, 4 * width)
        if block.startswith("out"):
            layers["skip_linear"] = (width, 2 * width)
        for name, shape in layers.items():
            state[f"{block}.{name}.weight"] = draw(*shape)
            state[f"{block}.{name}.bias"] = draw(shape[0])
        state[f"{block}.attn.qkv.weight"] = draw(3 * width, width)
        for name in ("norm1", "norm2"):
            state[f"{block}.{name}.weight"] = 1 + draw(width)
            state[f"{block}.{name}.bias"] = draw(width)
    return state


def forward(state: State, x: Tensor, t: Tensor, y: Tensor | None, heads: int) -> Tensor:
    """Noisy images x_t [B, C, H, W], times as the network gets them [B] → output [B, C, H, W]."""
    kernel = state["patch_embed.proj.weight"]
    width, channels, patch, _ = kernel.shape
    tokens = F.conv2d(x, kernel, state["patch_embed.proj.bias"], stride=patch)
    h, w = tokens.shape[2:]
    tokens = tokens.flatten(2).transpose(1, 2)
    angle = t[:, None] * torch.exp(-math.log(10000) * torch.arange(width // 2) / (width // 2))
    front = [torch.cat([angle.cos(), angle.sin()], 1)]
    if y is not None:
        front.insert(0, state["label_emb.weight"][y])
    z = torch.cat([torch.stack(front, 1), tokens], 1) + state["pos_embed"]
    depth = len([name for name in state if name.startswith("in_") and name.endswith("norm1.bias")])
    kept = []
    for i in range(depth):
        z = block(state, f"in_blocks.{i}", z, heads)
        kept.append(z)
    z = block(state, "mid_block", z, heads)
    for i in range(depth):
        z = linear(state, f"out_blocks.{i}.skip_linear", torch.cat([z, kept.pop()], 2))
        z = block(state, f"out_blocks.{i}", z, heads)
    out = linear(state, "decoder_pred", norm(state, "norm", z))[:, len(front) :]
    out = out.reshape(-1, h, w, patch, patch, channels).permute(0, 5, 1, 3, 2, 4)
    out = out.reshape(-1, channels, h * patch, w * patch)
    if "final_layer.weight" in state:
        out = F.conv2d(out, state["final_layer.weight"], state["final_layer.bias"], padding=1)
    return out


def block(state: State, name: str, z: Tensor, heads: int) -> Tensor:
    B, T, width = z.shape
    qkv = norm(state, f"{name}.norm1", z) @ state[f"{name}.attn.qkv.weight"].T
    q, k, v = (part.view(B, T, heads, -1).transpose(1, 2) for part in qkv.chunk(3, dim=2))
    share = (q @ k.transpose(2, 3) / math.sqrt(width // heads)).softmax(-1)
    z = z + linear(state, f"{name}.attn.proj", (share @ v).transpose(1, 2).reshape(B, T, width))
    hidden = F.gelu(linear(state, f"{name}.mlp.fc1", norm(state, f"{name}.norm2", z)))
    return z + linear(state, f"{name}.mlp.fc2", hidden)


def norm(state: State, name: str, z: Tensor) -> Tensor:
    return F.layer_norm(z, z.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def linear(state: State, name: str, z: Tensor) -> Tensor:
    return z @ state[f"{name}.weight"].T + state[f"{name}.bias"]
