"""FLOPs of networks, remembered in the cache: counting them imports torch's compiler, for seconds.

    ROOT/counts/KEY.json   FLOPs per image of a forward pass

KEY hashes torch's version, the sources of the networks, the network's arguments and the mask. Only
the package's networks are remembered: nobody knows on what others depend.
"""

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from underpaint import backbones
from underpaint.backbones import counting
from underpaint.bounded import Is, checked, read_json
from underpaint.data import cache, digests
from underpaint.io import replace_text

Kind = Callable[..., nn.Module]
KNOWN = {"flops": Is(int, 1)}


@functools.cache
def flops(kind: Kind, arguments: counting.Arguments, visible: int, mask: str) -> int:
    """As `counting.flops`, which see."""
    if kind.__module__.rpartition(".")[0] != backbones.__name__:
        return counting.flops(kind, arguments, visible, mask)
    about = (torch.__version__, _sources(), kind.__name__, repr(arguments), str(visible), mask)
    path = cache.root() / "counts" / f"{digests.of_text(*about)[:32]}.json"
    try:
        return int(checked(read_json(path), KNOWN)["flops"])
    except (OSError, ValueError):
        counted = counting.flops(kind, arguments, visible, mask)
    with contextlib.suppress(OSError):  # else it is counted again the next time
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps({"flops": counted}))
    return counted


@functools.cache
def _sources() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(backbones.__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
