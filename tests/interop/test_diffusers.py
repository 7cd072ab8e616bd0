"""An exported folder draws in diffusers what the model draws here."""

import ast
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import dynamic_modules_utils

from tests import systems
from tests.interop.models import small
from tests.toy import toy  # noqa: F401
from underpaint import model as models
from underpaint.cli import main
from underpaint.core import masks, samplers, spaces
from underpaint.core.guidance import guided
from underpaint.interop import diffusers as form

torch.set_num_threads(1)
pytestmark = [
    pytest.mark.usefixtures("toy", "modules"),
    pytest.mark.filterwarnings("ignore:.*accelerate.*"),
]


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where diffusers copies code to before it runs it."""
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])


def written(model: models.Model, folder: Path, half: bool = False) -> dict[str, Any]:
    form.check(model)
    folder.mkdir()
    return form.write(model, folder, half)


def load(folder: Path) -> Any:
    pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeds(n: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(n)]


def drawn(pipeline: Any, n: int, **asked: Any) -> np.ndarray:
    """uint8 [n, H, W, C], of the seeds 0, 1, …"""
    images = pipeline(n, generator=seeds(n), **asked).images
    return np.stack([np.atleast_3d(np.asarray(image)) for image in images])


# --- our pipeline --------------------------------------------------------------------------------

VE = {"process": "ve", "prediction": "score", "time": "log-uniform"}
DDPM = {"process": "vp-cosine", "prediction": "eps", "steps": 1000, "time": "uniform"}
EDM = {"process": "edm", "prediction": "edm", "time": "log-normal"}
V = {"process": "vp-linear", "prediction": "v", "time": "uniform"}
OURS: dict[str, dict[str, Any]] = {
    "hourglass": {"noise": {"prediction": "x0"}, "sampling": {"guidance": 2.0, "steps": 3}},
    "uvit": {"noise": DDPM, "sampling": {"sampler": "ancestral", "clip": "dynamic"}},
    "maskdit": {"noise": EDM, "sampling": {"sampler": "churn", "grid": "karras"}},
    "unet": {"noise": VE, "labels": (), "sampling": {"sampler": "pc", "clip": "none"}},
    "dit": {"noise": V, "labels": (), "sampling": {"sampler": "dpm++", "grid": "log-snr"}},
    "toy": {"depth": 1, "sampling": {"sampler": "euler"}},
}


@pytest.mark.parametrize("kind", OURS)
def test_our_pipeline_draws_what_the_model_draws(kind: str, tmp_path: Path) -> None:
    model = small(kind, augment=kind == "uvit", **OURS[kind])
    facts = written(model, tmp_path / "out")
    assert facts["pipeline"] == "pipeline.py"
    pipeline = load(tmp_path / "out")
    labels = ["blue", "red"] if model.label_names else None
    assert (drawn(pipeline, 3, labels=labels) == model.sample(3, labels=labels)).all()
    assert (drawn(pipeline, 2) == model.sample(2)).all()
    other = {"sampler": "heun", "clip": "static", "grid": "uniform"}
    asked = drawn(pipeline, 2, num_inference_steps=2, **other)
    assert (asked == model.sample(2, steps=2, **other)).all()


@pytest.mark.parametrize("space", ["wavelets", "grey", "rgba"])
def test_other_pictures_are_drawn_so_too(space: str, tmp_path: Path) -> None:
    channels = {"grey": 1, "rgba": 4}.get(space, 3)
    kind = "wavelets" if space == "wavelets" else "pixels"
    size = (8, 16)
    model = small("uvit", size=size, channels=channels, space={"kind": kind})
    written(model, tmp_path / "out")
    pipeline = load(tmp_path / "out")
    wanted = model.sample(2, labels=["red"])
    assert (drawn(pipeline, 2, labels="red") == wanted).all()
    floats = pipeline(2, labels="red", generator=seeds(2), output_type="np").images
    assert floats.shape == wanted.shape
    assert abs(255 * floats[..., -1] - wanted[..., -1]).max() <= 0.5 + 1e-4
    tensors = pipeline(2, labels="red", generator=seeds(2), output_type="pt").images
    assert (tensors.permute(0, 2, 3, 1).numpy() == floats).all()


def test_straight_colours_of_transparent_pictures(tmp_path: Path) -> None:
    written(small("uvit", channels=4), tmp_path / "out")
    pipeline = load(tmp_path / "out")
    images = torch.tensor([-0.5, 0.0, 0.9, 0.0]).view(1, 4, 1, 1)  # colours .25 .5 .95, alpha .5
    shown = pipeline._shown(images, "pt").flatten().tolist()
    assert shown == pytest.approx([0.5, 1, 1, 0.5])


def test_the_noise_may_be_given(tmp_path: Path) -> None:
    model = small("hourglass")
    written(model, tmp_path / "out")
    noise = samplers.SeededNoise([0, 1]).initial((16, 12))
    latents = spaces.to_planes(noise, (4, 4), 2)
    found = load(tmp_path / "out")(latents=latents, labels=[1]).images
    assert (np.stack([np.asarray(x) for x in found]) == model.sample(2, labels=[1])).all()
    with pytest.raises(ValueError, match="latents of 3×4×4 per image: this model takes 3×8×8"):
        load(tmp_path / "out")(latents=latents[:, :, :4, :4])


def test_two_folders_live_side_by_side(tmp_path: Path) -> None:
    first, second = small("uvit"), small("hourglass")
    written(first, tmp_path / "first")
    written(second, tmp_path / "second")
    pipelines = [load(tmp_path / "first"), load(tmp_path / "second")]
    for model, pipeline in zip((first, second), pipelines, strict=True):
        assert (drawn(pipeline, 2) == model.sample(2)).all()


def test_what_the_pipeline_refuses(tmp_path: Path) -> None:
    written(small("uvit"), tmp_path / "out")
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DiffusionPipeline.from_pretrained(tmp_path / "out")
    pipeline = load(tmp_path / "out")
    with pytest.raises(ValueError, match=r"label 'grey' is unknown.*known: red, green, blue"):
        pipeline(labels=["grey"])
    with pytest.raises(ValueError, match="sampler 'hoin' does not exist; did you mean 'heun'"):
        pipeline(sampler="hoin")
    written(small("uvit", labels=()), tmp_path / "bare")
    with pytest.raises(ValueError, match="trained without"):
        load(tmp_path / "bare")(labels=[0])


@pytest.mark.parametrize("kind", [*OURS])
def test_the_code_needs_nothing_of_ours(kind: str) -> None:
    for text in (form.denoiser_text(type(small(kind).backbone)), form.pipeline_text()):
        found = set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            if isinstance(node, ast.ImportFrom):
                found.add(str(node.module).split(".")[0])
        known = {"torch", "diffusers", "numpy", "PIL", *sys.stdlib_module_names}
        assert found <= known
        assert "torch" in found


def test_half_the_size(tmp_path: Path) -> None:
    model = small("hourglass", width=32)
    sizes, pictures = [], []
    for half in (False, True):
        out = tmp_path / str(half)
        written(model, out, half)
        sizes.append((out / "denoiser/diffusion_pytorch_model.safetensors").stat().st_size)
        pictures.append(drawn(load(out), 2, labels=[0]).astype(int))
    assert sizes[1] < 0.6 * sizes[0]
    assert 0 < abs(pictures[0] - pictures[1]).max() <= 2
    pipeline = DiffusionPipeline.from_pretrained(
        tmp_path / "False", trust_remote_code=True, torch_dtype=torch.bfloat16
    )
    assert pipeline.denoiser.dtype == torch.bfloat16
    assert abs(drawn(pipeline, 2, labels=[0]) - pictures[0]).max() <= 12


def test_weights_that_float16_cannot_hold(tmp_path: Path, wrong: Callable[..., str]) -> None:
    model = small("uvit")
    with torch.no_grad():
        model.backbone.head.bias[0] = 1e5
    folder = model.save(tmp_path / "model")
    line = wrong("export", folder, "--to", "diffusers", "--out", tmp_path / "out", "--half")
    assert "100000 does not fit float16; leave --half out" in line


# --- diffusers' own ------------------------------------------------------------------------------

STOCK: dict[str, dict[str, Any]] = {
    "flow": {"noise": {"shift": 1.5}},
    "eps": {"noise": {**DDPM, "process": "vp-linear"}, "sampling": {"sampler": "euler"}},
    "cosine": {"noise": {**DDPM, "prediction": "v"}, "channels": 1},
    "x0": {"noise": {**DDPM, "prediction": "x0"}, "sampling": {"clip": "none"}},
}


@pytest.mark.parametrize("case", STOCK)
def test_a_dit_of_diffusers_draws_what_ours_draws_at_its_levels(case: str, tmp_path: Path) -> None:
    """The same noise, the levels of its scheduler; before rounding."""
    model = small("dit", augment=case == "flow", **STOCK[case])
    assert written(model, tmp_path / "out")["pipeline"] == "DiTPipeline"
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.get_label_ids(["blue", "red"]) == [2, 0]
    if case == "flow":  # its levels are those of our uniform grid
        pipeline.scheduler.set_timesteps(7)
        times = pipeline.scheduler.sigmas[:-1]
        torch.testing.assert_close(times, model.denoiser.process.times(7))
    for scale in (1.0, 3.0):
        asked = {"guidance_scale": scale, "num_inference_steps": 7, "output_type": "np"}
        found = pipeline([2, 0], generator=seeds(2), **asked).images
        noise = torch.stack([torch.randn(model.spec.channels, 8, 8, generator=g) for g in seeds(2)])
        x0 = at_levels_of(pipeline.scheduler, model, noise, torch.tensor([2, 0]), scale)
        wanted = (model.space.decode(x0) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
        assert abs(found - wanted.numpy()).max() <= 2e-5
        assert wanted.std() > 0.1


def at_levels_of(
    scheduler: Any, model: models.Model, noise: torch.Tensor, labels: torch.Tensor, scale: float
) -> torch.Tensor:
    """What our sampler makes of the noise at the scheduler's levels: x0 in patches."""
    x, null = model.space.encode(noise), torch.full_like(labels, -1)
    if model.spec.noise.process != "flow":
        sigma = model.denoiser.process.sigma(scheduler.timesteps.double() / 1000)
        levels = torch.cat([sigma, sigma.new_zeros(1)])
        x = x * (1 + levels[0] ** 2).sqrt().float()  # theirs begins with x_t = noise
        denoise = guided(model.denoiser.denoise, labels, null, scale)
        kind = "euler" if model.sampling.sampler == "euler" else "dpm++"
        how = samplers.Sampling(sampler=kind, clip=model.sampling.clip)
        return samplers.sample(denoise, x, levels, how)
    mask = masks.Mask(model.space.grid)
    times = scheduler.sigmas.tolist()  # from 1, where our frame has no number: Euler along F
    for t, then in itertools.pairwise(times):
        c_noise = torch.full((len(x),), 1000 * t)
        with torch.no_grad():
            F, F_null = (model.backbone(x, c_noise, y, mask).visible for y in (labels, null))
        x = x + (then - t) * (F_null + scale * (F - F_null))
    return x


