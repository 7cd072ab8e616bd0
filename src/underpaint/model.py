"""A trained model: a denoiser, the space it works in, and the names of its labels.

A model's folder is self-contained: `config.json` (a `ModelSpec`, and the sha256 of each weight
file) beside `ema.safetensors` and `model.safetensors`. A run, one of its checkpoints, an exported
folder and `pretrained:NAME` all lead to such a folder.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, cast, get_args
from unicodedata import normalize

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from underpaint import backbones, config, editing, factory
from underpaint import vae as autoencoders
from underpaint._version import __version__
from underpaint.bounded import Is, checked, read_json
from underpaint.core import samplers, spaces
from underpaint.core.denoiser import Denoiser
from underpaint.core.guidance import guided
from underpaint.core.samplers import Sampling
from underpaint.errors import UserError
from underpaint.hardware import Precision, keep_freed_memory, pick_device, use_bf16
from underpaint.io import appearing, check_place, holds_only, numbered, writing
from underpaint.vae import VAE

FORMAT = 2  # of a model's folder
MODEL = ("config.json", "model.safetensors")  # files of an exported model

Weights = Literal["ema", "model", "narrow", "wide"]  # the last two: training/posthoc.py
CARD = {  # config.json
    "format": Is(int, FORMAT, FORMAT),
    "underpaint": Is(str, optional=True),
    "model": Is(dict),
    "sha256": Is(
        dict,
        1,
        of=Is(str, 64, 64),
        among=frozenset(f"{name}.safetensors" for name in get_args(Weights)),
    ),
}


class Model:
    """A denoiser with what is needed to use it on images."""

    def __init__(self, spec: config.ModelSpec, denoiser: Denoiser, space: spaces.Space) -> None:
        self.spec, self.denoiser, self.space = spec, denoiser, space

    def __repr__(self) -> str:
        """One line: network, parameters, images, labels, device."""
        count = sum(p.numel() for p in self.denoiser.parameters())
        height, width = self.spec.size
        labels = f", {len(self.label_names)} labels" if self.label_names else ""
        return (
            f"<Model {self.spec.network.kind}, {count:,} parameters, images of "
            f"{height}×{width}×{self.spec.channels}{labels}, on {self.device}>"
        )

    def to(self, device: str | torch.device) -> Self:
        """Move the weights; returns the model. Raises UserError for a device that is not there."""
        self.denoiser.to(pick_device(str(device)))
        return self

    def save(self, folder: str | Path, overwrite: bool = False) -> Path:
        """Write the weights and `config.json` into `folder`, which `load` reads; returns it.

        Raises UserError if it exists, unless it holds a model and `overwrite` is given.
        """
        out = Path(folder).expanduser()
        if out.exists() and not overwrite:
            raise UserError(f"{out}: exists already; add overwrite=True or choose another folder")
        if out.exists() and not holds_only(out, MODEL):
            raise UserError(f"{out}: holds other files than a model; choose another folder")
        check_place(out.parent)
        with writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            with appearing(out, MODEL) as temporary:
                write_model(temporary, self.spec, {"model": self.backbone.state_dict()})
        return out

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the classes; empty for an unconditional model."""
        return self.spec.label_names if self.spec.network.labels else ()

    @property
    def backbone(self) -> backbones.Backbone:
        """The network inside the denoiser."""
        return cast(backbones.Backbone, self.denoiser.backbone)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.denoiser.parameters()).device

    @property
    def precision(self) -> Precision:
        """Of the network's multiplications: fp32 or, under autocast, bf16."""
        return "bf16" if self.denoiser.bf16 else "fp32"

    @precision.setter
    def precision(self, precision: Precision) -> None:
        self.denoiser.bf16 = use_bf16(precision, self.device, self.spec.network.width)

    def label_ids(self, labels: Sequence[str | int]) -> list[int]:
        """Class numbers of names or of numbers (-1: none). Raises UserError for what is unknown.

        A text is a name, never a number: '3' is the label that is called so.
        """
        if not self.label_names:
            raise UserError("this model was trained without labels; leave the label out")
        if isinstance(labels, str) or not labels:
            raise UserError(f"labels {labels!r}: give a list of at least one name, or None")
        labels = [normalize("NFC", label) if isinstance(label, str) else label for label in labels]
        numbers: dict[str | int, int] = {i: i for i in range(-1, len(self.label_names))}
        numbers |= {name: i for i, name in enumerate(self.label_names)}
        unknown = [label for label in labels if label not in numbers]
        if unknown:
            known = ", ".join(self.label_names)
            raise UserError(f"label '{unknown[0]}' is unknown to this model; known: {known}")
        return [numbers[label] for label in labels]

    @cached_property
    def vae(self) -> VAE | None:
        """The autoencoder of a latent space. Raises UserError if it has moved (see `load`)."""
        space = self.spec.space
        if space.kind != "latents":
            return None
        if space.vae and not Path(space.vae).expanduser().exists():
            raise UserError(
                f"{space.vae}: the autoencoder that this model was trained with is not there any "
                "more; add --vae and the folder where it is now to sample, evaluate or audit (in "
                "Python: vae=FOLDER)"
            )
        if space.vae:
            _warn(f"{space.vae}: the autoencoder that the model's settings name is read")
        return autoencoders.of_space(space, self.spec.channels)

    def images(self, patches: Tensor) -> Tensor:
        """Patches [B, N, P] → images [B, C, H, W] in [-1, 1], through the autoencoder if any."""
        planes = self.space.decode(patches)
        return planes if self.vae is None else self.vae.decode(planes)

    @torch.inference_mode()
    def denoise(
        self, images: Tensor, sigma: float | Tensor, labels: Sequence[str | int] | None = None
    ) -> Tensor:
        """The expected clean images given noisy ones.

        `images` [B, C, H, W] = x0 + sigma·n with x0 in [-1, 1] (of four channels the colours are
        premultiplied, as `spaces.from_uint8` makes them); `sigma` a number or [B]. Returns
        [B, C, H, W] on the model's device. In wavelets n is the noise of the coefficients
        (deviation 1 there is 2^levels in pixels). A model of latents takes and returns latents
        [B, c, H/f, W/f], z = scale·(mean − shift) of `vae.moments`. Raises UserError for others.
        """
        if images.shape[1:] != self.space.planes:
            given, expected = ("×".join(map(str, s)) for s in (images.shape[1:], self.space.planes))
            what = "latents" if self.spec.space.kind == "latents" else "images"
            raise UserError(
                f"{what} of {given} were given to denoise; this model takes {what} of {expected}"
            )
        patches = self.space.encode(images.to(self.device, torch.float32))
        with evaluating(self.denoiser):
            x0 = self.denoiser.denoise(patches, sigma, self._label_tensor(labels, len(images)))
        return self.space.decode(x0)

    def _label_tensor(self, labels: Sequence[str | int] | None, count: int) -> Tensor | None:
        if not self.label_names:
            if labels is not None:
                self.label_ids(labels)  # raises
            return None
        ids = [-1] * count if labels is None else self.label_ids(labels)
        return torch.tensor(ids, device=self.device)

    @property
    def sampling(self) -> Sampling:
        """How it draws where nothing else is asked for."""
        return factory.sampling(self.spec.sampling)

    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        labels: Sequence[str | int] | None = None,
        batch: int = 64,
        progress: Callable[[int, int], None] | None = None,
        **changes: Any,
    ) -> np.ndarray:
        """Draw `n` images: uint8 [n, H, W, C], of four channels RGBA with straight colours.

        Sample i has the seed `seed + i` and depends on it alone, not on the batch or device count.
        `labels` (names or numbers) are repeated to `n`; None draws without a label. `changes`:
        fields of `core.samplers.Sampling` (sampler, steps, grid, guidance, clip, …) that shall
        differ from the model's own. Raises UserError for settings that cannot work.
        """
        with self._drawing(n, seed=seed, labels=labels, batch=batch, **changes) as drawing:
            images = np.empty((n, *self.spec.size, self.spec.channels), np.uint8)
            for part, source, first in drawing.parts():
                x, sigmas = first * float(drawing.sigmas[0]), drawing.sigmas
                denoise = drawing.denoise(part)
                x0 = samplers.sample(denoise, x, sigmas, drawing.sampling, noise=source.step)
                images[part.start : part.stop] = spaces.to_uint8(self.images(x0)).numpy()
                if progress:
                    progress(part.stop, n)
        return images

    @contextlib.contextmanager
    def _drawing(
        self,
        n: int,
        *,
        seed: int = 0,
        labels: Sequence[str | int] | None = None,
        batch: int = 64,
        progress: Callable[[int, int], None] | None = None,
        **changes: Any,
    ) -> Iterator[editing.Drawing]:
        """What `n` pictures are drawn with, the network in evaluation mode. Raises as `sample`."""
        sampling = self.sampling_with(**changes)
        if n < 1 or batch < 1:
            raise UserError(f"{n} samples in batches of {batch}: both must be at least 1")
        if not 0 <= seed <= 2**63 - n:
            raise UserError(f"seed {seed}: give a whole number from 0 to 2^63 - {n}")
        ids = None if labels is None else self.label_ids(labels)
        with factory.settings_of("sampling", config.Sampling):
            sigmas = samplers.sigmas(self.denoiser.process, sampling.steps, sampling.grid)

        def denoise(part: range) -> samplers.Denoise:
            chosen = None if ids is None else [ids[i % len(ids)] for i in part]
            asked = self._label_tensor(chosen, len(part))
            # guidance towards no label is no guidance: one call
            null = None if chosen is None or asked is None else torch.full_like(asked, -1)
            return guided(self.denoiser.denoise, asked, null, sampling.guidance)

        with torch.inference_mode(), evaluating(self.denoiser):
            yield editing.Drawing(
                seeds=range(seed, seed + n),
                space=self.space,
                vae=self.vae,
                sampling=sampling,
                sigmas=sigmas,
                denoise=denoise,
                images=self.images,
                device=self.device,
                batch=batch,
                progress=progress,
            )

    # `how` of the methods below: seed, labels, batch and settings as in `sample`, and a `progress`
    # that is called with the steps that are done and all steps

    def inpaint(
        self,
        images: np.ndarray,
        keep: np.ndarray,
        *,
        resample: int = editing.RESAMPLE,
        soft: int = editing.SOFT,
        **how: Any,
    ) -> np.ndarray:
        """Draw parts of `images` uint8 [n, H, W, C] anew: the same with those parts drawn.

        `keep`: booleans, True where a picture stays bit for bit; of pixels [H, W] or [n, H, W], or
        of patches [h, w] or [n, h, w]. Nothing of what is erased is read. `resample`: how often
        each step is taken (RePaint); 1 is fast and fits less. `soft`: pixels of the erased part in
        which a seam is hidden. Sampler euler, heun or ancestral. Raises UserError for wrong use.
        """
        with self._drawing(len(images), **how) as drawing:
            return editing.inpaint(drawing, images, keep, resample, soft)

    def outpaint(
        self,
        images: np.ndarray,
        *,
        top: int = 0,
        right: int = 0,
        bottom: int = 0,
        left: int = 0,
        resample: int = editing.RESAMPLE,
        soft: int = editing.SOFT,
        **how: Any,
    ) -> np.ndarray:
        """Draw so many pixels around `images` uint8 [n, any, any, C]; the rest as `inpaint`.

        Returns uint8 [n, H, W, C] of the larger size, which must be the model's at least. Where it
        is more, the model draws it in windows of its own size, which overlap by half.
        """
        with self._drawing(len(images), **how) as drawing:
            margins = (top, right, bottom, left)
            return editing.outpaint(drawing, images, margins, resample, soft)

    def restore(
        self,
        patches: np.ndarray,
        positions: np.ndarray,
        *,
        resample: int = editing.RESAMPLE,
        soft: int = editing.SOFT,
        **how: Any,
    ) -> np.ndarray:
        """Pictures uint8 [n, H, W, C] from visible patches alone; the rest as `inpaint`.

        `patches` uint8 [n, V, C·p²] and `positions` int [n, V] as sealed data hold them (of four
        channels premultiplied); p need not be the model's.
        """
        with self._drawing(len(patches), **how) as drawing:
            return editing.restore(drawing, patches, positions, resample, soft)

    def vary(self, images: np.ndarray, strength: float = 0.6, **how: Any) -> np.ndarray:
        """Pictures like `images` uint8 [n, H, W, C]: noised, and drawn from there (SDEdit).

        `strength`: the share of the sampling steps that are taken, above 0 (the picture as it is)
        to 1 (a sample of that seed, of which the picture is no part). Raises UserError.
        """
        with self._drawing(len(images), **how) as drawing:
            return editing.vary(drawing, images, strength)

    def interpolate(self, seed_a: int, seed_b: int, n: int = 8, **how: Any) -> np.ndarray:
        """`n` pictures from the sample of one seed to that of another: uint8 [n, H, W, C].

        Their noise lies on the sphere between (slerp), evenly. Samplers that add noise are refused.
        """
        with self._drawing(n, **how) as drawing:
            return editing.interpolate(drawing, seed_a, seed_b)

    def sampling_with(self, **changes: Any) -> Sampling:
        """The model's own way of drawing with these changes, but for None.

        Raises UserError for settings that cannot work, TypeError for an unknown name.
        """
        given = {name: value for name, value in changes.items() if value is not None}
        with factory.settings_of("sampling", config.Sampling):
            sampling = dataclasses.replace(self.sampling, **given)
            sampling.check()
        if self.vae is not None and sampling.clip != "none":
            raise UserError(
                f"clip {sampling.clip}: latents are not bounded as pixels are; give clip none"
            )
        return sampling


