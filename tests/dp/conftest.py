"""The small recipe of the training tests."""

from tests.training.conftest import images, recipe

__all__ = ["images", "recipe"]
