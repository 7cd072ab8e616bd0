"""A checkpoint of another software, imported, computes what it computed there."""

import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    UNet2DModel,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

import underpaint as up
from tests import systems
from tests.interop import uvit_reference
from tests.interop.models import small
from underpaint import model as models
from underpaint.cli import main
from underpaint.interop import diffusers as form
from underpaint.interop import dit_weights
from underpaint.interop.importing import import_model

torch.set_num_threads(1)

SIGMA = torch.tensor([0.3, 2.0, 9.0])


def noisy(*shape: int) -> Tensor:
    """Images x0 + sigma n, three of them."""
    n = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    return n * (0.25 + SIGMA.view(-1, 1, 1, 1) ** 2).sqrt()


def imported(file: Path, kind: str, out: Path, **asked: Any) -> models.Model:
    import_model(file, kind, out, **asked)
    return up.load(out)


def of_eps(x: Tensor, eps: Callable[[Tensor], Tensor]) -> Tensor:
    """x0 by a network that predicts eps of x_t = x/√(1+σ²)."""
    s = SIGMA.view(-1, 1, 1, 1)
    return x - s * eps(x / (1 + s**2).sqrt())


def assert_same(found: Tensor, wanted: Tensor) -> None:
    assert wanted.std() > 0.05
    assert (found - wanted).abs().max() <= 2e-5 * wanted.abs().max()


# --- U-ViT and MaskDM ----------------------------------------------------------------------------


@pytest.mark.parametrize("conv", [True, False])
@pytest.mark.parametrize("classes", [0, 4])
def test_uvit(conv: bool, classes: int, tmp_path: Path) -> None:
    """As published in pixels: continuous VP-linear noise, eps, times 999 t."""
    state = uvit_reference.weights(width=32, depth=4, patch=2, side=8, classes=classes, conv=conv)
    torch.save(state, tmp_path / "nnet_ema.pth")
    model = imported(tmp_path / "nnet_ema.pth", "uvit", tmp_path / "out", heads=2)
    assert model.spec.size == (8, 8)
    assert model.spec.network.depth == 5
    x, y = noisy(3, 8, 8), torch.tensor([2, 0, 3]) if classes else None
    B = torch.log1p(SIGMA**2)  # = 0.1 t + 9.95 t²
    t = (-0.1 + torch.sqrt(0.01 + 4 * 9.95 * B)) / (2 * 9.95)
    wanted = of_eps(x, lambda x_t: uvit_reference.forward(state, x_t, 999 * t, y, 2))
    assert_same(model.denoise(x, SIGMA, None if y is None else y.tolist()), wanted)
    assert model.sample(2, steps=2, labels=[1] if classes else None).shape == (2, 8, 8, 3)


def test_the_last_label_of_1001_is_none(tmp_path: Path) -> None:
    state = uvit_reference.weights(width=16, depth=2, patch=4, side=8, classes=1001, conv=False)
    save_file(state, tmp_path / "x.safetensors")
    found = import_model(tmp_path / "x.safetensors", "uvit", tmp_path / "out", heads=2)
    assert found["notes"] == []
    model = up.load(tmp_path / "out")
    assert len(model.label_names) == 1000
    null = state["label_emb.weight"][1000] + state["pos_embed"][0, 0]
    assert torch.equal(model.backbone.labels.weight[-1], null)


def maskdm(classes: int = 0, conv: bool = False, prefix: str = "") -> dict[str, Tensor]:
    """MaskedUViT's names."""
    state = uvit_reference.weights(width=32, depth=4, patch=2, side=8, classes=classes, conv=conv)
    named = {}
    for name, tensor in state.items():
        if name.startswith("decoder_pred"):
            name = name.replace("decoder_pred", "encoder_to_output")
        elif not name.startswith("final_layer"):
            name = "encoder." + name.replace("pos_embed", "encoder_pos_embed")
        named[prefix + name] = tensor
    return named


