"""The stages of a recipe, with everything that can be decided before the first step.

A stage's length is a number of images. A length in minutes becomes one before the first step
(`minutes`).
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from underpaint import backbones, config, factory, vae
from underpaint.core import masks, spaces
from underpaint.core.masks import MaskSpec
from underpaint.data import Dataset, Order, fixed_masks, latents, on_channels, prepare
from underpaint.data.ahead import Ahead, workers_of
from underpaint.data.source import is_sealed
from underpaint.data.streamed import Streamed
from underpaint.errors import UserError
from underpaint.hardware import pick_device
from underpaint.registry import wing
from underpaint.training.optim import cooling_down
from underpaint.training.seeding import seed_from
from underpaint.training.training_set import ImageSet, LatentSet, TrainingSet


@dataclass(frozen=True)
class Level:
    """A part of a stage with a constant number of visible patches."""

    start: int  # images of the stage before it
    rate: float  # asked
    realised: float
    visible: int


@dataclass(frozen=True)
class PreparedStage:
    """A stage that is ready to run."""

    index: int
    name: str
    settings: config.Stage
    spec: config.ModelSpec
    space: spaces.Space
    training_set: TrainingSet
    order: Order
    images: int  # a multiple of the batch
    levels: tuple[Level, ...]
    guarantee: Any = None  # of a differentially private stage: dp.accounting.Guarantee
    ahead: Ahead | None = None  # of images that are streamed, where processes decode them

    @property
    def batch(self) -> int:
        """Images a step, over all devices."""
        return self.settings.batch

    def level(self, images: int) -> Level:
        """The level of the step that begins after `images` of the stage."""
        return next(level for level in reversed(self.levels) if level.start <= images)

    def augment(self, images: int) -> float:
        """Probability of each change of augmentation in the step after `images` of the stage."""
        return 0.0 if cooling_down(self.settings, images, self.images) else self.settings.augment


def left(stages: Sequence[PreparedStage], images: int) -> float:
    """Images of the run that are left after so many, each counted by its visible patches.

    One that costs as much as the next image counts 1.
    """
    costs: list[tuple[int, int]] = []  # images, visible patches
    for stage in stages:
        ends = [*(level.start for level in stage.levels[1:]), stage.images]
        costs += [
            (end - level.start, level.visible)
            for level, end in zip(stage.levels, ends, strict=True)
        ]
    total, now = 0.0, 0
    for count, visible in costs:
        here = max(0, count - images)
        images = max(0, images - count)
        now = now or (visible if here else 0)
        total += here * visible
    return total / max(1, now)


def prepare_stages(run: config.Run, say: Callable[[str], None]) -> list[PreparedStage]:
    """All stages of `run`; prepares their data. Raises UserError where something cannot work."""
    said: set[str] = set()

    def once(sentence: str) -> None:
        if sentence not in said:  # of images that several stages have
            said.add(sentence)
            say(sentence)

    return [
        _prepared(run, index, name, stage, once)
        for index, (name, stage) in enumerate(run.stages.items())
    ]


def _prepared(
    run: config.Run,
    index: int,
    name: str,
    settings: config.Stage,
    say: Callable[[str], None],
) -> PreparedStage:
    data = run.data_of(settings)
    training_set: TrainingSet
    if is_sealed(data.source):
        sealed = wing("sealed")
        settings, training_set = sealed.training_set(name, settings, run, data)
        spec = _model_spec(run, training_set)
        sealed.check_network(name, spec, training_set)
        say(
            f"stage {name}: the data are sealed; their masks are used ({settings.mask}, "
            f"{settings.rate:g}), mirroring and shifts are not"
        )
    else:
        training_set = _images(run, settings, data, say)
        spec = _model_spec(run, training_set)
    config.check_labels(run, data.source, training_set.label_names)
    backbones.check_features(factory.unallocated_network(spec), spec.noise)
    ids = training_set.train_ids
    if len(ids) < settings.batch:
        say(
            f"stage {name}: {len(ids)} images are fewer than a batch of "
            f"{settings.batch}; every batch repeats images"
        )
    images = max(1, round(settings.images / settings.batch)) * settings.batch
    space = factory.space(spec.space, spec.size, spec.channels)
    order, ahead = _order(run, index, training_set, data.window)
    stage = PreparedStage(
        index=index,
        name=name,
        settings=settings,
        spec=spec,
        space=space,
        training_set=training_set,
        order=order,
        images=images,
        levels=_levels(name, settings, training_set.spec, space.grid, images, run.train.compile),
        ahead=ahead,
    )
    if settings.dp is not None:
        guarantee = wing("dp").guarantee(name, settings, settings.dp, len(ids), images)
        stage = dataclasses.replace(stage, guarantee=guarantee)
    return stage


def _order(
    run: config.Run, index: int, training_set: TrainingSet, window: int
) -> tuple[Order, Ahead | None]:
    """The order of a stage's images, and who decodes them ahead, if they are streamed."""
    ids, seed = training_set.train_ids, seed_from(run.train.seed, "order", index)
    streamed = training_set.images
    if not isinstance(streamed, Streamed) or isinstance(training_set, LatentSet):
        return Order(ids, seed), None
    order = Order(ids, seed, streamed.together[ids], streamed.window(window))
    workers = workers_of(run.train.workers)
    return order, Ahead(streamed, order, workers) if workers else None


