"""The small recipe of the training tests, and photographs as in those of data."""

from tests.data.conftest import photos
from tests.training.conftest import images, recipe

__all__ = ["images", "photos", "recipe"]
