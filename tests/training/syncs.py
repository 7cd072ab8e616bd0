"""A detector of what makes the host wait for a device: numbers read, shapes that depend on values.

    with NoSync():
        step(…)          # raises Sync, in the line that waits

It works on a CPU, where nothing is slow about it. Two modes, since a CPU's tensor gives its numbers
to Python (`tolist`, `numpy`) and is its own copy (`cpu`) without any operation that is dispatched.
Threads are not looked into: what another one reads or copies keeps no step waiting.
"""

from contextlib import ExitStack
from typing import Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
READS = {
    *(aten._local_scalar_dense, aten.item, aten.is_nonzero, aten.equal, aten.allclose),
    # the shape of what they return depends on values
    *(aten.nonzero, aten.nonzero_numpy, aten.argwhere, aten.masked_select, aten.bincount),
    *(aten.unique_dim, aten.unique_consecutive, aten._unique, aten._unique2),
}
INDEXED = {aten.index, aten._unsafe_index, aten.index_put, aten.index_put_, aten._index_put_impl_}
COPIES = {aten._to_copy, aten.copy_, aten.copy}
METHODS = {Tensor.tolist, Tensor.numpy, Tensor.cpu}


class Sync(AssertionError):
    """A step waits for the device."""


class NoSync:
    """Raises Sync where the host would wait for a device."""

    def __enter__(self) -> Self:
        self._modes = ExitStack()
        self._modes.enter_context(_Dispatched())
        self._modes.enter_context(_Called())
        return self

    def __exit__(self, *error: object) -> None:
        self._modes.close()


class _Called(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in METHODS:
            raise Sync(f"Tensor.{func.__name__}")
        return func(*args, **(kwargs or {}))


class _Dispatched(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if packet in READS or (func is aten.repeat_interleave.Tensor and not kwargs):
            raise Sync(str(func))
        if packet in INDEXED and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        ):
            raise Sync(f"{func} by a boolean")
        if packet in COPIES:
            _check_copy(func, args, kwargs)
        return func(*args, **kwargs)


def _check_copy(func: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """To a device a copy may go on while the host does; from one it is waited for."""
    if func.overloadpacket is aten._to_copy:
        source, target = args[0].device, torch.device(kwargs.get("device") or args[0].device)
        waits = not kwargs.get("non_blocking")
    else:
        target, source = args[0].device, args[1].device
        waits = not (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
    if source.type != target.type and (waits or source.type != "cpu"):
        raise Sync(f"{func} from {source} to {target}")
