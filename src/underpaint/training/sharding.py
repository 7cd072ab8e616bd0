"""Weights, moments and averages shared among the processes of a run, each a part of every tensor.

`fully_shard` (FSDP2; Zhao et al. 2023, arXiv 2304.11277): of each tensor every process keeps some
of its rows. A block's whole weights are gathered when it is computed, and forgotten; its gradients
are averaged into the rows. So of n processes each has an nth of

    weights + gradients + moments + average

and, for a while, one block's whole weights. The average is a second such module, moved row by row.
Imported where `train.parallel` asks for it alone (`train_state.prepare_state`).
"""

import threading
import warnings
from collections import ChainMap
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from underpaint import config, shards
from underpaint.errors import UserError
from underpaint.io import writing
from underpaint.model import Model, build
from underpaint.model_folder import Weights, read_weights, sha256, whole_shards, write_card
from underpaint.training.checkpointing import (
    Progress,
    RunFolder,
    read_optimizer,
    read_progress,
)
from underpaint.training.distributed import lost
from underpaint.training.muon import Muon
from underpaint.training.optim import build_optimizer, scale_gradients
from underpaint.training.train_state import UNCERTAINTY, Tensors, TrainState

WEIGHTS: tuple[Weights, ...] = ("model", "ema")

# of linear layers in a block's place, which nothing here changes in place
warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")


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
        self._written: Future[None] | None = None  # the checkpoint that is being written
        self._group: dist.ProcessGroup | None = None
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

    # --- checkpoints, written while training goes on ----------------------------------------------

    def save(self, folder: RunFolder, progress: Progress, keep: int) -> None:
        """Begin to write a checkpoint of all parts as they are now; `finish` knows of its end.

        After the one before has ended. Each process writes its parts; the checkpoint appears, and
        LATEST names it, when all have.
        """
        self.finish()
        if self._group is None:  # the threads that write, not those that train
            patience = timedelta(minutes=self.train.timeout)
            self._group = dist.new_group(backend="gloo", timeout=patience)
        parts = {name: shards.staged(tensors) for name, tensors in self._parts().items()}
        stack, place = ExitStack(), [""]
        if self.world.first:
            place = [str(stack.enter_context(folder.saving(progress, keep)))]
        with lost():
            dist.broadcast_object_list(place, src=0, group=self._group)
        self._written = Future()
        stack.enter_context(writing(folder.checkpoints, folder.advice))
        work = (parts, Path(place[0]), self._group, stack, self._written)
        threading.Thread(target=self._write, args=work, daemon=True).start()

    def _write(
        self,
        parts: dict[str, Tensors],
        place: Path,
        group: dist.ProcessGroup,
        stack: ExitStack,
        done: Future[None],
    ) -> None:
        try:
            with lost(), stack:
                mine = {}
                for name, tensors in parts.items():
                    for file in shards.write(tensors, place / name, group):
                        mine[f"{name}/{file.name}"] = sha256(file)
                digests: list[dict[str, str]] = [{} for _ in range(self.world.size)]
                dist.all_gather_object(digests, mine, group)
                if self.world.first:
                    write_card(place, self.spec, dict(ChainMap(*digests)))
            with lost():
                dist.barrier(group)
            done.set_result(None)
        except BaseException as error:
            done.set_exception(error)

    def finish(self, wait: bool = True) -> None:
        """Wait for the checkpoint that is being written, or only see whether that has failed.

        Raises what writing it met.
        """
        if self._written is not None and (wait or self._written.done()):
            written, self._written = self._written, None
            written.result()

    def _parts(self) -> dict[str, Tensors]:
        """This process's parts of all that a checkpoint has, by folder and name."""
        moments = {
            f"{name}/{key}": value
            for name, state in super().optimizer_state().items()
            for key, value in state.items()
        }
        average = cast(Any, self.ema.module).backbone
        return {
            "model": self.backbone.state_dict(),
            "ema": average.state_dict(),
            "optimizer": moments,
        }

    def restore(self, checkpoint: Path) -> None:
        """Tensors, averages and the optimiser's state of a checkpoint, sharded or not."""
        self.finish()
        place = whole_shards(checkpoint, "optimizer")
        if place is None:
            weights = {name: read_weights(checkpoint, name) for name in WEIGHTS}
            self.load(weights, read_progress(checkpoint).ema_steps)
            self.load_optimizer(read_optimizer(checkpoint))
            return
        named = self._named()
        moments: Tensors = {}
        for key, shape in shards.shapes(place).items():
            weight = named.get(key.rpartition("/")[0])
            if weight is not None and shape in (weight.shape, ()):
                moments[key] = torch.zeros_like(weight) if shape else torch.zeros(())
        parts = self._parts() | {"optimizer": moments}
        for name, tensors in parts.items():
            folder = whole_shards(checkpoint, cast(Any, name))
            if folder is None:
                raise UserError(f"{checkpoint}: its {name} is missing; use another checkpoint")
            shards.load(tensors, folder, dist.group.WORLD)
            if broken := [k for k, x in tensors.items() if not local(x).isfinite().all()]:
                raise UserError(f"{folder}: '{broken[0]}' holds values that are not finite")
        self.ema.steps, self._filled = read_progress(checkpoint).ema_steps, -1
        by_name: dict[str, Tensors] = {}
        for key, value in moments.items():
            name, _, moment = key.rpartition("/")
            by_name.setdefault(name, {})[moment] = value
        super().load_optimizer(by_name)

    def _named(self) -> Tensors:
        """The weights that the optimiser moves, by the names of their states."""
        named: Tensors = dict(self.backbone.named_parameters())
        if self.uncertainty is not None:
            named[UNCERTAINTY] = self.uncertainty.weight
        return named

    # --- tensors in and out -----------------------------------------------------------------------

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
        weights = self._named()
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
    """A copy of all of `x`, which is gathered: in all processes, or in none."""
    # cloned: what gathering gives may be read before it is there
    return (x.full_tensor() if isinstance(x, DTensor) else x).clone()


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
