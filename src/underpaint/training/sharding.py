"""Weights, moments and averages shared among the processes of a run, each a part of every tensor.

`fully_shard` (FSDP2; Zhao et al. 2023, arXiv 2304.11277): of each tensor every process keeps some of
its rows. A block's whole weights are gathered when it is computed, and forgotten; its gradients are
averaged into the rows. So of n processes each has an nth of

    weights + gradients + moments + average

and, for a while, one block's whole weights. The average is a second such module, moved row by row.
Imported where `train.parallel` asks for it alone (`train_state.prepare_state`).
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from underpaint import backbones, config
from underpaint.model import Model, build
from underpaint.model_folder import Weights
from underpaint.training.muon import Muon
from underpaint.training.optim import build_optimizer, scale_gradients
from underpaint.training.train_state import UNCERTAINTY, Tensors, TrainState


class ShardedState(TrainState):
    """A `TrainState` of which each process has a part; what it gives and takes is whole.

    `averaged` is whole, in the first process alone, and holds the average after `fill_averaged`.
    """

    sharded = True

    def _compile(self) -> None:
        for block in self.model.backbone.all_blocks():  # gathering comes between them
            block.compile(dynamic=False)

    def _place(self) -> Model:
        world, average = self.world, cast(Any, self.ema.module)
        mesh = init_device_mesh(world.device.type, (world.size,))
        # on GPUs a block's weights are gathered in the type that they are multiplied in
        half = self.bf16 and world.device.type == "cuda"
        policy = (
            MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
            if half
            else MixedPrecisionPolicy()
        )
        for block in self.model.backbone.all_blocks():
            fully_shard(block, mesh=mesh, mp_policy=policy)
        if self.uncertainty is not None:
            fully_shard(self.uncertainty, mesh=mesh)
        fully_shard(self.loss, mesh=mesh)
        for block in average.backbone.all_blocks():
            fully_shard(block, mesh=mesh)
        fully_shard(average, mesh=mesh)
        pair = (average, self.model.denoiser)
        self.ema.bind(*([local(p) for p in module.parameters()] for module in pair))
        self._filled = -1  # steps of the average that `averaged` holds
        return build(self.spec).to(world.device if world.first else "meta")

    def _optimizer(self, train: config.Train, extra: Iterable[Tensor]) -> torch.optim.Optimizer:
        device = self.world.device
        return build_optimizer(self.backbone, train, device, extra, self.bf16, ShardedMuon)

    def accumulating(self, more: bool) -> Any:
        """Do not exchange gradients yet when `more` microbatches of the step follow."""
        cast(FSDPModule, self.loss).set_requires_gradient_sync(not more)
        return super().accumulating(more)

    def clip(self, limit: float | Tensor) -> Tensor:
        """As of the whole gradients: their norm is that of all parts."""
        gradients = [local(p.grad) for p in self.backbone.parameters() if p.grad is not None]
        square = nn.utils.get_total_norm(gradients).square()
        self.world.add(square)
        norm = square.sqrt()
        scale_gradients(gradients, norm, limit)
        return norm

    def fill_averaged(self) -> None:
        """Gather the average in the first process, one tensor after another; all take part."""
        if self._filled == self.ema.steps:
            return
        average = self.ema.module.state_dict()
        whole = self.averaged.denoiser.state_dict()
        with torch.no_grad():
            for name, tensor in average.items():
                gathered = full(tensor)
                if self.world.first:
                    whole[name].copy_(gathered)
        self._filled = self.ema.steps

    # --- tensors in and out ------------------------------------------------------------------------

    def weights(self) -> dict[Weights, Tensors]:
        """As of one process: whole tensors, on the CPU, in all; all take part."""
        average = cast(Any, self.ema.module).backbone
        return {"model": _whole(self.backbone), "ema": _whole(average)}

    def load(self, weights: Mapping[Weights, Tensors], ema_steps: int) -> None:
        """Take over this process's parts of whole tensors."""
        average = cast(Any, self.ema.module).backbone
        for module, given in ((self.backbone, "model"), (average, "ema")):
            _take(module, weights[cast(Weights, given)])
        self.ema.steps, self._filled = ema_steps, -1

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        """As of one process: whole tensors, on the CPU, in all; all take part."""
        state = super().optimizer_state()
        return {n: {k: full(v).cpu() for k, v in s.items()} for n, s in state.items()}

    def load_optimizer(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Take over this process's parts of whole tensors."""
        weights = dict(self.backbone.named_parameters())
        if self.uncertainty is not None:
            weights[UNCERTAINTY] = self.uncertainty.weight
        parts = {
            name: {k: _part(v, weights[name]) if v.shape else v for k, v in moments.items()}
            for name, moments in state.items()
            if name in weights
            and all(v.shape in (weights[name].shape, ()) for v in moments.values())
        }
        super().load_optimizer(parts)


class ShardedMuon(Muon):
    """Muon on parts of matrices: momentum on these, each whole matrix orthogonalised everywhere."""

    def local(self, x: Tensor) -> Tensor:
        return local(x)

    def whole(self, x: Tensor, weight: Tensor) -> Tensor:
        return full(_like(x, weight))

    def part(self, x: Tensor, weight: Tensor) -> Tensor:
        return local(_part(x, weight))


def local(x: Tensor) -> Tensor:
    """The rows of `x` that are in this process; changing them changes it."""
    return x.to_local() if isinstance(x, DTensor) else x


def full(x: Tensor) -> Tensor:
    """All of `x`, which is gathered: in all processes, or in none."""
    # cloned: what gathering gives may be read before it is there
    return x.full_tensor().clone() if isinstance(x, DTensor) else x


def _part(x: Tensor, weight: Tensor) -> Tensor:
    """`x`, the same in all processes, shared as `weight` is."""
    if not isinstance(weight, DTensor):
        return x
    mesh, placements = weight.device_mesh, weight.placements
    device = local(weight).device
    return distribute_tensor(x.to(device), mesh, placements, src_data_rank=None)


def _like(x: Tensor, weight: Tensor) -> Tensor:
    """This process's rows `x` of something that is shared as `weight` is."""
    if not isinstance(weight, DTensor):
        return x
    mesh, placements = weight.device_mesh, weight.placements
    return DTensor.from_local(
        x, mesh, placements, run_check=False, shape=weight.shape, stride=weight.stride()
    )


def _whole(module: nn.Module) -> Tensors:
    return {name: full(tensor.detach()).cpu() for name, tensor in module.state_dict().items()}


@torch.no_grad()
def _take(module: nn.Module, whole: Tensors) -> None:
    for name, tensor in module.state_dict().items():
        local(tensor).copy_(local(_part(whole[name], tensor)))