@pytest.mark.parametrize("schedule", ["vp-linear", "vp-cosine"])
def test_maskdm(schedule: str, tmp_path: Path) -> None:
    """Its training checkpoint, with the average and the betas of its GaussianDiffusion."""
    k = torch.arange(1001, dtype=torch.float64)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    if schedule == "vp-cosine":
        bar = torch.cos((k / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = (1 - bar[1:] / bar[:-1]).clamp(0, 0.999)
    state = maskdm()
    average = {f"ema_model.model.{k}": v for k, v in state.items()}
    trained = {f"model.{k}": 2 * v for k, v in state.items()}
    checkpoint = {
        "step": 5,
        "model": trained | {"betas": betas.float()},
        "ema": average | {"ema_model.betas": betas.float(), "initted": torch.tensor([True])},
        "opt": {"state": {}, "param_groups": []},
        "scaler": None,
    }
    torch.save(checkpoint, tmp_path / "model-1.pt")
    model = imported(tmp_path / "model-1.pt", "maskdm", tmp_path / "out", heads=2)
    noise = model.spec.noise
    assert (noise.process, noise.prediction, noise.steps) == (schedule, "eps", 1000)
    assert (model.sampling.sampler, model.sampling.steps) == ("ancestral", 250)
    c_noise = model.denoiser.process.c_noise(SIGMA)
    plain = uvit_reference.weights(width=32, depth=4, patch=2, side=8, conv=False)
    x = noisy(3, 8, 8)
    wanted = of_eps(x, lambda x_t: uvit_reference.forward(plain, x_t, c_noise, None, 2))
    assert_same(model.denoise(x, SIGMA), wanted)
    other = imported(
        tmp_path / "model-1.pt", "maskdm", tmp_path / "trained", heads=2, weights="model"
    )
    assert torch.equal(other.backbone.head.bias, 2 * model.backbone.head.bias)


def test_maskdms_second_stage_is_one_command(tmp_path: Path, faces: Path) -> None:
    torch.save(maskdm(), tmp_path / "stage1.pt")
    flags = ["--as", "maskdm", "--process", "vp-linear", "--heads", "2", "--quiet"]
    assert main(["import", str(tmp_path / "stage1.pt"), *flags, "--out", str(tmp_path / "m")]) == 0
    run = ["--from", tmp_path / "m", "--data", faces, "--out", tmp_path / "run", "--quiet"]
    short = {"stages.whole.images": 16, "stages.whole.batch": 8, "sampling.steps": 2}
    short |= {"train.check_every": -1, "train.sample_every": -1, "train.threads": 1}
    flags = [str(x) for name, value in short.items() for x in (f"--{name}", value)]
    assert main(["finetune", *map(str, run), "--no-labels", *flags]) == 0
    tuned, first = up.load(tmp_path / "run"), up.load(tmp_path / "m")
    assert tuned.spec.network == first.spec.network
    moved = (tuned.backbone.head.weight - first.backbone.head.weight).abs().max()
    assert 0 < moved < 0.01


# --- DiT -----------------------------------------------------------------------------------------


def stirred(module: Any) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module.eval()


def dit(channels: int = 3, outputs: int = 6, classes: int = 5, **more: Any) -> Any:
    module = stirred(
        DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=channels,
            out_channels=outputs,
            num_layers=2,
            sample_size=8,
            patch_size=2,
            num_embeds_ada_norm=classes,
            **{"norm_eps": 1e-6, **more},
        )
    )
    first = module.transformer_blocks[0].norm1.emb  # one time and one label for all blocks
    for block in module.transformer_blocks:
        block.norm1.emb.load_state_dict(first.state_dict())
    return module


def x0_of(module: Any, model: models.Model, x: Tensor, labels: Tensor) -> Tensor:
    c_noise, C = model.denoiser.process.c_noise(SIGMA), x.shape[1]
    with torch.no_grad():
        return of_eps(x, lambda x_t: module(x_t, c_noise, labels).sample[:, :C])


LABELS, ASKED = torch.tensor([4, 0, 5]), [4, 0, -1]  # the last is null


def test_dit_by_its_authors_names(tmp_path: Path) -> None:
    module = dit()
    state = dit_weights.from_diffusers(module.state_dict(), 2)
    published = {
        *("x_embedder.proj.weight", "t_embedder.mlp.0.bias", "t_embedder.mlp.2.weight"),
        *("y_embedder.embedding_table.weight", "blocks.1.attn.qkv.bias", "blocks.0.attn.proj.bias"),
        *("blocks.0.mlp.fc1.weight", "blocks.1.mlp.fc2.bias", "blocks.1.adaLN_modulation.1.bias"),
        *("final_layer.linear.weight", "final_layer.adaLN_modulation.1.weight"),
    }
    assert published <= state.keys()
    state["pos_embed"] = module.pos_embed.pos_embed
    torch.save({"ema": state, "model": {}, "args": None}, tmp_path / "dit.pt")
    model = imported(tmp_path / "dit.pt", "dit", tmp_path / "out", heads=2)
    assert (model.spec.noise.process, model.spec.noise.steps) == ("vp-linear", 1000)
    x = noisy(3, 8, 8)
    assert_same(model.denoise(x, SIGMA, ASKED), x0_of(module, model, x, LABELS))
    del state["pos_embed"]
    torch.save(state, tmp_path / "dit.pt")
    other = imported(tmp_path / "dit.pt", "dit", tmp_path / "sized", heads=2, size=(8, 8))
    assert torch.equal(other.denoise(x, SIGMA, ASKED), model.denoise(x, SIGMA, ASKED))


def test_a_dit_of_diffusers(tmp_path: Path) -> None:
    module = dit(outputs=3)
    module.save_pretrained(tmp_path / "dit")
    model = imported(tmp_path / "dit", "diffusers", tmp_path / "out", process="vp-cosine")
    x = noisy(3, 8, 8)
    assert_same(model.denoise(x, SIGMA, ASKED), x0_of(module, model, x, LABELS))


def test_a_pipeline_of_latents(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    module = dit(channels=4, outputs=8, norm_eps=1e-5)
    vae = AutoencoderKL.from_pretrained(systems.save_autoencoder(tmp_path / "vae"))
    scheduler = DDIMScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02)
    DiTPipeline(module, vae, scheduler).save_pretrained(tmp_path / "pipe")
    index = json.loads((tmp_path / "pipe/model_index.json").read_text())
    index["id2label"] = {"1": "dog", "0": "cat", "2": "cow", "10": "hen", "4": "pig"}
    (tmp_path / "pipe/model_index.json").write_text(json.dumps(index))
    found = import_model(tmp_path / "pipe", "diffusers", tmp_path / "out")
    assert any("norm_eps" in note for note in found["notes"])
    assert any("variances" in note for note in found["notes"])
    model = up.load(tmp_path / "out", vae=tmp_path / "pipe/vae")
    assert model.label_names == ("cat", "dog", "cow", "pig", "hen")
    assert model.spec.size == (16, 16)
    x = noisy(4, 8, 8)
    wanted = x0_of(module, model, x, LABELS)
    assert (model.denoise(x, SIGMA, ASKED) - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    assert model.sample(1, steps=2, labels=["hen"]).shape == (1, 16, 16, 3)


def test_what_was_exported_comes_back(tmp_path: Path) -> None:
    model = small("dit", noise={"shift": 2.0})
    (tmp_path / "pipe").mkdir()
    form.write(model, tmp_path / "pipe", half=False)
    back = imported(tmp_path / "pipe", "diffusers", tmp_path / "out")
    assert back.label_names == model.label_names
    assert back.spec.noise.shift == 2
    x = noisy(3, 8, 8)
    found, wanted = (m.denoise(x, SIGMA, [0, 2, -1]) for m in (back, model))
    assert_same(found, wanted)


# --- U-Net ---------------------------------------------------------------------------------------

UNETS: dict[str, dict[str, Any]] = {
    "diffusers' defaults": {"block_out_channels": (32, 32, 64, 64)},
    "ddpm": {
        "block_out_channels": (32, 64),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "freq_shift": 1,
        "flip_sin_to_cos": False,
        "downsample_padding": 0,
        "norm_eps": 1e-6,
        "attention_head_dim": None,
        "layers_per_block": 1,
    },
    "grey, with classes": {
        "block_out_channels": (32, 32),
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "in_channels": 1,
        "out_channels": 2,
        "norm_num_groups": 8,
        "num_class_embeds": 3,
        "layers_per_block": 1,
    },
}


@pytest.mark.parametrize("kind", UNETS)
def test_a_unet_of_diffusers(kind: str, tmp_path: Path) -> None:
    module = stirred(UNet2DModel(sample_size=8, **UNETS[kind]))
    if kind == "ddpm":
        DDPMPipeline(module, DDPMScheduler(beta_schedule="linear")).save_pretrained(tmp_path / "x")
        model = imported(tmp_path / "x", "diffusers", tmp_path / "out")
    else:
        module.save_pretrained(tmp_path / "x", safe_serialization=kind != "grey, with classes")
        model = imported(tmp_path / "x", "diffusers", tmp_path / "out", process="vp-linear")
    C = module.config.in_channels
    labels = torch.tensor([2, 0, 1]) if module.config.num_class_embeds else None
    x, c_noise = noisy(C, 8, 8), model.denoiser.process.c_noise(SIGMA)
    with torch.no_grad():
        wanted = of_eps(x, lambda x_t: module(x_t, c_noise, labels).sample[:, :C])
    found = model.denoise(x, SIGMA, None if labels is None else labels.tolist())
    assert_same(found, wanted)


def test_layers_of_attention_by_their_old_names(tmp_path: Path) -> None:
    module = stirred(UNet2DModel(sample_size=8, **UNETS["ddpm"]))
    module.save_pretrained(tmp_path / "x")
    new = imported(tmp_path / "x", "diffusers", tmp_path / "new", process="vp-linear")
    path = tmp_path / "x/diffusion_pytorch_model.safetensors"
    state = load_file(path)
    for old, name in (
        ("query", "to_q"),
        ("key", "to_k"),
        ("value", "to_v"),
        ("proj_attn", "to_out.0"),
    ):
        state = {k.replace(f".{name}.", f".{old}."): v for k, v in state.items()}
    save_file(state, path)
    back = imported(tmp_path / "x", "diffusers", tmp_path / "old", process="vp-linear")
    for name, tensor in new.backbone.state_dict().items():
        assert torch.equal(tensor, back.backbone.state_dict()[name])


# --- wrong use -----------------------------------------------------------------------------------


class Harmful:
    def __reduce__(self) -> Any:
        return print, ("this code runs",)


@pytest.fixture
def refused(wrong: Callable[..., str], tmp_path: Path) -> Callable[..., str]:
    def run(state: Any, kind: str = "uvit", *flags: object) -> str:
        path = tmp_path / "x.pt"
        if not isinstance(state, Path):
            torch.save(state, path)
        given = ["import", state if isinstance(state, Path) else path, "--as", kind]
        line = wrong(*given, "--out", tmp_path / "out", *flags)
        assert not (tmp_path / "out").exists()
        return line

    return run


def test_files_that_are_no_tensors(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "nowhere.pt")
    assert "holds Python objects besides" in refused({"x": Harmful()})
    (tmp_path / "old.pt").write_bytes(pickle.dumps(Harmful()))
    assert "holds Python objects besides" in refused(tmp_path / "old.pt")
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04 and no more")
    assert "not all of one" in refused(tmp_path / "cut.pt")
    (tmp_path / "cut.safetensors").write_bytes(b"\x20" + bytes(7) + b'{"x": 1')
    assert "not all of one" in refused(tmp_path / "cut.safetensors")
    (tmp_path / "picture.pt").write_bytes(b"\x89PNG\r\n\x1a\n and a picture")
    assert "is not a checkpoint" in refused(tmp_path / "picture.pt")
    assert "holds no tensors" in refused([1, 2])
    assert "cannot be read" in refused(tmp_path)


def test_names_that_are_missing_or_unknown(refused: Callable[..., str]) -> None:
    state = uvit_reference.weights(width=16, depth=2, patch=4, side=8, conv=True)
    less = {k: v for k, v in state.items() if not k.startswith("mid_block.mlp")}
    line = refused(less, "uvit", "--heads", 2)
    three = "lacks mid_block.mlp.fc1.weight, mid_block.mlp.fc1.bias, mid_block.mlp.fc2.weight"
    assert f"{three} and 1 more" in line
    more = state | {name: torch.zeros(1) for name in ("zoo", "alpha", "mid_block.gate", "x")}
    line = refused(more, "uvit", "--heads", 2)
    assert "alpha, mid_block.gate, x and 1 more" in line
    assert "lacks" in refused(state, "dit")
    assert "lacks" in refused(state, "maskdm", "--process", "vp-linear")
    wrong_shape = state | {"norm.bias": torch.zeros(3)}
    assert "do not fit together" in refused(wrong_shape, "uvit", "--heads", 2)
    broken = state | {"norm.bias": torch.full((16,), math.nan)}
    assert "not finite" in refused(broken, "uvit", "--heads", 2)


def test_what_has_to_be_said(refused: Callable[..., str], tmp_path: Path) -> None:
    state = uvit_reference.weights(width=16, depth=2, patch=4, side=8, conv=True)
    assert "give --heads" in refused(state)
    assert "heads" in refused(state, "uvit", "--heads", 3)
    assert "--size 8 16" in refused(state, "uvit", "--heads", 2, "--size", 8, 16)
    assert "give --process vp-linear" in refused(maskdm(), "maskdm", "--heads", 2)
    named = tmp_path / "names.txt"
    named.write_text("a\nb\n")
    labelled = uvit_reference.weights(width=16, depth=2, patch=4, side=8, classes=4, conv=True)
    line = refused(labelled, "uvit", "--heads", 2, "--labels", named)
    assert "2 names for 4 classes" in line
    latents = uvit_reference.weights(width=16, depth=2, patch=2, side=8, channels=4, conv=True)
    assert "give --vae" in refused(latents, "uvit", "--heads", 2)
    folder = systems.save_autoencoder(tmp_path / "vae")
    line = refused(latents, "uvit", "--heads", 2, "--vae", folder)
    assert "Stable Diffusion" in line
    bare = dit_weights.from_diffusers(dit().state_dict(), 2)
    assert "give --size" in refused(bare, "dit", "--heads", 2)
    bare["pos_embed"] = torch.zeros(1, 16, 16)
    assert "pos_embed is not the fixed one" in refused(bare, "dit", "--heads", 2)
    assert "process 'no'" in refused(maskdm(), "maskdm", "--heads", 2, "--process", "no")


@pytest.mark.parametrize(
    ("name", "reason"),
    {
        "time_embed.0.weight": "MLP on its time token",
        "mid_block.attn.qkv.bias": "no bias on queries",
        "encoder_to_decoder.weight": "no decoder",
        "approx_to_output.weight": "one kind of patches",
    }.items(),
)
def test_networks_that_are_none_of_ours(
    name: str, reason: str, refused: Callable[..., str]
) -> None:
    state = uvit_reference.weights(width=16, depth=2, patch=4, side=8, conv=True)
    assert reason in refused(state | {name: torch.zeros(1)}, "uvit", "--heads", 2)


def test_folders_that_are_none_of_ours(refused: Callable[..., str], tmp_path: Path) -> None:
    folder = tmp_path / "x"
    module = UNet2DModel(sample_size=8, **UNETS["ddpm"])
    module.save_pretrained(folder)
    assert "give --process" in refused(folder, "diffusers")
    settings = json.loads((folder / "config.json").read_text())
    for change, said in {
        ("act_fn", "mish"): "act_fn mish",
        ("block_out_channels", (32, 48)): "whole multiples",
        ("up_block_types", ("UpBlock2D", "AttnUpBlock2D")): "other levels on its way up",
        ("down_block_types", ("SkipDownBlock2D", "DownBlock2D")): "has a SkipDownBlock2D",
        ("out_channels", 5): "takes 3 channels and gives 5",
        ("sample_size", None): "give --size",
        ("_class_name", "UNet2DConditionModel"): "is a UNet2DConditionModel",
    }.items():
        (folder / "config.json").write_text(json.dumps(settings | dict([change])))
        assert said in refused(folder, "diffusers", "--process", "vp-linear")
    (folder / "config.json").write_text("{")
    assert "no JSON" in refused(folder, "diffusers", "--process", "vp-linear")
    (folder / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    assert "of class FluxPipeline" in refused(folder, "diffusers")
    (folder / "model_index.json").write_text('{"_class_name": ["pipeline", "OurPipeline"]}')
    assert "of class OurPipeline; of diffusers'" in refused(folder, "diffusers")
    (folder / "model_index.json").unlink()
    (folder / "config.json").write_text('{"format": 1}')
    assert "a model of underpaint needs no import" in refused(folder, "diffusers")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"beta_schedule": "scaled_linear"}, "of scaled_linear noise"),
        ({"beta_end": 0.012}, "0.0001 to 0.012"),
        ({"num_train_timesteps": 4000}, "4000 steps"),
        ({"prediction_type": "score"}, "prediction_type score"),
    ],
)
def test_noise_that_is_none_of_ours(
    change: dict[str, Any], said: str, refused: Callable[..., str], tmp_path: Path
) -> None:
    module = UNet2DModel(sample_size=8, **UNETS["ddpm"])
    DDPMPipeline(module, DDPMScheduler()).save_pretrained(tmp_path / "x")
    path = tmp_path / "x/scheduler/scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert said in refused(tmp_path / "x", "diffusers")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = uvit_reference.weights(width=64, depth=2, patch=4, side=8, classes=2, conv=False)
    save_file(state, tmp_path / "x.safetensors")
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    out = tmp_path / "out"
    given = ["import", tmp_path / "x.safetensors", "--as", "uvit", "--out", out]
    given = [*map(str, given), "--labels", str(tmp_path / "names.txt")]
    assert main(given) == 0
    printed = capsys.readouterr().out
    assert "<Model uvit" in printed
    assert "vp-linear, predicts eps" in printed
    assert "no row for 'no label'" in printed
    assert up.load(out).label_names == ("cat", "dog")
    assert main(given) == 2
    assert "add --overwrite" in capsys.readouterr().err
    assert main([*given, "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["as"] == "uvit"
    assert (
        main(["sample", str(out), "-n", "2", "--steps", "2", "--out", str(tmp_path / "s.png")]) == 0
    )
