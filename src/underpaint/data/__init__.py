"""Images: from folders, archives and tables to batches of uint8 pixels.

`prepare` decodes once into a cache, or indexes shards that are streamed; `Dataset` reads from
there, `Order` says which images come when.
"""

from underpaint.data.channels import on_channels as on_channels
from underpaint.data.dataset import Dataset as Dataset
from underpaint.data.order import Order as Order
from underpaint.data.order import augment as augment
from underpaint.data.preparation import prepare as prepare
from underpaint.data.preparation import prepare_part as prepare_part
from underpaint.data.streamed import Streamed as Streamed
