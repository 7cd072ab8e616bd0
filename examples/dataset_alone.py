"""Decode images once, then read batches: `python dataset_alone.py [FOLDER [SIZE]]`."""

import sys

import underpaint as up
from underpaint import config
from underpaint.data import Order

source = sys.argv[1] if len(sys.argv) > 1 else "avatars:pixel-art"
size = (int(sys.argv[2]),) if len(sys.argv) > 2 else ()  # (): the images' own
images = up.prepare(config.Data(source=source, size=size))
print(f"{len(images.images):,} images, {len(images.held_out_ids):,} of them held out")
print(f"labels: {', '.join(images.label_names) or 'none'}")

order = Order(images.train_ids, seed=0)  # shuffled anew each epoch, from the seed alone
ids = order.at(position=0, count=32)
batch = images.batch(ids)  # uint8 [32, H, W, C]
first = ids[0]
print(f"batch {batch.shape}; first: {images.names[first]}, sha256 {images.file_sha256[first][:12]}")
