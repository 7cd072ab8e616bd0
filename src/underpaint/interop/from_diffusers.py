"""Folders of diffusers: `DiTTransformer2DModel`, `UNet2DModel`, `DiTPipeline`, `DDPMPipeline`.

A pipeline's folder says its noise in `scheduler/`, its labels in `id2label` and its autoencoder in
`vae/`; of a network's alone the noise has to be given. A `UNet2DModel` becomes our U-Net: its first
convolution gets the three channels that ours has beside the colours, with weights of zero.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from underpaint import config, factory
from underpaint.bounded import DAMAGE, read_json
from underpaint.errors import UserError
from underpaint.interop import dit_weights, from_dit
from underpaint.interop.importing import (
    Asked,
    Imported,
    check_names,
    count,
    names_of,
    noise_of,
    read_state,
    sampling_of,
)

NETWORKS = {"DiTTransformer2DModel": "transformer", "UNet2DModel": "unet"}  # folder in a pipeline
PIPELINES = {"DiTPipeline": "DiTTransformer2DModel", "DDPMPipeline": "UNet2DModel"}
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}
BETAS = {"linear": "vp-linear", "squaredcos_cap_v2": "vp-cosine"}
EXTRA = 3  # channels of our U-Net beside the colours

Settings = dict[str, Any]


def read(file: Path, asked: Asked) -> Imported:
    """See `importing`; `file` is a folder, or the config.json or model_index.json in it."""
    folder = file if file.is_dir() else file.parent
    pipeline: Settings = {}
    if (folder / "model_index.json").is_file():
        pipeline = _settings(folder / "model_index.json")
        named = pipeline.get("_class_name")
        name = str(named[-1] if isinstance(named, list) and named else named)
        kind = PIPELINES.get(name)
        if kind is None:
            raise UserError(
                f"{folder}: is a pipeline of class {name}; of diffusers' pipelines "
                f"{' and '.join(PIPELINES)} can be imported"
            )
        network = folder / NETWORKS[kind]
    else:
        network = folder
    settings = _settings(network / "config.json")
    kind = str(settings.get("_class_name", ""))
    if not kind:
        raise UserError(
            f"{network}/config.json: names no class of diffusers (_class_name); a model of "
            "underpaint needs no import"
        )
    if kind not in NETWORKS:
        raise UserError(f"{network}: is a {kind}; {' and '.join(NETWORKS)} can be imported")
    noise = _noise(folder, pipeline, asked)
    path = next((network / name for name in WEIGHTS if (network / name).is_file()), None)
    if path is None:
        raise UserError(f"{network}: has no {WEIGHTS[0]}; give a folder with its weights in one")
    labels = pipeline.get("id2label") or {}
    known = tuple(str(labels[key]) for key in sorted(labels, key=int))
    if kind == "UNet2DModel":
        return _unet(path, settings, noise, asked)
    asked = _with_vae(folder / "vae", pipeline, asked)
    return _dit(path, settings, noise, asked, known)


def _settings(path: Path) -> Settings:
    try:
        found = read_json(path)
    except DAMAGE:
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path}: is missing or no JSON; give the folder of a model of diffusers")
    return found


def _noise(folder: Path, pipeline: Settings, asked: Asked) -> config.Noise:
    """What the pipeline's scheduler says, or the user."""
    path = folder / "scheduler" / "scheduler_config.json"
    if asked.process:
        return noise_of(asked, "", 1000)
    if not pipeline or not path.is_file():
        raise UserError(
            f"{folder}: its noise is in no scheduler/ here; give --process, as vp-linear for DDPM's"
        )
    given = _settings(path)
    name = str(given.get("_class_name"))
    shift = given.get("flow_shift" if given.get("use_flow_sigmas") else "shift", 1.0)
    if name.startswith("Flow") or given.get("use_flow_sigmas"):
        return dataclasses.replace(noise_of(asked, "flow", 0), shift=float(shift or 1.0))
    steps, schedule = given.get("num_train_timesteps", 1000), given.get("beta_schedule", "linear")
    ends = given.get("beta_start", 1e-4), given.get("beta_end", 0.02)
    ours = schedule in BETAS and steps == 1000 and given.get("trained_betas") is None
    if not ours or (schedule == "linear" and ends != (1e-4, 0.02)):
        raise UserError(
            f"{path}: its {steps} steps of {schedule} noise ({ends[0]:g} to {ends[1]:g}) are none "
            "of ours, which are 1000 of linear (0.0001 to 0.02) or squaredcos_cap_v2"
        )
    predicted = PREDICTIONS.get(str(given.get("prediction_type", "epsilon")), "")
    if not predicted:
        raise UserError(f"{path}: prediction_type {given.get('prediction_type')} is none of ours")
    return noise_of(asked, BETAS[schedule], 1000, predicted)


