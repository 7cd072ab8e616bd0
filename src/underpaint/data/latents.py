"""Latents on disk: an autoencoder's encoding of every image, computed once.

    ROOT/latents/KEY/moments.bin         float16, n × 2 (as it is, mirrored) × 2 (mean, std) ×
                                         c × h × w
    ROOT/latents/KEY/index.safetensors   sha256 of the latents of each image; shape, scale, shift

Each step draws z = scale · (mean + std · n − shift) anew. KEY hashes the key of the decoded images,
the autoencoder's weights and FORMAT.
"""

import dataclasses
from pathlib import Path

import numpy as np
import torch

from underpaint.bounded import DAMAGE, Is, checked
from underpaint.core.spaces import from_uint8
from underpaint.data import cache, digests, index
from underpaint.data.dataset import Dataset, Latents
from underpaint.progress import doing
from underpaint.vae import VAE

FORMAT = "2"
ABOUT = {
    "shape": Is(list, 6, 6, Is(int, 1, 2**40)),
    "scale": Is(float, -1e9, 1e9),
    "shift": Is(float, -1e9, 1e9),
}
BATCH = 16
LARGEST = float(np.finfo(np.float16).max)


def prepare(
    dataset: Dataset,
    vae: VAE,
    *,
    force: bool = False,
    device: torch.device | str = "cpu",
) -> Dataset:
    """The data set with its latents, which are computed unless the cache has them."""
    key = digests.of_text(FORMAT, dataset.key, vae.digest)
    folder = cache.root() / "latents" / key
    moments, _ = cache.built(folder, _load, lambda part: _encode(part, dataset, vae, device), force)
    report = dataset.report | {
        "latents": list(moments.array.shape[3:]),
        "latents_cache": str(folder),
    }
    latents = Latents(moments.array, vae.scale, vae.shift, moments)
    return dataclasses.replace(dataset, latents=latents, key=key, report=report)


def _load(folder: Path) -> cache.Rows | None:
    try:
        arrays, about = index.read(folder / cache.INDEX)
        n, *_ = shape = tuple(checked(about, ABOUT)["shape"])
        moments, sums = cache.Rows(folder / "moments.bin", np.float16, shape), arrays["sha"]
        return moments if sums.shape == (n, 32) and moments.have(sums, cache.some(n)) else None
    except DAMAGE:
        return None  # whatever is wrong with it, building it anew is the answer


def _encode(folder: Path, dataset: Dataset, vae: VAE, device: torch.device | str) -> None:
    n = len(dataset.images)
    shape: tuple[int, ...] = ()
    sums: list[bytes] = []
    with (folder / "moments.bin").open("wb") as file, doing("encoding images", n) as at:
        for start in range(0, n, BATCH):
            images = np.array(dataset.images[start : start + BATCH])
            encoded = [
                vae.moments(from_uint8(side).to(device)).cpu()
                for side in (images, images[:, :, ::-1])
            ]
            both = torch.stack(encoded, dim=1).clamp(-LARGEST, LARGEST)
            packed = both.to(torch.float16).numpy()
            file.write(packed.tobytes())
            sums += [digests.of_array(image) for image in packed]
            shape = tuple(both.shape[1:])
            at(min(start + BATCH, n))
    about = {"shape": [n, *shape], "scale": vae.scale, "shift": vae.shift}
    sha = np.frombuffer(b"".join(sums), np.uint8).reshape(n, 32)
    index.write(folder / cache.INDEX, {"sha": sha}, about)
