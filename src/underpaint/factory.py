"""From settings to objects: the only place that knows both.

The parts of `core` take plain values and raise ValueError with a sentence such as "steps 50: give
at least 100". Here the sentence gets the name of the setting, "noise.steps 50: …", and becomes a
`UserError`.
"""

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from underpaint import backbones, config
from underpaint.core import preconditioning, samplers, schedules, spaces
from underpaint.core.denoiser import Denoiser
from underpaint.core.loss import DenoisingLoss
from underpaint.core.masks import MaskSpec
from underpaint.errors import UserError


@contextlib.contextmanager
def settings_of(section: str, cls: type[Any]) -> Iterator[None]:
    """Turn a ValueError of the block into a UserError that names the setting of this section.

    `cls` is the section's dataclass: where the sentence begins with one of its fields, the section
    is put before it.
    """
    try:
        yield
    except ValueError as error:
        text = str(error)
        named = text.split(maxsplit=1)[0] in {field.name for field in dataclasses.fields(cls)}
        raise UserError(f"{section}.{text}" if named else text) from None


def space(settings: config.Space, size: tuple[int, int], channels: int) -> spaces.Space:
    """The space for images of `size` (height, width). Raises UserError where it does not fit."""
    with settings_of("space", config.Space):
        return spaces.build(
            settings.kind,
            size,
            channels,
            patch=settings.patch,
            levels=settings.levels,
            factor=settings.factor,
            latent_channels=settings.latent_channels,
        )


def noise_schedule(settings: config.Noise) -> schedules.Process:
    """Raises UserError where the settings do not go together."""
    with settings_of("noise", config.Noise):
        return schedules.build(
            settings.process,
            time=settings.time,
            steps=settings.steps,
            shift=settings.shift,
            sigma_data=settings.sigma_data,
            stratified=settings.stratified,
        )


def _preconditioning(settings: config.Noise) -> preconditioning.Preconditioning:
    with settings_of("noise", config.Noise):
        return preconditioning.build(settings.prediction, settings.process, settings.sigma_data)


def network(spec: config.ModelSpec) -> backbones.Backbone:
    """The network alone, with fresh weights. Raises UserError where the settings do not fit."""
    patches = space(spec.space, spec.size, spec.channels)
    return backbones.build(
        spec.network,
        grid=patches.grid,
        patch_dim=patches.patch_dim,
        classes=len(spec.label_names) if spec.network.labels else 0,
        patch=spec.space.patch,
    )


def unallocated_network(spec: config.ModelSpec) -> backbones.Backbone:
    """The same without weights (torch's meta device): to ask it what it needs."""
    with torch.device("meta"), _Unfilled():
        return network(spec)


class _Unfilled(TorchFunctionMode):
    """Weights are not filled: on the meta device that would import torch._dynamo, for seconds."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if re.search("(normal|uniform)_$", getattr(func, "__name__", "")):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def denoiser(spec: config.ModelSpec) -> Denoiser:
    """Network, noise schedule and preconditioning, with fresh weights."""
    backbone = network(spec)
    backbones.check_hidden(backbone, spec.network, spec.noise)
    return Denoiser(backbone, noise_schedule(spec.noise), _preconditioning(spec.noise))


def check_noise(settings: config.Noise) -> None:
    """Raise UserError for settings of noise and prediction that do not go together."""
    noise_schedule(settings), _preconditioning(settings)


def loss(model: Denoiser, settings: config.Noise) -> DenoisingLoss:
    """What training minimises."""
    return DenoisingLoss(
        model,
        weighting=settings.weighting,
        gamma=settings.gamma,
        hidden_weight=settings.hidden_weight,
        learned=settings.learned_weights,
    )


def mask_spec(stage: config.Stage, network: backbones.Backbone | Denoiser) -> MaskSpec:
    """The masks of a stage, as this network takes them (`stride` and `unit`)."""
    return MaskSpec(
        stage.mask,
        stage.rate,
        block=stage.block,
        multiple=network.stride,
        unit=network.unit,
        temperature=stage.temperature,
        reweight=stage.reweight,
    )


def sampling(settings: config.Sampling) -> samplers.Sampling:
    """How images are drawn. Raises UserError for settings that cannot work."""
    names = [field.name for field in dataclasses.fields(samplers.Sampling)]
    chosen = samplers.Sampling(**{name: getattr(settings, name) for name in names})
    with settings_of("sampling", config.Sampling):
        chosen.check()
    return chosen