# --- DiT -----------------------------------------------------------------------------------------


def _with_vae(folder: Path, pipeline: Settings, asked: Asked) -> Asked:
    """With the pipeline's autoencoder, if there is one and it is not our identity of pixels."""
    if asked.vae or not pipeline or not (folder / "config.json").is_file():
        return asked
    settings = _settings(folder / "config.json")
    if settings.get("num_decoder_blocks") == [0] and settings.get("scaling_factor") == 100:
        return asked  # diffusers.py's
    return dataclasses.replace(asked, vae=str(folder))


def _dit(
    path: Path, settings: Settings, noise: config.Noise, asked: Asked, known: tuple[str, ...]
) -> Imported:
    state = read_state(path)
    depth = count(state, r"transformer_blocks\.(\d+)\.")
    check_names(path, state, dit_weights.diffusers_names(depth))
    expected = {
        "norm_type": "ada_norm_zero",
        "norm_elementwise_affine": False,
        "activation_fn": "gelu-approximate",
    }
    _check(path, settings, expected)
    notes = []
    eps = settings.get("norm_eps", 1e-5)
    if eps != 1e-6:
        notes.append(f"norm_eps {eps:g} of the MLPs' norms becomes 1e-06, as in all others")
    side = settings.get("sample_size", 32) // settings.get("patch_size", 2)
    asked = dataclasses.replace(asked, heads=settings.get("num_attention_heads", 16))
    authors = dit_weights.from_diffusers(state, depth)
    return from_dit.convert(authors, depth, asked, noise, notes, patches=side**2, known=known)


# --- U-Net ---------------------------------------------------------------------------------------

UNET = {  # what ours always is
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "mid_block_type": "UNetMidBlock2D",
    "mid_block_scale_factor": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "act_fn": "silu",
    "attn_norm_num_groups": None,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_train_timesteps": None,
}
TABLE = "unet.class_embedding.weight"
OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # of attention


