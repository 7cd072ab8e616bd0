"""The stages of a recipe, with everything that can be decided before the first step.

A stage's length is a number of images. A length in minutes is measured once on this machine for
some seconds and then frozen as images in `config.yaml`, so that a resumed run is the same run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch

from underpaint import config, vae
from underpaint.core import masks, spaces
from underpaint.data import Dataset, Order, latents, prepare
from underpaint.errors import UserError
from underpaint.model import network, pick_device
from underpaint.training.draws import key

__all__ = ["Level", "Plan", "plans", "stride"]


@dataclass(frozen=True)
class Level:
    """A part of a stage with a constant number of visible patches."""

    start: int  # images of the stage before it
    rate: float  # asked
    realised: float
    visible: int


@dataclass(frozen=True)
class Plan:
    """A stage that is ready to run."""

    index: int
    name: str
    stage: config.Stage
    spec: config.ModelSpec
    space: spaces.Space
    dataset: Dataset
    order: Order
    images: int  # a multiple of the batch
    levels: tuple[Level, ...]

    def level(self, images: int) -> Level:
        """The level of the step that begins after `images` of the stage."""
        return next(level for level in reversed(self.levels) if level.start <= images)


def plans(
    run: config.Run, say: Callable[[str], None], progress: Callable[..., None] | None
) -> list[Plan]:
    """All stages of `run`; prepares their data. Raises UserError where something cannot work."""
    result: list[Plan] = []
    for index, (name, stage) in enumerate(run.stages.items()):
        data = stage.data or run.data
        if stage.size:
            data = dataclasses.replace(data, size=stage.size)
        dataset = prepare(data, progress=progress)
        if run.space.kind == "latents":
            encoder = vae.of_space(run.space, dataset.channels)
            spaces.build(run.space, dataset.size, dataset.channels)  # refuses sizes, before work
            dataset = latents.prepare(
                dataset, encoder, progress=progress, device=pick_device(run.train.device)
            )
        if len(dataset.train_ids) < stage.batch:
            say(
                f"stage {name}: {len(dataset.train_ids)} images are fewer than a batch of "
                f"{stage.batch}; every batch repeats images"
            )
        spec = config.ModelSpec(
            size=dataset.size,
            channels=dataset.channels,
            label_names=dataset.label_names if run.network.labels else (),
            space=run.space,
            network=config.network_of(run),
            noise=run.noise,
            preview=run.preview,
        )
        space = spaces.build(spec.space, spec.size, spec.channels)
        images = max(1, round(stage.images / stage.batch)) * stage.batch
        result.append(
            Plan(
                index=index,
                name=name,
                stage=stage,
                spec=spec,
                space=space,
                dataset=dataset,
                order=Order(dataset.train_ids, key(run.train.seed, "order", index)),
                images=images,
                levels=_levels(name, stage, space.grid, images, stride(spec)),
            )
        )
    return result


def stride(spec: config.ModelSpec) -> int:
    """What the crops of this network are multiples of, in patches."""
    with torch.device("meta"):  # no weight is allocated
        return network(spec).stride


def _levels(
    name: str, stage: config.Stage, grid: tuple[int, int], images: int, multiple: int
) -> tuple[Level, ...]:
    def count(rate: float) -> tuple[int, float]:
        return (
            masks.visible_count(stage.mask, grid, rate, block=stage.block, multiple=multiple),
            masks.realised_rate(stage.mask, grid, rate, block=stage.block, multiple=multiple),
        )

    try:
        found = []
        for progress, rate in masks.rate_levels(
            stage.mask,
            grid,
            stage.rate,
            stage.rate_end,
            stage.rate_schedule,
            block=stage.block,
            multiple=multiple,
        ):
            visible, realised = count(rate)
            start = int(progress * images) // stage.batch * stage.batch
            found.append(Level(start, rate, realised, visible))
    except UserError as error:
        raise UserError(f"stages.{name}: {error}") from None
    return tuple(found)
