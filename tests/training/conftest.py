"""A recipe so small that a whole run takes a second."""

from pathlib import Path

import numpy as np
import pytest
import torch

from underpaint import config

torch.set_num_threads(1)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """60 images of 16×16 with two labels, the left or the right half bright."""
    return draw_images(tmp_path / "images.npz")


@pytest.fixture
def recipe(images: Path) -> config.Run:
    """Two stages of 96 and 64 images."""
    return small_recipe(images)


def draw_images(path: Path) -> Path:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 60, (60, 16, 16, 3), dtype=np.uint8)
    labels = np.arange(60) % 2
    for image, label in zip(pixels, labels, strict=True):
        image[:, 8 * label : 8 * label + 8] += 150
    np.savez(path, images=pixels, labels=labels)
    return path


def small_recipe(images: Path) -> config.Run:
    return config.from_dict(
        config.Run,
        {
            "data": {"source": str(images)},
            "network": {"width": 64, "depth": 3, "heads": 2, "dropout": 0.1},
            "stages": {
                "masked": {"images": 96, "mask": "patch", "rate": 0.5, "batch": 8, "flip": True},
                "whole": {"images": 64, "batch": 8, "schedule": "cooldown", "learning_rate": 5e-4},
            },
            "train": {
                "threads": 1,
                "precision": "fp32",  # also in processes of their own
                "log_every": 16,
                "sample_every": 80,
                "check_every": 40,
                "checkpoint_every": 32,
            },
            "sampling": {"count": 4, "steps": 2, "sampler": "euler"},
        },
        "test: ",
    )
