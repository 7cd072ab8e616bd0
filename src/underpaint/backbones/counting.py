"""What a network costs an image, counted on tensors that have shapes but no memory.

    FLOPs         of a forward pass, 2 a multiply-add of linear layers, convolutions and attention
    activations   bytes kept for the backward pass: what one image more adds

The network is built anew and sees zeros in the shapes that a mask leaves; answers are kept. Only
forward passes are counted, since torch takes the weight gradient of a depthwise convolution for
that of a dense one: training costs three times the forward.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from underpaint.core.masks import Mask

Arguments = tuple[tuple[str, Any], ...]  # of a constructor, by name

# torch's own table has the fused attention of GPUs, not that of CPUs
_FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@functools.cache
def flops(kind: Callable[..., nn.Module], arguments: Arguments, visible: int, mask: str) -> int:
    """FLOPs of a forward pass of `kind(**arguments)` on `visible` patches under this mask."""
    counter = FlopCounterMode(display=False, custom_mapping={_FUSED: _attention})
    with _without_memory(), torch.no_grad():
        network = kind(**dict(arguments))
        inputs = _inputs(network, visible, mask, 1)
        with counter:
            network(*inputs)
    return counter.get_total_flops()


@functools.cache
def activation_bytes(
    kind: Callable[..., nn.Module],
    arguments: Arguments,
    visible: int,
    mask: str,
    half: bool,
    fused: bool,
    recompute: bool = False,
) -> int:
    """Bytes an image that autograd keeps, as on a CPU.

    `half`: under bf16 autocast; not `fused`: with attention's T × T weights. `recompute`: of each
    block what goes into it, and once what the largest keeps.
    """
    backends = [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH] if fused else [SDPBackend.MATH]
    with _without_memory(half), sdpa_kernel(backends):
        network: Any = kind(**dict(arguments))  # as it trains: with dropout's masks
        # from two on: some copies of a batch are views where it has one image
        blocks = network.all_blocks() if recompute else []
        two, three = (
            _kept(network, _inputs(network, visible, mask, batch), blocks) for batch in (2, 3)
        )
    return three - two


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """FLOPs of softmax(q kᵀ) v by their shapes: 4·T²·width of self-attention."""
    return int(sdpa_flop_count(query, key, value))


def _kept(network: Any, inputs: tuple[Any, ...], blocks: list[nn.Module]) -> int:
    """Bytes of the floating-point tensors, weights apart, that a forward pass keeps.

    Of what `blocks` keep, which is computed again, only what goes in, and the most that one has.
    """
    weights = {p.untyped_storage()._cdata for p in network.parameters()}
    outside: dict[int, torch.UntypedStorage] = {}
    inside: list[dict[int, torch.UntypedStorage]] = [{} for _ in blocks]
    kept = outside

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if x.is_floating_point() and storage._cdata not in weights:
            kept[storage._cdata] = storage
        return x

    def entering(i: int, given: tuple[Any, ...]) -> None:
        nonlocal kept
        for x in given:
            if isinstance(x, Tensor):
                keep(x)
        kept = inside[i]

    def leaving() -> None:
        nonlocal kept
        kept = outside

    handles = []
    for i, block in enumerate(blocks):
        handles += [
            block.register_forward_pre_hook(lambda _, given, i=i: entering(i, given)),
            block.register_forward_hook(lambda *_: leaving()),
        ]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        output = network(*inputs)
    for handle in handles:
        handle.remove()
    parts = [{k: v for k, v in part.items() if k not in outside} for part in inside]
    total, *most = (sum(s.nbytes() for s in part.values()) for part in (outside, *parts))
    del output  # until here its graph has held what is counted
    return total + max(most, default=0)


@contextmanager
def _without_memory(half: bool = False) -> Iterator[None]:
    """Tensors of a CPU without memory, whatever mode the caller is in."""
    with (
        FakeTensorMode(),
        torch.device("cpu"),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", torch.bfloat16, enabled=half),
    ):
        yield


def _inputs(network: Any, visible: int, mask: str, batch: int) -> tuple[Any, ...]:
    """Patches, c_noise, labels and a mask with the shapes of `batch` images."""
    N = network.grid[0] * network.grid[1]
    if not 0 < visible <= N:
        raise ValueError(f"{visible} visible patches: the grid {network.grid} has {N}")

    def ids(count: int) -> Tensor:
        return torch.zeros(batch, count, dtype=torch.long)

    shown = Mask(network.grid)
    if visible < N:
        window = ids(4) if mask == "crop" else None
        shown = Mask(network.grid, ids(visible), ids(N - visible), window)
    patches = torch.zeros(batch, visible, network.patch_dim)
    labels = ids(1)[:, 0] if network.classes else None
    return patches, torch.zeros(batch), labels, shown
