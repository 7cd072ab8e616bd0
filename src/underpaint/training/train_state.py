"""What training changes: a model, the average of its weights, and the optimiser's state."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from underpaint import config
from underpaint.core import loss as losses
from underpaint.core.denoiser import Denoiser
from underpaint.core.loss_weighting import Uncertainty
from underpaint.core.masks import Mask
from underpaint.hardware import check_compiler, use_bf16
from underpaint.model import Model, build
from underpaint.training.distributed import World
from underpaint.training.optim import EMA, adamw, optimizer_state, restore_optimizer
from underpaint.training.posthoc import PowerAverages
from underpaint.training.seeding import key

__all__ = ["Learner", "Weights"]

Weights = dict[str, Tensor]


SHAPES = 64  # compiled at most
LEVELS = "loss.levels"  # beside the network's tensors in optimizer.pt


class _Loss(nn.Module):
    """The objective as one forward call, which is what DistributedDataParallel wraps.

    Its `mean` is what is minimised; with learned weights `per_image` stays the error before them.
    `exact`: in float32 whatever the run's precision.
    """

    def __init__(self, denoiser: Denoiser, noise: config.Noise, device: str, bf16: bool) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.noise = noise
        self.levels = Uncertainty() if noise.learned_weights else None
        self.device = device
        self.bf16 = bf16

    def forward(
        self,
        patches: Tensor,
        labels: Tensor | None,
        mask: Mask,
        t: Tensor,
        noise: Tensor,
        condition: Tensor | None = None,
        *,
        exact: bool = False,
    ) -> losses.Loss:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16 and not exact):
            output = losses.predict(
                self.denoiser, patches, labels, mask, t=t, noise=noise, condition=condition
            )
            loss = losses.masked_loss(
                self.denoiser,
                patches,
                labels,
                mask,
                t=t,
                noise=noise,
                weighting=self.noise.weighting,
                gamma=self.noise.gamma,
                output=output,
            )
            if self.noise.hidden_weight:
                hidden = losses.hidden_loss(self.denoiser, patches, mask, output, t=t, noise=noise)
                per_image = loss.per_image + self.noise.hidden_weight * hidden
                loss = loss._replace(mean=per_image.mean(), per_image=per_image)
            if self.levels is not None:
                sigma = self.denoiser.process.sigma(t)
                loss = loss._replace(mean=self.levels(loss.per_image, sigma).mean())
            return loss


class Learner:
    """Weights, their average and the optimiser, on this process's device.

    Raises UserError where the network is to be compiled and torch cannot.
    """

    def __init__(self, spec: config.ModelSpec, train: config.Train, world: World) -> None:
        # The weights are drawn on the CPU: the same for every device and number of processes.
        torch.manual_seed(key(train.seed, "weights"))
        self.model: Model = build(spec)
        self.spec = spec
        self.world = world
        self.bf16 = use_bf16(train.precision, world.device)
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
        loss = _Loss(self.model.denoiser, spec.noise, world.device.type, self.bf16)
        loss.to(world.device)
        self.loss: nn.Module = loss
        self.levels = loss.levels  # no part of the model: nothing samples with it
        extra = [] if self.levels is None else self.levels.parameters()
        self.optimizer = adamw(self.backbone, train, world.device, extra)
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

    def weights(self) -> tuple[Weights, Weights]:
        """The tensors of the network and of their average."""
        return dict(self.backbone.state_dict()), dict(self.averaged.denoiser.backbone.state_dict())

    def load(self, model: Weights, ema: Weights, ema_steps: int) -> None:
        """Take over weights and their average."""
        self.backbone.load_state_dict(model)
        self.averaged.denoiser.backbone.load_state_dict(ema)
        self.ema.steps = ema_steps
        if self.power:
            self.power.reset()

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        """The optimiser's tensors by parameter name; with learned weights their values too."""
        state = optimizer_state(self.optimizer, self.backbone)
        if self.levels is not None:
            weight = self.levels.weight
            own = dict(self.optimizer.state.get(weight, {}))
            state[LEVELS] = own | {"value": weight.detach().clone()}
        return state

    def load_optimizer(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Take over the optimiser's state of every tensor whose shape has not changed."""
        restore_optimizer(self.optimizer, self.backbone, state)
        if self.levels is not None and LEVELS in state:
            own = dict(state[LEVELS])
            with torch.no_grad():
                self.levels.weight.copy_(own.pop("value"))
            restore_optimizer(self.optimizer, self.levels, {"weight": own})
