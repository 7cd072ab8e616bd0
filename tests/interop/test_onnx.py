"""A model as an ONNX graph: the same x0 in onnxruntime, and the same pictures without PyTorch."""

import importlib.util
import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from tests.interop.small import NOISE, build
from underpaint import model as models
from underpaint import model_folder
from underpaint.core import samplers
from underpaint.errors import UserError
from underpaint.interop import onnx as form
from underpaint.interop import web
from underpaint.model import Model

KINDS: dict[str, dict[str, Any]] = {
    "dit": {"qk_norm": True, "augment": True},
    "uvit": {},
    "hourglass": {"options": {"levels": 2}},
    "unet": {"heads": 1, "depth": 1, "options": {"multipliers": [1, 2]}},
    "maskdit": {"options": {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}},
}


def noisy(model: Model, count: int) -> dict[str, torch.Tensor]:
    """`count` images of noise at levels of 0.01 to 50, and every label; none is one."""
    x = torch.randn(count, *model.space.planes, generator=torch.Generator().manual_seed(count))
    sigma = torch.logspace(-2, 1.7, count + 1)[1:]
    labels = torch.arange(count) % 3 - 1
    return {"x": x, "sigma": sigma} | ({"labels": labels} if model.label_names else {})


def difference(model: Model, path: Path, count: int) -> float:
    """Of x0 between onnxruntime and `Model.denoise`."""
    inputs = noisy(model, count)
    labels = inputs["labels"].tolist() if model.label_names else None
    expected = model.denoise(inputs["x"], inputs["sigma"], labels).numpy()
    session = onnxruntime.InferenceSession(path)
    found = session.run(None, {name: value.numpy() for name, value in inputs.items()})[0]
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max())


@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_graph_gives_the_models_x0(small: Model, folder: Path, count: int) -> None:
    assert difference(small, folder / "model.onnx", count) < 1e-4


def test_the_graph_is_one_file_and_says_what_it_is(folder: Path) -> None:
    graph = onnx.load(folder / "model.onnx", load_external_data=False)
    assert {entry.domain: entry.version for entry in graph.opset_import}[""] >= 20
    assert [value.name for value in graph.graph.input] == ["x", "sigma", "labels"]
    for value in [*graph.graph.input, *graph.graph.output]:
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert all(not tensor.external_data for tensor in graph.graph.initializer)
    notes = {entry.key: entry.value for entry in graph.metadata_props}
    assert json.loads(notes["underpaint.labels"]) == ["dark", "light"]
    card = json.loads((folder / "model.json").read_text())
    assert json.loads(notes["underpaint.levels"]) == card["levels"]
    assert card["sha256"]["model.onnx"] == model_folder.sha256(folder / "model.onnx")
    assert b"underpaint/src" not in (folder / "model.onnx").read_bytes()  # no lines of our source


def test_half_stores_the_weights_alone_in_float16(
    small: Model, folder: Path, tmp_path: Path
) -> None:
    graph = onnx.load(folder / "model.onnx")
    form.halve(graph, small)
    halved = {t.name for t in graph.graph.initializer if t.data_type == onnx.TensorProto.FLOAT16}
    matrices = [p for p in small.backbone.parameters() if p.ndim > 1]
    assert len(halved) == len(matrices)
    for value in [*graph.graph.input, *graph.graph.output]:
        assert value.type.tensor_type.elem_type != onnx.TensorProto.FLOAT16
    onnx.save(graph, tmp_path / "half.onnx")
    assert 0 < difference(small, tmp_path / "half.onnx", 7) < 2 / 127.5


def test_a_weight_beyond_float16_is_refused(small: Model, folder: Path) -> None:
    graph = onnx.load(folder / "model.onnx")
    large = build()
    with torch.no_grad():
        large.backbone.head.weight[0, 0] = 1e5  # type: ignore[union-attr, operator, index]
    for tensor in graph.graph.initializer:
        if tensor.dims == [16, 12]:
            turned = large.backbone.head.weight.T.detach().numpy()  # type: ignore[union-attr, operator]
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(turned), tensor.name))
    with pytest.raises(UserError, match="does not fit float16; leave --half out"):
        form.halve(graph, large)


# --- the script --------------------------------------------------------------------------------

