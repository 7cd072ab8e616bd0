"""Fixed masks: an image keeps one mask for ever, drawn from HMAC-SHA256(key, sha256 of its pixels).

With the key anybody who has the image can draw its mask again, without it nobody can.
"""

from __future__ import annotations

import hmac
from pathlib import Path

from underpaint.errors import UserError

__all__ = ["read_key", "seed"]

KEY_BYTES = 16  # the least


def seed(key: bytes, pixel_sha: bytes) -> int:
    """63 bits from which an image's mask is drawn; `pixel_sha`: the sha256 of its pixels."""
    digest = hmac.digest(key, pixel_sha, "sha256")
    return int.from_bytes(digest[:8], "big") >> 1


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
