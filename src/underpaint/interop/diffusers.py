"""`--to diffusers`: a folder for `DiffusionPipeline.from_pretrained`.

A DiT that diffusers has a pipeline of its own for becomes that pipeline (`why_not_stock` says which
do not). Every other model comes with two files of code that need torch and diffusers alone:
`pipeline.py`, which draws as we do, and beside its weights the network. They are made of our own
modules (`bundle`) and are loaded with `trust_remote_code=True`.

    model_index.json   README.md
    stock:   transformer/   scheduler/   vae/
    other:   pipeline.py    denoiser/{KIND_denoiser.py, config.json, …safetensors}   (vae/)
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from underpaint._version import __version__
from underpaint.core.samplers import Sampling
from underpaint.errors import UserError
from underpaint.interop import dit_weights
from underpaint.interop.bundle import bundle
from underpaint.model import Model

INSTEAD = {
    "underpaint.backbones.base.Backbone": '''\
class Backbone(nn.Module):
    """What the networks share."""

    predicts_hidden = False
    stride = 1
    unit = 1

    def __init__(self, grid: tuple[int, int], patch_dim: int, classes: int) -> None:
        super().__init__()
        self.grid, self.patch_dim, self.classes = grid, patch_dim, classes''',
}
HEAD = '''\
"""{what}

Written by underpaint {version} from its own sources (MIT licence); needs torch and diffusers alone.
"""

'''


def check(model: Model) -> None:
    """Raise UserError where diffusers or the model's autoencoder is missing."""
    try:
        import diffusers  # noqa: F401
    except ImportError:
        raise UserError(
            "--to diffusers needs diffusers; type pip install 'underpaint[diffusers]'"
        ) from None
    if model.vae is not None:
        _ = model.vae.module  # raises


def write(model: Model, folder: Path, half: bool) -> dict[str, Any]:
    """Fill `folder`; returns which pipeline it holds and, if that is ours, why.

    Raises UserError for weights that float16 cannot hold, if `half`.
    """
    largest = max(float(x.abs().max()) for x in model.backbone.state_dict().values())
    if half and largest > torch.finfo(torch.float16).max:
        raise UserError(f"a weight of {largest:g} does not fit float16; leave --half out")
    reason = why_not_stock(model)
    if reason:
        _write_ours(model, folder, half)
    else:
        _write_stock(model, folder, half)
    (folder / "README.md").write_text(_readme(model, bool(reason)), encoding="utf-8")
    mode = (folder / "README.md").stat().st_mode & 0o777
    for file in folder.rglob("*.safetensors"):
        file.chmod(mode)  # safetensors writes files that only their owner can read
    return {"pipeline": "pipeline.py" if reason else "DiTPipeline", "because": reason}


def why_not_stock(model: Model) -> str:
    """Why diffusers' own DiTPipeline cannot draw what the model draws; empty if it can."""
    spec, network, noise = model.spec, model.spec.network, model.spec.noise
    if network.kind != "dit":
        return f"diffusers has no pipeline for a network of kind {network.kind}"
    if not model.label_names:
        return "its DiTPipeline needs labels"
    if len(model.label_names) > dit_weights.NULL_CLASS:
        return f"its DiTPipeline has {dit_weights.NULL_CLASS:,} labels at most"
    if network.qk_norm or network.mlp_ratio != 4:
        return "its DiT has no norms of queries and keys, and an mlp_ratio of 4"
    _, height, width = model.space.cut
    if height != width:
        return "its DiT takes square images alone"
    if spec.space.kind == "wavelets" or (spec.space.kind == "pixels" and spec.channels == 4):
        return "its DiTPipeline knows neither wavelets nor transparency"
    if model.vae is not None and model.vae.shift:
        return "its DiTPipeline does not shift latents"
    state = model.backbone.state_dict()
    for name, count in (("rows", model.space.grid[0]), ("columns", model.space.grid[1])):
        found = state[f"positions.{name}"].cpu()
        if not torch.equal(found, torch.arange(count, dtype=found.dtype)):
            return "its positions are those of another size"
    if noise.process == "flow" and noise.prediction == "flow":
        import diffusers

        known = hasattr(diffusers, "FlowMapEulerDiscreteScheduler")
        return "" if known else "diffusers before 0.42 has no scheduler for it"
    if noise.process in BETAS and noise.steps == 1000 and noise.prediction in PREDICTIONS:
        return ""
    return (
        f"it has no faithful scheduler for noise.process {noise.process} with "
        f"noise.prediction {noise.prediction}"
    )