@contextlib.contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """The module in evaluation mode, and back in the mode it had."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


def build(spec: config.ModelSpec) -> Model:
    """A model with fresh weights. Raises UserError where the settings do not fit together."""
    space = factory.space(spec.space, spec.size, spec.channels)
    return Model(spec, factory.denoiser(spec), space)


# --- folders ---------------------------------------------------------------------------------


def find(source: str | Path) -> Path:
    """The model's folder behind a run, a checkpoint, an exported folder or `pretrained:NAME`.

    Of a run as `newest`, whose note is said on stderr. Raises UserError if there is none.
    """
    text = str(source)
    if text.startswith("pretrained:"):
        packaged = Path(str(resources.files("underpaint"))) / "pretrained"
        name = text.removeprefix("pretrained:")
        if not (packaged / name / "config.json").is_file():
            known = ", ".join(f"pretrained:{p.name}" for p in sorted(packaged.glob("*/"))) or "none"
            raise UserError(f"{text}: there are no such weights in the package; known: {known}")
        return packaged / name
    folder = Path(source).expanduser()
    if not folder.exists():
        raise UserError(f"{text}: no such folder; give a run, a checkpoint or an exported model")
    if (folder / "config.json").is_file():
        return folder
    if numbered(folder / "checkpoints"):
        found = newest(folder)
        if found.note:
            _warn(found.note)
        return found.folder
    raise UserError(
        f"{text}: holds no model (no config.json and no checkpoints); "
        "give a run, a checkpoint or an exported model"
    )


class Found(NamedTuple):
    """A checkpoint, and in `note` why it is not the one that LATEST names; empty if it is."""

    folder: Path
    note: str


def newest(run: Path, damage: Callable[[Path], str] | None = None) -> Found:
    """The checkpoint that LATEST names or, if that is none or damaged, the newest whole one.

    By `damage` (default: `damage_of`). Raises UserError if none is whole.
    """
    pointer = run / "checkpoints" / "LATEST"
    there = {folder.name: folder for folder in reversed(numbered(pointer.parent))}
    problems = []
    name = ""
    try:
        name = pointer.read_text(encoding="utf-8").strip()
        if name not in there:
            said = "names no checkpoint of this run" if name else "is empty"
            problems.append(f"{pointer} {said}")
    except FileNotFoundError:
        problems.append(f"{pointer} is missing")
    except (OSError, ValueError):
        problems.append(f"{pointer} cannot be read")
    for folder in sorted(there.values(), key=lambda folder: folder.name != name):
        reason = (damage or damage_of)(folder)
        if not reason:
            whole = f"using {folder.name}, the newest whole checkpoint"
            return Found(folder, f"{'; '.join(problems)}; {whole}" if problems else "")
        problems.append(f"{folder} is damaged ({reason})")
    if not all(folder.is_dir() for folder in there.values()):  # the run goes on, and clears
        return newest(run, damage)
    raise UserError(
        f"{run}: none of its checkpoints can be used: {'; '.join(problems[:2])}; "
        "give another model, or train again into another folder"
    )


@cache
def _warn(note: str) -> None:
    """Say it on stderr, once a process; a program may hear it as a record of logging."""
    logging.getLogger("underpaint").warning(note)


def damage_of(folder: Path) -> str:
    """What is wrong with the files of a model's folder; empty if all of them are whole."""
    try:
        digests = read_card(folder)["sha256"]
        missing = [name for name in digests if not (folder / name).is_file()]
        if not digests or missing:
            return f"{missing[0]} is missing" if missing else "config.json names no weights"
        changed = [name for name, digest in digests.items() if sha256(folder / name) != digest]
    except (UserError, KeyError, AttributeError, TypeError):
        return "config.json is missing or damaged"
    except OSError as error:  # as of a file that is deleted meanwhile
        return f"a file cannot be read ({error.strerror})"
    return f"{changed[0]} was cut short or changed, its checksum differs" if changed else ""