def _images(
    run: config.Run,
    settings: config.Stage,
    data: config.Data,
    say: Callable[[str], None],
) -> ImageSet:
    dataset, kind = prepare(data), ImageSet
    if data.channels == "rgba" and not dataset.report["transparent"]:
        raise UserError(
            f"'{data.source}': channels rgba learns transparency, and none of its "
            f"{dataset.report['images']:,} images has a transparent pixel; give --channels 3 (and "
            "--from a model of 3, if any)"
        )
    if sentence := on_channels(data, dataset):
        say(sentence)
    for sentence in dataset.remarks:
        say(f"data {data.source}: {sentence}")
    config.check_labels(run, data.source, dataset.label_names)
    space = factory.space(run.space, dataset.size, dataset.channels)  # refuses sizes, before work
    if run.space.kind == "latents":
        encoder, kind = vae.of_space(run.space, dataset.channels), LatentSet
        dataset = latents.prepare(dataset, encoder, device=pick_device(run.train.device))
    network = factory.unallocated_network(_model_spec(run, dataset))
    spec = factory.mask_spec(settings, network)
    if settings.fixed_key:
        spec = _sealed_masks(spec, space.grid, run.network.kind)
    return kind(
        dataset,
        settings,
        space,
        spec,
        mask_key=fixed_masks.read_key(settings.fixed_key) if settings.fixed_key else None,
        keep_hidden=run.noise.hidden_weight > 0,
    )


def _sealed_masks(spec: MaskSpec, grid: tuple[int, int], kind: str) -> MaskSpec:
    """Masks as sealed data have them, which know no units.

    Raises UserError where they are not in the units of `spec`.
    """
    of_sealed = dataclasses.replace(spec, unit=1, multiple=spec.crop_multiple)
    if not of_sealed.in_units(spec.unit, grid):
        raise UserError(
            f"fixed_key: masks of sealed data are no squares of {spec.unit}×{spec.unit} patches, "
            f"which network.kind {kind} needs; use mask block with a block that is a multiple of "
            f"{spec.unit} and divides the grid, mask crop, or network.kind dit"
        )
    return of_sealed


def _model_spec(run: config.Run, images: TrainingSet | Dataset) -> config.ModelSpec:
    return config.ModelSpec(
        size=images.size,
        channels=images.channels,
        label_names=images.label_names if run.network.labels else (),
        space=run.space,
        network=config.network_of(run),
        noise=run.noise,
        sampling=run.sampling,
    )


def _levels(
    name: str,
    settings: config.Stage,
    spec: MaskSpec,
    grid: tuple[int, int],
    images: int,
    compiled: bool,
) -> tuple[Level, ...]:
    try:
        found = []
        for progress, rate in masks.rate_levels(
            spec, grid, settings.rate_end, settings.rate_schedule, masks.most_levels(compiled)
        ):
            start = int(progress * images) // settings.batch * settings.batch
            V = masks.visible_count(spec.at(rate), grid)
            found.append(Level(start, rate, 1 - V / (grid[0] * grid[1]), V))
    except ValueError as error:
        raise UserError(f"stages.{name}: {error}") from None
    return tuple(found)
