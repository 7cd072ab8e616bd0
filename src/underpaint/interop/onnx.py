"""A trained model as one ONNX graph, and a script that samples with it without PyTorch.

    x [B, C, H, W], sigma [B], labels [B] int64  →  x0 [B, C, H, W]

`x = x0 + sigma·n` are images in [-1, 1] with noise, as in `core/denoiser.py` (of four channels the
colours are premultiplied); `sigma` is the noise level; a label of −1 is none, and a model without
labels has no such input. The batch is free. Everything but F, the network's output, is float32;
with `half` the weights are stored in float16 and cast where they are used.

Beside the graph: `model.json` (size, labels, noise levels, how it draws) and `sample.py`, which
needs numpy, onnxruntime and pillow alone.
"""

import hashlib
import importlib.util
import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from underpaint._version import __version__
from underpaint.core import samplers
from underpaint.core.samplers import Sampling
from underpaint.errors import RunFailed, UserError
from underpaint.model import Model, evaluating

if TYPE_CHECKING:
    import onnx

OPSET = 20
NEEDED = ("onnx", "onnxruntime", "onnxscript")
SAMPLERS = ("euler", "heun")  # that the script and the page know
STEPS = (5, 8, 10, 15, 20, 30, 50)  # whose levels are in the card, beside the model's own
TOLERANCE = 1e-4  # between this graph in onnxruntime and the model in torch, of the largest x0


def check(model: Model) -> None:
    """Raise UserError for a model that cannot be such a graph, and if the extra is missing."""
    check_installed()
    kind = model.spec.space.kind
    if kind == "latents":
        raise UserError(
            "this model draws latents, which its autoencoder turns into images: that is no part of "
            "it, and no ONNX graph takes it along; use --to diffusers"
        )
    if kind == "wavelets":
        raise UserError(
            "this model works in wavelets, whose coefficients are clipped while it draws: a graph "
            "from images to images cannot do that; use --to diffusers"
        )


def missing() -> list[str]:
    """What of the extra [onnx] is not installed."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def check_installed() -> None:
    """Raise UserError if what writes and runs such graphs is not installed."""
    if lacking := missing():
        raise UserError(f"ONNX needs {' and '.join(lacking)}; type pip install 'underpaint[onnx]'")


def write(model: Model, folder: Path, half: bool) -> dict[str, Any]:
    """Fill `folder` with the graph, its card and the script; returns facts of them."""
    facts = write_graph(model, folder, half)
    shutil.copyfile(Path(__file__).with_name("onnx_sample.py"), folder / "sample.py")
    return facts


def write_graph(model: Model, folder: Path, half: bool) -> dict[str, Any]:
    """Write `model.onnx` and `model.json`, and compare the graph with the model.

    Returns the largest difference of x0 among 6 noisy images and how the graph was made. Raises
    UserError for a network that cannot be exported, RunFailed if both disagree.
    """
    import onnx

    described = card(model)
    graph = _exported(model)
    if half:
        halve(graph, model)
    graph.producer_name, graph.producer_version = "underpaint", __version__
    graph.doc_string = "x0 = denoise(x = x0 + sigma n, sigma, labels); images in [-1, 1]"
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in described.items()}
    onnx.helper.set_model_props(graph, {f"underpaint.{k}": v for k, v in texts.items()})
    onnx.checker.check_model(graph)
    data = graph.SerializeToString()
    (folder / "model.onnx").write_bytes(data)
    found = _difference(model, data)
    if not half and found > TOLERANCE:
        raise RunFailed(
            f"the ONNX graph differs from the model by {found:.2g} of the largest x0: that is a "
            "defect of the export; please report it with the model's config.json"
        )
    described["sha256"] = {"model.onnx": hashlib.sha256(data).hexdigest()}
    (folder / "model.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    return {
        "opset": OPSET,
        "weights": "float16" if half else "float32",
        "difference": found,
        "bytes": len(data),
        "sampler": described["sampler"],
    }


def card(model: Model) -> dict[str, Any]:
    """What one has to know to draw with the graph: `model.json`, but for its checksums.

    `levels` has the noise levels of each number of steps that may be asked for. A model that draws
    neither by Euler nor by Heun (dpm++, Langevin, …) gets Heun with at most 20 steps.
    """
    sampling = model.sampling
    known = sampling.sampler in SAMPLERS
    steps = sampling.steps if known else min(sampling.steps, Sampling.steps)
    height, width = model.spec.size
    return {
        "format": 1,
        "underpaint": __version__,
        "graph": "model.onnx",
        "channels": model.spec.channels,
        "height": height,
        "width": width,
        "labels": list(model.label_names),
        "sampler": sampling.sampler if known else "heun",
        "steps": steps,
        "guidance": sampling.guidance if model.label_names else 1.0,
        "clip": sampling.clip,
        "levels": _levels(model, sampling.grid, steps),
    }


def _levels(model: Model, grid: str, default: int) -> dict[str, list[float]]:
    """The levels for each number of steps; of noise with few levels only what it has."""
    levels = {}
    for steps in sorted({default, *STEPS}):
        try:
            sigmas = samplers.sigmas(model.denoiser.process, steps, grid)
        except ValueError:  # more steps than the noise has levels
            continue
        levels[str(steps)] = sigmas.tolist()
    return levels


# --- the graph ---------------------------------------------------------------------------------


class Graph(nn.Module):
    """From noisy images to clean ones: what is exported."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.denoiser, self.space = model.denoiser, model.space

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """`x` [B, C, H, W], `sigma` [B], `labels` [B] → x0 [B, C, H, W]."""
        return self.space.decode(self.denoiser.denoise(self.space.encode(x), sigma, labels))


