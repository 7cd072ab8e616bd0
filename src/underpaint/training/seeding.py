"""Where randomness comes from: the position in the run, never the process that computes it.

Everything random in a microbatch (augmentation, time, noise, mask, label drop, dropout) is drawn
from a generator seeded by (seed, stage, position of the microbatch's first image, attempt). Two
devices with 16 images each therefore draw what one device draws for two microbatches of 16, and a
resumed run continues bit for bit without any stored generator state. `attempt` counts the returns
to a checkpoint after a divergence, so that the same batch is not met with the same draws.
"""

import hashlib

__all__ = ["seed_from"]


def seed_from(*parts: int | str) -> int:
    """A 63-bit seed from the parts, by BLAKE2b (equal parts, equal seed; else independent)."""
    text = "/".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