def test_a_dit_of_latents(tmp_path: Path) -> None:
    folder = systems.save_autoencoder(tmp_path / "vae")
    kind = {"kind": "latents", "factor": 2, "vae": str(folder)}
    made = {"size": (16, 16), "space": kind, "sampling": {"clip": "none"}}
    model = small("dit", **made)  # whose autoencoder shifts, as no DiTPipeline does
    facts = written(model, tmp_path / "shifted")
    assert facts["because"] == "its DiTPipeline does not shift latents"
    pipeline = load(tmp_path / "shifted")
    assert (drawn(pipeline, 2, labels=["red"]) == model.sample(2, labels=["red"])).all()
    settings = json.loads((folder / "config.json").read_text()) | {"shift_factor": 0.0}
    (folder / "config.json").write_text(json.dumps(settings))
    model = small("dit", **made)
    assert written(model, tmp_path / "plain")["because"] == ""
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "plain")
    pipeline.set_progress_bar_config(disable=True)
    found = pipeline([1], 1.0, seeds(1), 4, output_type="np").images
    noise = torch.randn(4, 8, 8, generator=seeds(1)[0])[None]
    x0 = at_levels_of(pipeline.scheduler, model, noise, torch.tensor([1]), 1.0)
    wanted = (model.images(x0) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    assert abs(found - wanted.numpy()).max() <= 2e-5
    for text in tmp_path.rglob("*.json"):
        assert text.is_relative_to(folder) or str(tmp_path) not in text.read_text()


@pytest.mark.parametrize(
    ("reason", "made"),
    {
        "needs labels": {"labels": ()},
        "no norms of queries": {"qk_norm": True},
        "mlp_ratio": {"mlp_ratio": 2.0},
        "square": {"size": (8, 16)},
        "wavelets": {"space": {"kind": "wavelets", "patch": 2}},
        "transparency": {"channels": 4},
        "process flow with noise.prediction x0": {"noise": {"prediction": "x0"}},
        "process edm": {"noise": EDM},
        "process vp-linear": {"noise": V},
        "of kind hourglass": {"kind": "hourglass"},
        "1,000 labels at most": {"labels": tuple(map(str, range(1001)))},
    }.items(),
)
def test_why_a_model_is_not_one_of_diffusers(reason: str, made: dict[str, Any]) -> None:
    assert reason in form.why_not_stock(small(**made))


def test_positions_of_another_size_are_not_diffusers() -> None:
    model = small("dit")
    model.backbone.positions.rows.mul_(0.5)
    assert "positions" in form.why_not_stock(model)


# --- the command ---------------------------------------------------------------------------------


def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: Callable[..., str]
) -> None:
    folder = small("hourglass").save(tmp_path / "model")
    out = tmp_path / "out"
    given = ["export", folder, "--to", "diffusers", "--out", out]
    assert main([*map(str, given), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["pipeline"] == "pipeline.py"
    assert "hourglass" in said["because"]
    assert "trust_remote_code=True" in (out / "README.md").read_text()
    assert "exists already; add --overwrite" in wrong(*given)
    assert main([*map(str, given), "--overwrite"]) == 0
    weights = out / "denoiser/diffusion_pytorch_model.safetensors"
    assert weights.stat().st_mode == (out / "README.md").stat().st_mode


def test_without_diffusers(
    tmp_path: Path, wrong: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = small("uvit").save(tmp_path / "model")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    line = wrong("export", folder, "--to", "diffusers", "--out", tmp_path / "out")
    assert "pip install 'underpaint[diffusers]'" in line
    assert not (tmp_path / "out").exists()


# --- the bundle ----------------------------------------------------------------------------------


def test_two_definitions_of_one_name_are_kept_apart() -> None:
    text = form.denoiser_text(type(small("dit").backbone))
    assert "spaces_build(**space)" in text
    assert "schedules_build(**noise)" in text
    names = [n.name for n in ast.parse(text).body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    assert len(names) == len(set(names))
    assert "MaskSpec" not in names  # which nothing uses
