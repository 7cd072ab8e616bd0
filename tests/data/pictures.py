"""Small pictures, drawn when a test needs them."""

import io
from pathlib import Path

import numpy as np
from PIL import Image


def noise(n: int, height: int = 8, width: int = 8, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Random images [n, H, W, C]."""
    shape = (n, height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png(pixels: np.ndarray, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(file, format, **options)
    return file.getvalue()


def write_folder(folder: Path, images: np.ndarray, labels: list[str] | None = None) -> Path:
    """folder/LABEL/000.png ..."""
    for i, pixels in enumerate(images):
        place = folder / labels[i] if labels else folder
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i:03}.png").write_bytes(png(pixels))
    return folder
