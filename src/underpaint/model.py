"""A trained model: a denoiser, the space it works in, and the names of its labels.

What it is on disk: `model_folder.py`.
"""

import contextlib
import dataclasses
import importlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self, cast
from unicodedata import normalize

import numpy as np
import torch
from torch import Tensor

from underpaint import backbones, config, editing, factory
from underpaint import vae as autoencoders
from underpaint.core import samplers, spaces
from underpaint.core.denoiser import Denoiser
from underpaint.core.guidance import guided
from underpaint.core.samplers import Sampling
from underpaint.errors import UserError
from underpaint.hardware import Precision, keep_freed_memory, pick_device, use_bf16
from underpaint.io import appearing, check_place, holds_only, writing
from underpaint.model_folder import (
    SAVED,
    Origin,
    Weights,
    find,
    pinned,
    read_fitting_spec,
    read_weights,
    warn_once,
    write_model,
)
from underpaint.progress import doing
from underpaint.vae import VAE


class Model:
    """A denoiser with what is needed to use it on images."""

    def __init__(self, spec: config.ModelSpec, denoiser: Denoiser, space: spaces.Space) -> None:
        self.spec, self.denoiser, self.space = spec, denoiser, space
        self.origin: Origin | None = None  # of a model that was loaded

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

    def save(self, folder: str | Path, *, half: bool = False, overwrite: bool = False) -> Path:
        """Write the model into `folder`, which `load` reads; returns it.

        `model.safetensors`, in float16 if `half`; `config.json`; of a model that was loaded also a
        card, `README.md`, and the samples that it shows, `samples.png` (see `interop.card`). Raises
        UserError if the folder exists, unless it holds a model and `overwrite` is given.
        """
        out = Path(folder).expanduser()
        if out.exists() and not overwrite:
            raise UserError(f"{out}: exists already; add overwrite=True or choose another folder")
        other = not holds_only(out, SAVED) or not (out / "config.json").exists()
        if out.exists() and other and any(out.iterdir()):
            raise UserError(f"{out}: holds other files than a model; choose another folder")
        check_place(out.parent)
        with writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            with appearing(out, SAVED) as temporary:
                self.write(temporary, half=half)
        return out

    def write(self, folder: Path, *, half: bool = False, name: str | None = None) -> None:
        """Fill an empty folder as `save` does; `name`: what the card calls the model."""
        spec = self.spec
        if spec.space.vae:  # a path of this machine; whoever loads it gives `vae`
            spec = dataclasses.replace(spec, space=dataclasses.replace(spec.space, vae=""))
        write_model(folder, spec, {"model": self.backbone.state_dict()}, half)
        if self.origin is not None:
            _interop("card").write(self, folder, half=half, name=name)

    def push_to_hub(
        self,
        name: str,
        *,
        private: bool | None = None,
        half: bool = False,
        message: str | None = None,
    ) -> str:
        """Upload what `save` writes to `org/name` on the Hugging Face Hub; returns its address.

        The repository is made if it is not there, `private` or not (None: as the Hub makes those of
        `org`); `org/name@BRANCH` is a branch of it, which is made as well. `message`: of the
        commit. A licence that the card there names is kept. You must be logged in (`hf auth
        login`). Raises UserError where the Hub refuses.
        """
        address: str = _interop("hub").push(self, name, private, half, message)
        return address

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

    def label_ids(self, labels: str | Sequence[str | int]) -> list[int]:
        """Class numbers of a name, or of names or numbers (-1: none).

        A text is a name, never a number: '3' is the label that is called so. Raises UserError for
        what is unknown.
        """
        if not self.label_names:
            raise UserError("this model was trained without labels; leave the label out")
        labels = [labels] if isinstance(labels, str) else labels
        if not labels:
            raise UserError(f"labels {labels!r}: give at least one name, or None")
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
        if not space.vae:
            raise UserError(
                "this model draws latents, and its autoencoder does not come with it; add --vae "
                "and the folder of the autoencoder that it was trained with (in Python: vae=FOLDER)"
            )
        if not Path(space.vae).expanduser().exists():
            raise UserError(
                f"{space.vae}: the autoencoder that this model was trained with is not there any "
                "more; add --vae and the folder where it is now to sample, evaluate or audit (in "
                "Python: vae=FOLDER)"
            )
        warn_once(f"{space.vae}: the autoencoder that the model's settings name is read")
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
        labels: str | Sequence[str | int] | None = None,
        batch: int = 64,
        **changes: Any,
    ) -> np.ndarray:
        """Draw `n` images: uint8 [n, H, W, C], of four channels RGBA with straight colours.

        Sample i has the seed `seed + i` and depends on it alone, not on the batch or device count.
        `labels` (a name, or names or numbers) are repeated to `n`; None draws without a label.
        `changes`: fields of `core.samplers.Sampling` (sampler, steps, grid, guidance, clip, …) that
        shall differ from the model's own. Raises UserError for settings that cannot work.
        """
        with self._drawing(n, seed=seed, labels=labels, batch=batch, **changes) as drawing:
            images = np.empty((n, *self.spec.size, self.spec.channels), np.uint8)
            for part, source, first in drawing.parts():
                x, sigmas = first * float(drawing.sigmas[0]), drawing.sigmas

                def stepped(i: int, *_: Tensor, part: range = part) -> None:
                    drawing.at(part.start + len(part) * (i + 1) / drawing.sampling.steps, n)

                denoise, how = drawing.denoise(part), drawing.sampling
                x0 = samplers.sample(denoise, x, sigmas, how, noise=source.step, callback=stepped)
                images[part.start : part.stop] = spaces.to_uint8(self.images(x0)).numpy()
        return images

    @contextlib.contextmanager
    def _drawing(
        self,
        n: int,
        *,
        seed: int = 0,
        labels: Sequence[str | int] | None = None,
        batch: int = 64,
        **changes: Any,
    ) -> Iterator[editing.Drawing]:
        """What `n` images are drawn with, the network in evaluation mode. Raises as `sample`."""
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

        with torch.inference_mode(), evaluating(self.denoiser), doing("sampling") as at:
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
                at=at,
            )

    # `how` of the methods below: seed, labels, batch and settings as in `sample`

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

        `keep`: booleans, True where an image stays bit for bit; of pixels [H, W] or [n, H, W], or
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
        """Images uint8 [n, H, W, C] from visible patches alone; the rest as `inpaint`.

        `patches` uint8 [n, V, C·p²] and `positions` int [n, V] as sealed data hold them (of four
        channels premultiplied); p need not be the model's.
        """
        with self._drawing(len(patches), **how) as drawing:
            return editing.restore(drawing, patches, positions, resample, soft)

    def vary(self, images: np.ndarray, strength: float = 0.6, **how: Any) -> np.ndarray:
        """Images like `images` uint8 [n, H, W, C]: noised, and drawn from there (SDEdit).

        `strength`: the share of the sampling steps that are taken, above 0 (the image as it is)
        to 1 (a sample of that seed, of which the image is no part). Raises UserError.
        """
        with self._drawing(len(images), **how) as drawing:
            return editing.vary(drawing, images, strength)

    def interpolate(self, seed_a: int, seed_b: int, n: int = 8, **how: Any) -> np.ndarray:
        """`n` images from the sample of one seed to that of another: uint8 [n, H, W, C].

        Their noise lies on the sphere between (slerp), evenly. Samplers that add noise are refused.
        """
        if "seed" in how:
            raise UserError("interpolate goes between two seeds; leave the argument seed out")
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


def load(
    source: str | Path,
    *,
    revision: str | None = None,
    weights: Weights = "ema",
    device: str = "auto",
    vae: str | Path | None = None,
    precision: Precision = "fp32",
) -> Model:
    """Load a run, a checkpoint, a saved model, `pretrained:NAME` or `org/name` on the Hub.

    Raises UserError for a missing or damaged one, or where the Hub is not reached.
    `revision` of `org/name`: a branch, a tag or a commit; a folder that is there comes before a
    model of that name on the Hub. `precision`: of the network's multiplications (auto: bf16 where
    the device is fast at it).
    `vae`: where the autoencoder of a model of latents is now, if it has moved since training.
    """
    source = pinned(source, revision)
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
    model.origin = Origin(folder, weights, str(source))
    return model


def _interop(name: str) -> Any:
    """A module of `interop`, which is imported when it is asked for: no training needs it."""
    return importlib.import_module(f"underpaint.interop.{name}")