# --- as diffusers has it -------------------------------------------------------------------------

BETAS = {"vp-linear": "linear", "vp-cosine": "squaredcos_cap_v2"}
PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


def _write_stock(model: Model, folder: Path, half: bool) -> None:
    from diffusers import DiTPipeline, DiTTransformer2DModel

    network, patch = model.spec.network, model.spec.space.patch
    channels, side, _ = model.space.cut
    transformer = DiTTransformer2DModel(
        num_attention_heads=network.heads,
        attention_head_dim=network.width // network.heads,
        in_channels=channels,
        out_channels=channels,
        num_layers=network.depth,
        sample_size=side,
        patch_size=patch,
        num_embeds_ada_norm=dit_weights.NULL_CLASS,
        norm_eps=1e-6,
    )
    state = {name: x.cpu() for name, x in model.backbone.state_dict().items()}
    transformer.load_state_dict(dit_weights.to_diffusers(state, network.depth, patch))
    pipeline = DiTPipeline(
        transformer=transformer.half() if half else transformer,
        vae=_identity(channels) if model.vae is None else _autoencoder(model),
        scheduler=_scheduler(model),
    )
    pipeline.save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    index["id2label"] = {str(i): name for i, name in enumerate(model.label_names)}
    _write_json(folder / "model_index.json", index)


def _scheduler(model: Model) -> Any:
    """At whose levels its sampler does what ours does there.

    Flow: Euler, without clipping x0. By no other, since DPM-Solver rounds 1000 t to whole numbers,
    and `FlowMatchEulerDiscreteScheduler` lacks a method that DiTPipeline calls. Else DPM-Solver++,
    of order 2, or 1 where the model's sampler is euler; x0 is clipped as ours is.
    """
    from diffusers import DPMSolverMultistepScheduler, FlowMapEulerDiscreteScheduler

    noise, sampling = model.spec.noise, model.spec.sampling
    if noise.process == "flow":
        return FlowMapEulerDiscreteScheduler(shift=noise.shift)
    return DPMSolverMultistepScheduler(
        beta_schedule=BETAS[noise.process],
        beta_start=1e-4,
        beta_end=0.02,
        prediction_type=PREDICTIONS[noise.prediction],
        solver_order=1 if sampling.sampler == "euler" else 2,
        thresholding=sampling.clip == "static",  # to [-1, 1], where at most 1 is allowed
        sample_max_value=1.0,
    )


def _identity(channels: int) -> Any:
    """An autoencoder that hands pixels on: DiTPipeline always has one.

    x = ReLU(x) − ReLU(−x) at the middle of each kernel. The decoder begins with 3 tanh(x/3), so x
    comes to it as x / 100.
    """
    from diffusers import AutoencoderTiny

    vae = AutoencoderTiny(
        in_channels=channels,
        out_channels=channels,
        encoder_block_out_channels=(1,),
        decoder_block_out_channels=(2 * channels,),
        num_encoder_blocks=(0,),
        num_decoder_blocks=(0,),
        latent_channels=channels,
        scaling_factor=100.0,
    )
    into, _, out = vae.decoder.layers
    for parameter in vae.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        for c in range(channels):
            into.weight[2 * c, c, 1, 1], into.weight[2 * c + 1, c, 1, 1] = 1, -1
            # what comes out is doubled, and 1 taken off
            out.weight[c, 2 * c, 1, 1], out.weight[c, 2 * c + 1, 1, 1] = 50, -50
            out.bias[c] = 0.5
    return vae