def _unet(path: Path, settings: Settings, noise: config.Noise, asked: Asked) -> Imported:
    state = {_renamed(name): tensor for name, tensor in read_state(path).items()}
    _check(path, settings, UNET)
    widths = [int(w) for w in settings.get("block_out_channels", (224, 448, 672, 896))]
    if any(w % widths[0] for w in widths):
        raise UserError(f"{path}: widths {widths} are not whole multiples of the first, as ours")
    attention = _attention(path, settings, len(widths))
    heads = settings.get("attention_head_dim", 8)
    attending = {widths[level] for level in (*attention, len(widths) - 1)}
    if heads is None and len(attending) > 1:
        raise UserError(
            f"{path}: its heads have several widths, {sorted(attending)}; ours have one"
        )
    channels, size = int(settings.get("in_channels", 3)), _size(path, settings, asked)
    outputs = int(settings.get("out_channels", 3))
    notes = []
    if outputs == 2 * channels:
        notes.append("its last convolution's variances are left out: our samplers have no use")
    elif outputs != channels:
        raise UserError(f"{path}: takes {channels} channels and gives {outputs}; ours as many")
    classes = int(settings.get("num_class_embeds") or 0)
    names = names_of(classes, asked) if classes else ()
    patch = next(p for p in (4, 2, 1) if not (size[0] % p or size[1] % p))
    spec = config.ModelSpec(
        size=size,
        channels=channels,
        label_names=names,
        space=config.Space(patch=patch),
        network=config.Network(
            kind="unet",
            width=widths[0],
            depth=int(settings.get("layers_per_block", 2)),
            heads=1,
            dropout=float(settings.get("dropout", 0.0)),
            labels=bool(classes),
            options={
                "multipliers": tuple(w // widths[0] for w in widths),
                "attention": attention,
                "groups": int(settings.get("norm_num_groups", 32)),
                "head_width": int(heads or min(attending)),
                "norm_eps": float(settings.get("norm_eps", 1e-5)),
                "padding": int(settings.get("downsample_padding", 1)),
                "freq_shift": int(settings.get("freq_shift", 0)),
                "cosines_first": bool(settings.get("flip_sin_to_cos", True)),
            },
        ),
        noise=noise,
        sampling=sampling_of(config.Space()),
    )
    ours = factory.unallocated_network(spec).state_dict()
    theirs = [name for name in ours if name.startswith("unet.")]
    found = {f"unet.{name}": tensor for name, tensor in state.items()}
    check_names(path, found, [*theirs, *([TABLE] if classes else [])])
    if classes:
        table = found.pop(TABLE)
        found["labels.weight"] = torch.cat([table, table.mean(0, keepdim=True)])
        notes.append(
            "it has no row for 'no label': ours is the mean of the labels'; draw with labels, "
            "without guidance"
        )
    first = found["unet.conv_in.weight"]
    zeros = first.new_zeros(len(first), EXTRA, *first.shape[2:])
    found["unet.conv_in.weight"] = torch.cat([first, zeros], dim=1)
    for kind in ("weight", "bias"):
        found[f"unet.conv_out.{kind}"] = found[f"unet.conv_out.{kind}"][:channels].clone()
    for name, tensor in ours.items():  # attention of old was a convolution of 1×1
        if found[name].shape != tensor.shape and found[name].numel() == tensor.numel():
            found[name] = found[name].reshape(tensor.shape)
    return Imported(spec, found, notes)


def _renamed(name: str) -> str:
    """With the names that layers of attention have today."""
    parts = name.split(".")
    if "attentions" in parts and parts[-2] in OLD:
        parts[-2] = OLD[parts[-2]]
    return ".".join(parts)


def _attention(path: Path, settings: Settings, levels: int) -> tuple[int, ...]:
    """The levels with attention, which are the same on both sides."""
    down = settings.get("down_block_types") or ("DownBlock2D", *["AttnDownBlock2D"] * 3)
    up = settings.get("up_block_types") or (*["AttnUpBlock2D"] * 3, "UpBlock2D")
    known = {"DownBlock2D", "AttnDownBlock2D", "UpBlock2D", "AttnUpBlock2D"}
    others = sorted({*down, *up} - known)
    if others:
        raise UserError(f"{path}: has a {others[0]}; our U-Net knows {', '.join(sorted(known))}")
    found = tuple(i for i, name in enumerate(down) if name.startswith("Attn"))
    mirrored = tuple(i for i, name in enumerate(reversed(up)) if name.startswith("Attn"))
    if found != mirrored or len(down) != levels or len(up) != levels:
        raise UserError(f"{path}: has attention at other levels on its way up than down; ours not")
    return found


def _size(path: Path, settings: Settings, asked: Asked) -> tuple[int, int]:
    given = asked.size or settings.get("sample_size")
    if not given:
        raise UserError(f"{path}: its size is not in config.json; give --size")
    sides = [given] if isinstance(given, int) else list(given)
    return int(sides[0]), int(sides[-1])


def _check(path: Path, settings: Settings, expected: Settings) -> None:
    """Raise UserError for the first setting that is there and is another than ours."""
    for name, value in expected.items():
        if settings.get(name, value) != value:
            raise UserError(f"{path}: has {name} {settings[name]}; in our network it is {value}")
