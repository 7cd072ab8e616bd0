"""Where randomness comes from: the position in the run, never the process that computes it.

Everything random in a microbatch is drawn from a generator seeded by (seed, stage, position of the
microbatch's first image, attempt). Two devices therefore draw what one draws for two microbatches,
and a resumed run continues bit for bit. `attempt` counts the returns after a divergence.
"""

import hashlib


def seed_from(*parts: int | str) -> int:
    """A 63-bit seed from the parts, by BLAKE2b (equal parts, equal seed; else independent)."""
    text = "/".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
