"""Fixed masks: an image keeps one mask for ever, drawn from HMAC-SHA256(key, sha256 of its pixels).

With the key anybody who has the image can draw its mask again, without it nobody can.
"""

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path

import torch

from underpaint.errors import UserError

KEY_BYTES = 16  # the least


def seed_of(key: bytes | None, pixel_sha: bytes) -> int:
    """63 bits from which an image's mask is drawn; without a key anybody can who has the image."""
    if key is None:
        digest = hashlib.blake2b(f"mask/{pixel_sha.hex()}".encode(), digest_size=8).digest()
    else:
        digest = hmac.digest(key, pixel_sha, "sha256")[:8]
    return int.from_bytes(digest, "big") >> 1


def generators(key: bytes | None, pixel_shas: Iterable[bytes]) -> list[torch.Generator]:
    """What the masks of images with these pixels are drawn from."""
    return [torch.Generator().manual_seed(seed_of(key, sha)) for sha in pixel_shas]


def read_key(path: str | Path) -> bytes:
    """The bytes of a key file. Raises UserError if there are fewer than 16."""
    try:
        key = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise UserError(
            f"key '{path}' cannot be read ({error.strerror}); "
            "make one with: head -c 32 /dev/urandom > FILE"
        ) from None
    if len(key) < KEY_BYTES:
        raise UserError(f"key '{path}' has {len(key)} bytes; give a file of {KEY_BYTES} or more")
    return key
