"""The autoencoder behind a latent space: images ↔ latents, by a diffusers folder that the user has.

    z = scale · (mean + std · n − shift),   n ~ N(0, I);      image = decode(z / scale + shift)

with scale and shift from the autoencoder's own config (latent diffusion: Rombach et al. 2022, arXiv
2112.10752, scale 0.18215). An `AutoencoderTiny` has no spread: std = 0.
"""

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from underpaint import config
from underpaint.bounded import DAMAGE, read_json
from underpaint.errors import UserError

KINDS = ("AutoencoderKL", "AutoencoderTiny")


class VAE:
    """An autoencoder's folder. Its weights are read when they are first used."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.settings = folder, settings
        self.kind = str(settings["_class_name"])
        self.channels = int(settings["in_channels"])
        self.latent_channels = int(settings["latent_channels"])
        tiny = self.kind == "AutoencoderTiny"
        widths = settings["encoder_block_out_channels" if tiny else "block_out_channels"]
        self.factor = 2 ** (len(widths) - 1)  # sides are halved between two levels
        self.scale = float(settings.get("scaling_factor") or 1.0)
        self.shift = float(settings.get("shift_factor") or 0.0)

    @cached_property
    def digest(self) -> str:
        """sha256 of its config and weights."""
        digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode())
        for path in sorted(self.folder.glob("diffusion_pytorch_model*")):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    @cached_property
    def module(self) -> Any:
        """The network, in float32."""
        try:
            import diffusers
        except ImportError:
            raise UserError(
                "space.kind latents needs diffusers; type pip install 'underpaint[diffusers]'"
            ) from None
        try:
            module = getattr(diffusers, self.kind).from_pretrained(
                self.folder,
                torch_dtype=torch.float32,
                local_files_only=True,
                low_cpu_mem_usage=False,  # else a warning where accelerate is not installed
            )
        except Exception as error:  # of many types: a missing file, a damaged one, wrong shapes
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(f"{self.folder}: the {self.kind} cannot be read ({reason})") from None
        if not all(tensor.isfinite().all() for tensor in module.state_dict().values()):
            raise UserError(f"{self.folder}: the {self.kind} holds weights that are not finite")
        return module.eval().requires_grad_(False)

    @torch.inference_mode()
    def moments(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] in [-1, 1] → mean and std before scaling, [B, 2, c, h, w]."""
        encoded = self.module.to(images.device).encode(images)
        if self.kind == "AutoencoderTiny":
            return torch.stack([encoded.latents, torch.zeros_like(encoded.latents)], dim=1)
        law = encoded.latent_dist
        return torch.stack([law.mean, law.std], dim=1)

    def latents(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] in [-1, 1] → their latents z of no spread, [B, c, h, w]."""
        return self.scale * (self.moments(images)[:, 0] - self.shift)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents z [B, c, h, w] → images [B, C, H, W], about in [-1, 1]."""
        unscaled = latents.float() / self.scale + self.shift
        decoded: Tensor = self.module.to(latents.device).decode(unscaled).sample
        return decoded


def of_space(space: config.Space, channels: int, flag: str = "--space.vae") -> VAE:
    """The autoencoder of a latent space for images of `channels` colours.

    Raises UserError if there is none, or if it does not fit the space and the images; `flag` is
    what names its folder then.
    """
    if not space.vae:
        raise UserError(
            "space.kind latents needs an autoencoder; give --space.vae the folder of an "
            "AutoencoderKL or AutoencoderTiny of diffusers"
        )
    if not Path(space.vae).expanduser().exists():
        raise UserError(
            f"autoencoder {space.vae}: there is no such folder; give {flag} the folder where it is"
        )
    vae = read(space.vae, channels)
    for name in ("latent_channels", "factor"):
        actual, asked = getattr(vae, name), getattr(space, name)
        if actual != asked:
            raise UserError(
                f"space.vae {space.vae}: its {name} is {actual}, space.{name} is {asked}; "
                f"set --space.{name} {actual} or give another autoencoder"
            )
    return vae


def read(path: str | Path, channels: int) -> VAE:
    """The autoencoder in the folder `path`, for images of `channels` colours.

    Raises UserError if it is none, or takes images of other channels.
    """
    folder = Path(path).expanduser()
    try:
        settings = read_json(folder / "config.json")
        if settings["_class_name"] not in KINDS:
            raise KeyError
        vae = VAE(folder, settings)
    except DAMAGE:
        raise UserError(
            f"autoencoder {path}: is not the folder of an AutoencoderKL or AutoencoderTiny (its "
            "config.json is missing or names another class); give that folder"
        ) from None
    if vae.channels != channels:
        raise UserError(
            f"autoencoder {path}: takes images of {vae.channels} channels, these have {channels}; "
            "set data.channels or give another autoencoder"
        )
    return vae
