"""U-ViT by its authors' names (Bao et al. 2023), and MaskDM's MaskedUViT, which is one.

    ours                    U-ViT                           MaskDM: the same after `encoder.`, but
    embed                   patch_embed.proj
    positions               pos_embed                       encoder_pos_embed
    early.i, middle, late.i in_blocks.i, mid_block, out_blocks.i
    skips.i                 out_blocks.i.skip_linear
    head                    decoder_pred                    encoder_to_output (not in `encoder`)
    conv_out                final_layer                     final_layer (not in `encoder`)
    labels                  label_emb, its last may be null label_emb, and null: uncond_embed

- Their positions begin with those of the label, if there are any, and of the time: the first is
  added to each label's row, the second is `time_position`.
- Heads are not in the weights. Noise is in MaskDM's, as the betas of its GaussianDiffusion. U-ViTs
  of pixels were trained on continuous VP-linear noise with 999 t as the level; those of latents on
  Stable Diffusion's betas, which are none of ours.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from underpaint import config
from underpaint.core.schedules import Discrete
from underpaint.errors import UserError
from underpaint.interop.dit_weights import head_in
from underpaint.interop.importing import (
    Asked,
    Imported,
    State,
    check_names,
    count,
    heads_of,
    names_of,
    noise_of,
    read_state,
    refuse,
    sampling_of,
    space_of,
    without_prefix,
)

PUBLISHED = {512: 8, 768: 12, 1024: 16, 1152: 16}  # width: heads
BLOCK = {
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "attention.qkv.weight": "attn.qkv.weight",
    "attention.out.weight": "attn.proj.weight",
    "attention.out.bias": "attn.proj.bias",
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "mlp.rise.weight": "mlp.fc1.weight",
    "mlp.rise.bias": "mlp.fc1.bias",
    "mlp.fall.weight": "mlp.fc2.weight",
    "mlp.fall.bias": "mlp.fc2.bias",
}
BESIDE = ("final_layer.weight", "final_layer.bias", "label_emb.weight", "uncond_embed")  # if any
REFUSED = {
    r"(encoder\.)?time_embed": "our network has no MLP on its time token",
    r".*attn\.(qkv\.bias|[qv]_bias)": "our network has no bias on queries, keys and values",
    "(encoder_to_)?decoder(?!_pred)": "our network has no decoder behind the encoder",
    "(approx|detail)_": "our network takes one kind of patches: MaskDM's wavelets have two",
}
DIFFUSION = "betas"  # of MaskDM's GaussianDiffusion; its other tables follow from it


def read(file: Path, asked: Asked) -> Imported:
    """See `importing`."""
    state = read_state(file, asked.weights)
    notes: list[str] = []
    if asked.kind == "maskdm":
        betas = next((x for name, x in state.items() if name.split(".")[-1] == DIFFUSION), None)
        state = without_prefix(state, "encoder.encoder_pos_embed", notes)
        noise = _noise_of_betas(file, betas, asked)
    else:
        state = without_prefix(state, "pos_embed", notes)
        noise = noise_of(asked, "vp-linear", 0)
    named: Callable[[str], str] = _of_maskdm if asked.kind == "maskdm" else str
    refuse(file, state, REFUSED)
    side = count(state, r"(?:encoder\.)?in_blocks\.(\d+)\.")
    names = _names(side, [name for name in BESIDE if named(name) in state])
    check_names(file, state, map(named, names))
    state = {name: state[named(name)] for name in names}
    extras = 2 if "label_emb.weight" in state else 1
    width, channels, patch, _ = state["patch_embed.proj.weight"].shape
    positions = state["pos_embed"][0]
    space, size, colours = space_of(channels, patch, len(positions) - extras, asked)
    options: dict[str, object] = {}
    if "final_layer.weight" in state:
        options["final_conv"] = True
    if asked.kind == "uvit" and not asked.process:
        if space.kind == "latents":
            raise UserError(
                f"{file}: published U-ViTs of latents have Stable Diffusion's noise schedule, "
                "which is none of ours; give --process if this one was trained on another"
            )
        options["time_scale"] = 0.999
    labels, label_names = _labels(state, positions, asked, notes)
    spec = config.ModelSpec(
        size=size,
        channels=colours,
        label_names=label_names,
        space=space,
        network=config.Network(
            kind="uvit",
            width=width,
            depth=2 * side + 1,
            heads=heads_of(width, asked, PUBLISHED),
            mlp_ratio=len(state["mid_block.mlp.fc1.bias"]) / width,
            labels=labels is not None,
            options=options,
        ),
        noise=noise,
        sampling=_sampling(asked, space, noise),
    )
    found = {
        "embed.weight": state["patch_embed.proj.weight"].flatten(1),
        "embed.bias": state["patch_embed.proj.bias"],
        "positions.weight": positions[extras:],
        "time_position.weight": positions[extras - 1 : extras],
        "norm.weight": state["norm.weight"],
        "norm.bias": state["norm.bias"],
        "head.weight": head_in(state["decoder_pred.weight"], patch),
        "head.bias": head_in(state["decoder_pred.bias"], patch),
    }
    if labels is not None:
        found["labels.weight"] = labels
    places = {"middle": "mid_block"}
    for i in range(side):
        places |= {f"early.{i}": f"in_blocks.{i}", f"late.{i}": f"out_blocks.{i}"}
        for kind in ("weight", "bias"):
            found[f"skips.{i}.{kind}"] = state[f"out_blocks.{i}.skip_linear.{kind}"]
    for ours, theirs in places.items():
        found |= {f"{ours}.{k}": state[f"{theirs}.{v}"] for k, v in BLOCK.items()}
    if "final_conv" in options:
        found |= {f"conv_out.{k}": state[f"final_layer.{k}"] for k in ("weight", "bias")}
    return Imported(spec, {k: v.contiguous() for k, v in found.items()}, notes)


def _of_maskdm(name: str) -> str:
    """What MaskedUViT calls a tensor of U-ViT."""
    if name.startswith("decoder_pred"):
        return name.replace("decoder_pred", "encoder_to_output")
    if name.startswith("final_layer"):
        return name
    return f"encoder.{name.replace('pos_embed', 'encoder_pos_embed')}"


def _names(side: int, beside: list[str]) -> list[str]:
    """All names of a U-ViT with so many blocks on either side."""
    names = ["pos_embed", "norm.weight", "norm.bias", *beside]
    for layer in ("patch_embed.proj", "decoder_pred"):
        names += [f"{layer}.weight", f"{layer}.bias"]
    blocks = ["mid_block"]
    for i in range(side):
        blocks += [f"in_blocks.{i}", f"out_blocks.{i}"]
        names += [f"out_blocks.{i}.skip_linear.{kind}" for kind in ("weight", "bias")]
    return names + [f"{block}.{name}" for block in blocks for name in BLOCK.values()]


def _labels(
    state: State, positions: Tensor, asked: Asked, notes: list[str]
) -> tuple[Tensor | None, tuple[str, ...]]:
    """Our table of labels, null last, and the names of the classes."""
    table = state.get("label_emb.weight")
    if table is None:
        return None, ()
    null = state.get("uncond_embed")
    classes = len(table)
    if null is None and classes in (1001, len(asked.labels) + 1):
        table, null = table[:-1], table[-1:]
    elif null is None:
        null = table.mean(0, keepdim=True)
        notes.append(
            "it has no row for 'no label': ours is the mean of the labels'; draw with labels, "
            "without guidance"
        )
    names = names_of(len(table), asked)
    return torch.cat([table, null]) + positions[0], names


def _noise_of_betas(file: Path, betas: Tensor | None, asked: Asked) -> config.Noise:
    """MaskDM's noise, which its checkpoints hold."""
    if betas is None:
        if not asked.process:
            raise UserError(
                f"{file}: its noise is not in the file; give --process vp-linear (CelebA 64×64, "
                "LSUN) or vp-cosine (faces at 256×256)"
            )
        return noise_of(asked, "", 1000)
    bar = torch.cumprod(1 - betas.double(), 0)
    for process in ("vp-linear", "vp-cosine"):
        known = Discrete(process, len(betas)).alphas_cumprod
        if torch.allclose(bar, known, rtol=1e-3, atol=1e-6):
            return noise_of(asked, process, len(betas))
    if asked.process:
        return noise_of(asked, "", len(betas))
    raise UserError(f"{file}: its betas are neither those of vp-linear nor of vp-cosine; ours are")


def _sampling(asked: Asked, space: config.Space, noise: config.Noise) -> config.Sampling:
    """MaskDM's: 250 steps of DDIM's grid with eta 1."""
    chosen = sampling_of(space)
    if asked.kind == "maskdm" and noise.steps >= 250:
        chosen.sampler, chosen.steps = "ancestral", 250
    return chosen
