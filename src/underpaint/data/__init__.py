"""Images: from folders, archives and tables to batches of uint8 pixels.

`prepare` decodes once into a cache, `Dataset` reads from it, `Order` says which images come when.
"""

from underpaint.data.dataset import Dataset, prepare, transparency
from underpaint.data.order import Order, augment

__all__ = ["Dataset", "Order", "augment", "prepare", "transparency"]
