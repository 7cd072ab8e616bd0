"""The small recipe of the training tests, and photographs as in those of data."""

from tests.data.conftest import cache, photos
from tests.training.conftest import images, recipe

__all__ = ["cache", "images", "photos", "recipe"]
