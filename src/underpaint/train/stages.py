"""The stages of a recipe, with everything that can be decided before the first step.

A stage's length is a number of images. A length in minutes is measured once on this machine for
some seconds and then frozen as images in `config.yaml`, so that a resumed run is the same run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from underpaint import config
from underpaint.core import masks, spaces
from underpaint.data import Dataset, Order, prepare
from underpaint.errors import UserError
from underpaint.train.draws import key

__all__ = ["Level", "Plan", "plans"]


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
            network=run.network,
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
                levels=_levels(name, stage, space.grid, images),
            )
        )
    return result


def _levels(
    name: str, stage: config.Stage, grid: tuple[int, int], images: int
) -> tuple[Level, ...]:
    def count(rate: float) -> tuple[int, float]:
        return (
            masks.visible_count(stage.mask, grid, rate, block=stage.block),
            masks.realised_rate(stage.mask, grid, rate, block=stage.block),
        )

    try:
        found = []
        for progress, rate in masks.rate_levels(
            stage.mask, grid, stage.rate, stage.rate_end, stage.rate_schedule, block=stage.block
        ):
            visible, realised = count(rate)
            start = int(progress * images) // stage.batch * stage.batch
            found.append(Level(start, rate, realised, visible))
    except UserError as error:
        raise UserError(f"stages.{name}: {error}") from None
    return tuple(found)