def _exported(model: Model) -> "onnx.ModelProto":
    """The graph with its weights inside. Raises UserError where the exporter cannot follow."""
    inputs = _example(model, 2)
    # Any batch: no network may read it by len(), which makes it a number. Bounds that code with
    # branches would put on it (diffusers' do) change nothing in the graph.
    shapes = {name: {0: torch.export.Dim.DYNAMIC} for name in inputs}
    graph = Graph(model)
    with evaluating(graph), torch.no_grad(), _quiet():
        graph(**inputs)  # tables that are made at the first call, before it is traced
        try:
            program = torch.export.export(graph, (), inputs, dynamic_shapes=shapes, strict=False)
            made = torch.onnx.export(
                program,
                dynamo=True,
                optimize=True,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=["x0"],
                dynamic_shapes=shapes,
                verbose=False,
            )
        except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"network.kind {model.spec.network.kind} with process {model.spec.noise.process} "
                f"cannot be written as an ONNX graph ({reason})"
            ) from error
    assert made is not None
    proto = made.model_proto
    del proto.metadata_props[:]
    for node in [*proto.graph.node, *proto.graph.input, *proto.graph.output]:
        del node.metadata_props[:]  # the exporter's notes, with lines of our source
    for value in [*proto.graph.value_info, *proto.graph.initializer]:
        del value.metadata_props[:]
    for value in [*proto.graph.input, *proto.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    return proto


def _example(model: Model, count: int, seed: int = 0) -> dict[str, Tensor]:
    """`count` noisy images, levels over the whole range and labels, none among them."""
    generator = torch.Generator().manual_seed(seed)
    process = model.denoiser.process
    low, high = process.sigma_min, min(process.sigma_max, 20.0)
    sigma = low * (high / low) ** torch.linspace(0, 1, count)
    x = torch.randn((count, *model.space.planes), generator=generator)
    inputs = {"x": x * (0.25 + sigma**2).sqrt().view(-1, 1, 1, 1), "sigma": sigma}
    if model.label_names:
        inputs["labels"] = torch.arange(count) % (len(model.label_names) + 1) - 1
    return inputs


def halve(graph: "onnx.ModelProto", model: Model) -> None:
    """Store the network's weights with two dimensions or more as float16.

    Each is cast back where it is used, so that all that is computed stays float32; what is no
    weight, as fixed positions and noise levels, stays as it is. Raises UserError for a weight
    beyond float16's 65504.
    """
    import onnx

    weights = {
        _digest(values)
        for weight in model.backbone.parameters()
        for values in (weight, *([weight.T] if weight.ndim == 2 else []))  # as the exporter turns
    }
    casts = []
    for tensor in graph.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) < 2:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        if _digest(values) not in weights:
            continue
        if np.abs(values).max() > np.finfo(np.float16).max:
            raise UserError(
                f"a weight of {np.abs(values).max():.3g} does not fit float16; leave --half out"
            )
        name, small = tensor.name, f"{tensor.name}.float16"
        tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), small))
        casts.append(onnx.helper.make_node("Cast", [small], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.graph.node]
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)


def _digest(values: Tensor | np.ndarray) -> bytes:
    """Of the shape and the numbers."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    return hashlib.sha256(f"{values.shape}".encode() + values.tobytes()).digest()


def _difference(model: Model, data: bytes) -> float:
    """The largest difference of x0, of 1 and of 5 images, over the largest x0 or 1."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    worst = 0.0
    for count in (1, 5):
        inputs = _example(model, count, seed=count)
        graph = Graph(model)
        with evaluating(graph), torch.no_grad():
            expected = graph(**inputs).numpy()
        found = session.run(None, {name: value.numpy() for name, value in inputs.items()})[0]
        worst = max(worst, float(np.abs(found - expected).max() / max(1, np.abs(expected).max())))
    return worst


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of itself (torchvision is missing, its own deprecations)."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    loggers += [logging.getLogger("torch.onnx._internal.exporter._registration")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
