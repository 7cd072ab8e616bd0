"""Images: from folders, archives and tables to batches of uint8 pixels.

`prepare` decodes once into a cache, `Dataset` reads from it, `Order` says which images come when.
"""

from underpaint.data.dataset import Dataset, prepare
from underpaint.data.order import Order, augment
from underpaint.sealed.format import Sealed

__all__ = ["Dataset", "Order", "Sealed", "augment", "prepare"]