WITHOUT_TORCH = """\
import runpy, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "underpaint", "safetensors", "yaml"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
runpy.run_path("sample.py", run_name="__main__")
"""


@pytest.mark.parametrize("label", ["light", None])
def test_the_script_draws_what_the_model_draws(
    small: Model, folder: Path, tmp_path: Path, label: str | None
) -> None:
    """The same noise, in a process that cannot import torch: at most 2 of 255 apart."""
    from PIL import Image

    N, P = small.space.grid[0] * small.space.grid[1], small.space.patch_dim
    noise = small.space.decode(samplers.SeededNoise([3, 4]).initial((N, P)))
    np.save(tmp_path / "noise.npy", noise.numpy())
    flags = ["-n", "2", "--noise", tmp_path / "noise.npy", "--out", tmp_path / "x.png"]
    flags += ["--label", label] if label else []
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *flags], cwd=folder, check=True)
    found = np.asarray(Image.open(tmp_path / "x.png")).astype(int)
    drawn = small.sample(2, seed=3, labels=label and [label])
    assert np.ptp(drawn) > 50
    assert np.abs(found - np.concatenate(list(drawn), axis=1).astype(int)).max() <= 2


# --- what goes and what does not ---------------------------------------------------------------


def test_a_missing_extra_is_said_with_the_command(
    small: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnx" else find(name)
    )
    with pytest.raises(UserError, match=r"pip install 'underpaint\[onnx\]'"):
        form.check(small)
    for name in form.NEEDED:  # the modules themselves can be imported without it
        monkeypatch.setitem(sys.modules, name, None)
    for module in (form, web):
        runpy.run_path(str(module.__file__))
    assert "underpaint.interop.onnx_sample" not in sys.modules  # which needs onnxruntime


def test_spaces_that_a_graph_of_images_cannot_hold() -> None:
    with pytest.raises(UserError, match="wavelets"):
        form.check(build(space={"kind": "wavelets"}))
    with pytest.raises(UserError, match="latents"):
        form.check(build(space={"kind": "latents", "factor": 4}, sampling={"clip": "none"}))


def test_a_network_that_cannot_be_traced_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    forward = model.backbone.forward
    monkeypatch.setattr(
        model.backbone,
        "forward",
        lambda x, *rest: forward(x * (1 + (x.sum().item() > 0)), *rest),
    )
    with pytest.raises(UserError, match=r"network\.kind dit .* cannot be written as an ONNX graph"):
        form._exported(model)


def test_models_that_draw_otherwise_get_heun() -> None:
    card = form.card(build(noise="ncsn", sampling={"sampler": "langevin", "steps": 20}))
    assert (card["sampler"], card["steps"]) == ("heun", 20)
    assert list(card["levels"]) == ["5", "8", "10", "15", "20"]  # of 20 levels no more
    assert form.card(build(sampling={"sampler": "euler", "steps": 7}))["sampler"] == "euler"


@pytest.mark.long
@pytest.mark.parametrize("labels", [("dark", "light"), ()])
@pytest.mark.parametrize("kind", KINDS)
def test_every_network(kind: str, labels: tuple[str, ...], tmp_path: Path) -> None:
    model = build(kind, labels=labels, **KINDS[kind])
    form.write(model, tmp_path, half=False)
    for count in (1, 2, 7, 70):
        assert difference(model, tmp_path / "model.onnx", count) < 1e-4


@pytest.mark.long
@pytest.mark.parametrize(("noise", "channels"), [(n, 1) for n in NOISE] + [("flow", 4)])
def test_every_noise_and_channels(noise: str, channels: int, tmp_path: Path) -> None:
    model = build(noise=noise, channels=channels)
    form.write(model, tmp_path, half=False)
    inputs = noisy(model, 7)
    scale = 1 + float(inputs["sigma"].max())  # where x0 = x − s F the error grows with s
    assert difference(model, tmp_path / "model.onnx", 7) < 1e-4 * scale


@pytest.mark.long
def test_the_packaged_weights(tmp_path: Path) -> None:
    model = models.load("pretrained:lorelei", device="cpu")
    facts = form.write(model, tmp_path, half=True)
    assert facts["bytes"] < 3_400_000
    for count in (1, 2, 7):
        assert difference(model, tmp_path / "model.onnx", count) < 1e-4