def read_card(folder: Path) -> dict[str, Any]:
    """The whole `config.json` of a model's folder."""
    path = folder / "config.json"
    try:
        card = read_json(path)
        if isinstance(card, dict) and type(card.get("format")) is int and card["format"] != FORMAT:
            raise UserError(
                f"{path}: has format {card['format']}, and this underpaint reads format {FORMAT}; "
                "train again, or use the version that wrote it"
            )
        return checked(card, CARD, more=True)
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: is damaged or not a model of underpaint ({error})") from None


def read_spec(folder: Path) -> config.ModelSpec:
    """What the weights in `folder` belong to."""
    values = read_card(folder)["model"]
    spec = config.from_dict(config.ModelSpec, values, f"{folder / 'config.json'}: ")
    config.check_model(spec, f"{folder / 'config.json'}: ")
    return spec


def sha256(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _whole(folder: Path, weights: Weights) -> Path:
    """The file of these weights, whose checksum was compared."""
    digests = read_card(folder)["sha256"]
    alone = list(digests) == ["model.safetensors"]
    path = folder / ("model.safetensors" if alone else f"{weights}.safetensors")
    expected = digests.get(path.name)
    if not path.is_file() or expected is None or sha256(path) != expected:
        raise UserError(
            f"{path}: is missing, cut short or changed (its checksum differs from config.json); "
            "use another checkpoint"
        )
    return path


def read_weights(folder: Path, weights: Weights = "ema") -> dict[str, Tensor]:
    """The tensors of a model's folder in float32, after their checksum was compared.

    Where it has one weight file (an exported model, packaged weights), that is `model`.
    Raises UserError for a file that is damaged, or has values that are not finite.
    """
    path = _whole(folder, weights)
    try:
        tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
    except SafetensorError:
        raise UserError(f"{path}: is not a safetensors file") from None
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise UserError(
            f"{path}: '{broken[0]}' holds values that are not finite; use another checkpoint"
        )
    return tensors


def read_fitting_spec(folder: Path, weights: Weights = "ema") -> config.ModelSpec:
    """What the weights in `folder` belong to, if they fit it.

    Their header is compared with a network that has no memory yet, so that a config.json cannot ask
    for more than there is. Raises UserError where they do not fit, or the file is damaged.
    """
    spec, path = read_spec(folder), _whole(folder, weights)
    try:
        with safe_open(path, "pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError:
        raise UserError(f"{path}: is not a safetensors file") from None
    options = spec.network.options
    deep = {k: v for k, v in options.items() if "depth" in k or k == "levels"}
    deep["depth"] = spec.network.depth
    try:
        if too_deep := [k for k, v in deep.items() if not v <= len(found)]:
            name = f"network.{too_deep[0]}"
        else:
            expected = factory.unallocated_network(spec).state_dict()
            shapes = {name: tuple(tensor.shape) for name, tensor in expected.items()}
            names = sorted(shapes.keys() | found.keys())
            name = next((n for n in names if shapes.get(n) != found.get(n)), "")
    except (RuntimeError, TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{folder}: its config.json describes no network ({reason})") from None
    if name:
        raise UserError(f"{folder}: '{name}' does not fit the network that config.json names")
    return spec


def load(
    source: str | Path,
    *,
    weights: Weights = "ema",
    device: str = "auto",
    vae: str | Path | None = None,
    precision: Precision = "fp32",
) -> Model:
    """Load a model: `source` as in `find`. Raises UserError for a missing or damaged one.

    `precision`: of the network's multiplications (auto: bf16 where the device is fast at it).
    `vae`: where the autoencoder of a model of latents is now, if it has moved since training.
    """
    while True:
        folder = find(source)
        try:
            spec, tensors = read_fitting_spec(folder, weights), read_weights(folder, weights)
            break
        except (UserError, OSError):
            if folder.is_dir():  # else its run went on, and has cleared it meanwhile
                raise
    if vae is not None:
        if spec.space.kind != "latents":
            raise UserError(f"--vae {vae}: this model works in {spec.space.kind}; leave --vae out")
        spec = dataclasses.replace(spec, space=dataclasses.replace(spec.space, vae=str(vae)))
        autoencoders.of_space(spec.space, spec.channels, "--vae")
    model = build(spec)
    model.denoiser.backbone.load_state_dict(tensors)
    keep_freed_memory()
    model.denoiser.to(pick_device(device)).eval()
    model.precision = precision
    return model


def write_model(
    folder: Path, spec: config.ModelSpec, weights: Mapping[Weights, dict[str, Tensor]]
) -> None:
    """Write `NAME.safetensors` for each set of weights, and `config.json`."""
    digests = {}
    for name, tensors in weights.items():
        path = folder / f"{name}.safetensors"
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, path)
        with safe_open(path, "pt"):  # whole: it compares the header with the length of the file
            path.chmod(0o666 & ~umask())  # safetensors writes files that only their owner can read
        digests[path.name] = sha256(path)
    card = {
        "format": FORMAT,
        "underpaint": __version__,
        "model": config.to_dict(spec),
        "sha256": digests,
    }
    (folder / "config.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")


def umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
