"""What training changes: a model, the average of its weights, and the optimiser's state."""

import contextlib
import functools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint as recomputed

from underpaint import backbones, config, factory
from underpaint.core.denoiser import Denoiser
from underpaint.hardware import check_compiler, use_bf16
from underpaint.model import Model, build
from underpaint.model_folder import Weights, read_weights
from underpaint.registry import wing
from underpaint.training.checkpointing import (
    Progress,
    RunFolder,
    read_optimizer,
    read_progress,
)
from underpaint.training.cost import parameter_bytes
from underpaint.training.distributed import World
from underpaint.training.feed import Feed
from underpaint.training.optim import (
    EMA,
    build_optimizer,
    clip_gradients,
    optimizer_flops,
    optimizer_state,
    restore_optimizer,
)
from underpaint.training.posthoc import TRACKED, PowerAverages
from underpaint.training.seeding import seed_from
from underpaint.training.stages import PreparedStage
from underpaint.training.tally import Tally

Tensors = dict[str, Tensor]


SHAPES = 64  # compiled at most
SHARE = 0.6  # of a GPU's memory
UNCERTAINTY = "loss.uncertainty"  # beside the network's tensors in optimizer.pt


class TrainState:
    """Tensors, their average and the optimiser, on this process's device.

    Each process has all of them, and their gradients are averaged (DistributedDataParallel); where
    they are shared among the processes it is `sharding.ShardedState`, of which `prepare_state`
    knows when. Raises UserError where the network is to be compiled and torch cannot, or has
    nothing for Muon.
    """

    sharded = False  # among the processes

    def __init__(self, spec: config.ModelSpec, train: config.Train, world: World) -> None:
        # The weights are drawn on the CPU: the same for every device and number of processes.
        torch.manual_seed(seed_from(train.seed, "weights"))
        self.model: Model = build(spec)
        self.spec, self.train, self.world = spec, train, world
        self.bf16 = use_bf16(train.precision, world.device, spec.network.width)
        self.model.denoiser.train()
        self.backbone: nn.Module = self.model.denoiser.backbone
        self.ema = EMA(self.model.denoiser, train.ema)
        loss = factory.loss(self.model.denoiser, spec.noise)
        self.loss: nn.Module = loss
        self.uncertainty = loss.uncertainty  # no part of the model: nothing samples with it
        if train.recompute:
            recompute_blocks(self.model.backbone)
        if train.compile:
            check_compiler(world.device)
            # In place, so that names stay; shapes are static, one graph for each V and batch. After
            # 8 of them torch would run the rest uncompiled: a stage may have 8, and others follow.
            torch._dynamo.config.cache_size_limit = SHAPES
            self._compile()
        self.averaged = self._place()
        self.power = PowerAverages(self.backbone) if train.snapshots else None
        extra = [] if self.uncertainty is None else self.uncertainty.parameters()
        self.optimizer = self._optimizer(train, extra)
        self.optimizer_flops = optimizer_flops(self.backbone, train)  # a step
        # where steps do not wait for the host: it reads their numbers now and then (`step.settle`)
        self.deferred = world.device.type == "cuda"
        self.reads_on = world.device if self.deferred else torch.device("cpu")
        self.tally: Tally | None = None  # of steps that are not read yet
        self.feed = Feed(world.device)

    # --- what sharding does otherwise -------------------------------------------------------------

    def _compile(self) -> None:
        self.backbone.compile(dynamic=False)

    def _place(self) -> Model:
        """Bring all to the device; the averaged model, to be evaluated."""
        world = self.world
        self.loss.to(world.device)
        self.ema.module.to(world.device)
        self.ema.bind(self.ema.module.parameters(), self.model.denoiser.parameters())
        if world.size > 1:
            ids = [world.device.index] if world.device.type == "cuda" else None
            self.loss = DistributedDataParallel(
                self.loss, device_ids=ids, gradient_as_bucket_view=True
            )
        return Model(self.spec, cast(Denoiser, self.ema.module), self.model.space)

    def _optimizer(self, train: config.Train, extra: Iterable[Tensor]) -> torch.optim.Optimizer:
        return build_optimizer(self.backbone, train, self.world.device, extra, self.bf16)

    @contextlib.contextmanager
    def accumulating(self, more: bool) -> Iterator[None]:
        """Do not exchange gradients yet when `more` microbatches of the step follow."""
        if more and isinstance(self.loss, DistributedDataParallel):
            with self.loss.no_sync():
                yield
        else:
            yield

    def leave(self) -> None:
        """Let go of the group of processes while that is still there; no step can follow.

        Were the reducer the last to hold it, as when `self` is freed after the group was closed,
        it would end gloo's thread with Python's lock held, for which that thread may be waiting:
        the process would hang at its end (seen with torch 2.13).
        """
        if isinstance(self.loss, DistributedDataParallel):
            wrapped, self.loss = self.loss, self.loss.module
            del wrapped.reducer, wrapped.logger

    def clip(self, limit: float | Tensor) -> Tensor:
        """Scale the gradients to a norm of at most `limit`; returns the norm before."""
        return clip_gradients(self.backbone.parameters(), limit)

    def fill_averaged(self) -> None:
        """Have `averaged` hold the average, in the first process; all take part."""

    def save(self, folder: RunFolder, progress: Progress, keep: int) -> None:
        """Write a checkpoint; all processes take part. It may be there later: see `finish`."""
        if self.world.first:
            folder.save(self.spec, self.weights(), self.optimizer_state(), progress, keep)
        self.world.barrier()

    def finish(self, wait: bool = True) -> None:
        """Wait for the checkpoint that is being written, or only see whether that has failed."""

    # --- tensors in and out -----------------------------------------------------------------------

    def weights(self) -> dict[Weights, Tensors]:
        """The tensors of the network (`model`), its average (`ema`) and those of `posthoc`."""
        found: dict[Weights, Tensors] = {
            "model": dict(self.backbone.state_dict()),
            "ema": dict(self.averaged.denoiser.backbone.state_dict()),
        }
        return {**found, **self.power.state()} if self.power else found

    def load(self, weights: Mapping[Weights, Tensors], ema_steps: int) -> None:
        """Take over weights and averages; those of `posthoc` begin at the weights if not given."""
        self.backbone.load_state_dict(weights["model"])
        self.averaged.denoiser.backbone.load_state_dict(weights["ema"])
        self.ema.steps = ema_steps
        if self.power:
            self.power.reset()
            if weights.keys() >= TRACKED.keys():
                self.power.load({name: weights[name] for name in TRACKED})

    def restore(self, checkpoint: Path) -> None:
        """Tensors, averages and the optimiser's state of a checkpoint of the same network."""
        weights = {name: read_weights(checkpoint, name) for name in self.weights()}
        self.load(weights, read_progress(checkpoint).ema_steps)
        self.load_optimizer(read_optimizer(checkpoint))

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        """The optimiser's tensors by parameter name; with learned weights their values too."""
        state = optimizer_state(self.optimizer, self.backbone)
        if self.uncertainty is not None:
            weight = self.uncertainty.weight
            moments = dict(self.optimizer.state.get(weight, {}))
            state[UNCERTAINTY] = moments | {"value": weight.detach().clone()}
        return state

    def load_optimizer(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Take over the optimiser's state of every tensor whose shape has not changed."""
        restore_optimizer(self.optimizer, self.backbone, state)
        if self.uncertainty is not None and UNCERTAINTY in state:
            values = dict(state[UNCERTAINTY])
            with torch.no_grad():
                self.uncertainty.weight.copy_(values.pop("value"))
            restore_optimizer(self.optimizer, self.uncertainty, {"weight": values})


def prepare_state(spec: config.ModelSpec, train: config.Train, world: World) -> TrainState:
    """The state of a run as it begins, sharded or not. Raises UserError as `TrainState`."""
    if not shards(spec, train, world):
        return TrainState(spec, train, world)
    state: TrainState = wing("sharding").ShardedState(spec, train, world)
    return state


def shards(spec: config.ModelSpec, train: config.Train, world: World) -> bool:
    """Whether the processes share weights, moments and averages: the same in all of them.

    With `train.parallel` auto where all of these, in float32, would take over SHARE of a GPU.
    """
    if world.size == 1 or train.parallel == "ddp":
        return False
    if train.parallel == "fsdp":
        return True
    if world.device.type != "cuda" or train.snapshots:  # whose averages cannot be shared
        return False
    parameters = sum(p.numel() for p in factory.unallocated_network(spec).parameters())
    memory = torch.cuda.get_device_properties(world.device).total_memory
    needed = parameters * parameter_bytes() > SHARE * memory
    return bool(world.from_first([float(needed)])[0])


def parallel_notes(run: config.Run, stages: list[PreparedStage], world: World) -> list[str]:
    """A sentence on what the processes share, where that is not all as usual."""
    if run.train.parallel == "fsdp" and world.size == 1:
        return ["train.parallel fsdp: one process has nobody to share with; it keeps all"]
    if any(shards(stage.spec, run.train, world) for stage in stages):
        return [f"weights, moments and EMA are shared among {world.size} processes (fsdp)"]
    return []


def recompute_blocks(backbone: backbones.Backbone) -> None:
    """Keep of each block only what goes into it; the backward pass computes the rest again.

    With the same random numbers: dropout drops the same. Names of weights stay.
    """
    for block in backbone.all_blocks():
        block.forward = functools.partial(recomputed, block.forward, use_reentrant=False)