def _autoencoder(model: Model) -> Any:
    """The model's, without the path that it was read from."""
    assert model.vae is not None
    module = model.vae.module.cpu()
    module.register_to_config(_name_or_path="")
    return module


# --- with our pipeline ---------------------------------------------------------------------------


def _write_ours(model: Model, folder: Path, half: bool) -> None:
    import diffusers

    spec, noise = model.spec, model.spec.noise
    kind = f"{spec.network.kind}_denoiser"
    cls, arguments = model.backbone.built
    denoiser = folder / "denoiser"
    denoiser.mkdir()
    config = {
        "_class_name": "ImageDenoiser",
        "_diffusers_version": diffusers.__version__,
        "network": dict(arguments),
        "noise": {
            name: getattr(noise, name)
            for name in ("process", "time", "steps", "shift", "sigma_data")
        },
        "prediction": noise.prediction,
        "space": {
            "kind": spec.space.kind,
            "size": spec.size,
            "channels": spec.channels,
            **{n: getattr(spec.space, n) for n in ("patch", "levels", "factor", "latent_channels")},
        },
    }
    _write_json(denoiser / "config.json", config)
    (denoiser / f"{kind}.py").write_text(denoiser_text(cls), encoding="utf-8")
    state = {f"denoiser.{k}": _kept(x, half) for k, x in model.denoiser.state_dict().items()}
    save_file(state, denoiser / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    if model.vae is not None:
        _autoencoder(model).save_pretrained(folder / "vae")
    (folder / "pipeline.py").write_text(pipeline_text(), encoding="utf-8")
    sampling = {
        field.name: getattr(spec.sampling, field.name) for field in dataclasses.fields(Sampling)
    }
    index = {
        "_class_name": ["pipeline", "UnderpaintPipeline"],
        "_diffusers_version": diffusers.__version__,
        "denoiser": [kind, "ImageDenoiser"],
        "vae": [None, None] if model.vae is None else ["diffusers", model.vae.kind],
        "label_names": model.label_names,
        "sampling": sampling,
    }
    _write_json(folder / "model_index.json", index)


def denoiser_text(network: Any) -> str:
    """`denoiser/KIND_denoiser.py` for this class of network."""
    what = "A denoiser: noisy patches of images → clean ones."
    return HEAD.format(what=what, version=__version__) + bundle(
        "underpaint.interop.diffusers_denoiser",
        also=[(network, "NETWORK")],
        instead=INSTEAD,
        dropped=("register",),
    )


def pipeline_text() -> str:
    """`pipeline.py`."""
    what = "A pipeline: images, drawn as `underpaint sample` draws."
    text = bundle("underpaint.interop.diffusers_pipeline")
    return HEAD.format(what=what, version=__version__) + text


def _kept(tensor: Tensor, half: bool) -> Tensor:
    tensor = tensor.detach().cpu()
    return (tensor.half() if half else tensor).contiguous()


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


# --- how to load it ------------------------------------------------------------------------------


def _readme(model: Model, ours: bool) -> str:
    """README.md of the folder."""
    labels = list(model.label_names)
    trust = ", trust_remote_code=True" if ours else ""
    if ours:
        asked = f"labels={labels[:2]!r}, " if labels else ""
        seeds = "[torch.Generator().manual_seed(i) for i in range(4)]"
        call = f"pipe(batch_size=4, {asked}generator={seeds})"
        more = (
            "It draws what `underpaint sample --seed 0` draws. `help(pipe.__call__)` says what "
            "else can be asked for. The code in this folder is underpaint's (MIT licence)."
        )
    else:
        call = (
            f"pipe(pipe.get_label_ids({labels[:2]!r}), guidance_scale=1.0, num_inference_steps=50)"
        )
        more = "Labels: " + ", ".join(labels) + "."
    return f"""# A model trained with underpaint

```python
import torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("this/folder"{trust})
images = {call}.images
images[0].save("sample.png")
```

{more}
"""
