"""What training changes: a model, the average of its weights, and the optimiser's state."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from underpaint import config, factory
from underpaint.core.denoiser import Denoiser
from underpaint.hardware import check_compiler, use_bf16
from underpaint.model import Model, build
from underpaint.model_folder import Weights, read_weights
from underpaint.training.checkpointing import read_optimizer, read_progress
from underpaint.training.distributed import World
from underpaint.training.feed import Feed
from underpaint.training.optim import (
    EMA,
    build_optimizer,
    optimizer_flops,
    optimizer_state,
    restore_optimizer,
)
from underpaint.training.posthoc import TRACKED, PowerAverages
from underpaint.training.seeding import seed_from
from underpaint.training.tally import Tally

Tensors = dict[str, Tensor]


SHAPES = 64  # compiled at most
UNCERTAINTY = "loss.uncertainty"  # beside the network's tensors in optimizer.pt


class TrainState:
    """Tensors, their average and the optimiser, on this process's device.

    Raises UserError where the network is to be compiled and torch cannot, or has nothing for Muon.
    """

    def __init__(self, spec: config.ModelSpec, train: config.Train, world: World) -> None:
        # The weights are drawn on the CPU: the same for every device and number of processes.
        torch.manual_seed(seed_from(train.seed, "weights"))
        self.model: Model = build(spec)
        self.spec = spec
        self.world = world
        self.bf16 = use_bf16(train.precision, world.device, spec.network.width)
        self.model.denoiser.to(world.device).train()
        self.backbone: nn.Module = self.model.denoiser.backbone
        self.ema = EMA(self.model.denoiser, train.ema)
        self.averaged = Model(spec, cast(Denoiser, self.ema.module), self.model.space)
        self.power = PowerAverages(self.backbone) if train.snapshots else None
        if train.compile:
            check_compiler(world.device)
            # In place, so that names stay; shapes are static, one graph for each V and batch. After
            # 8 of them torch would run the rest uncompiled: a stage may have 8, and others follow.
            torch._dynamo.config.cache_size_limit = SHAPES
            self.backbone.compile(dynamic=False)
        loss = factory.loss(self.model.denoiser, spec.noise).to(world.device)
        self.loss: nn.Module = loss
        self.uncertainty = loss.uncertainty  # no part of the model: nothing samples with it
        extra = [] if self.uncertainty is None else self.uncertainty.parameters()
        self.optimizer = build_optimizer(self.backbone, train, world.device, extra, self.bf16)
        self.optimizer_flops = optimizer_flops(self.backbone, train)  # a step
        # where steps do not wait for the host: it reads their numbers now and then (`step.settle`)
        self.deferred = world.device.type == "cuda"
        self.reads_on = world.device if self.deferred else torch.device("cpu")
        self.tally: Tally | None = None  # of steps that are not read yet
        self.feed = Feed(world.device)
        if world.size > 1:
            ids = [world.device.index] if world.device.type == "cuda" else None
            self.loss = DistributedDataParallel(loss, device_ids=ids, gradient_as_bucket_view=True)

    @contextlib.contextmanager
    def accumulating(self, more: bool) -> Iterator[None]:
        """Do not exchange gradients yet when `more` microbatches of the step follow."""
        if more and isinstance(self.loss, DistributedDataParallel):
            with self.loss.no_sync():
                yield
        else:
            yield

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
