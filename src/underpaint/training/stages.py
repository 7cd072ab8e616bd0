"""The stages of a recipe, with everything that can be decided before the first step.

A stage's length is a number of images. A length in minutes is measured once on this machine for
some seconds and then frozen as images in `config.yaml`, so that a resumed run is the same run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch

from underpaint import backbones, config, vae
from underpaint.core import masks, spaces
from underpaint.data import Dataset, Order, Sealed, latents, prepare
from underpaint.dp import accounting
from underpaint.errors import UserError
from underpaint.hardware import pick_device
from underpaint.model import network
from underpaint.sealed import format as sealed
from underpaint.training.seeding import key

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
    dataset: Dataset | Sealed
    order: Order
    images: int  # a multiple of the batch
    levels: tuple[Level, ...]
    mask_key: bytes | None = None  # of fixed masks that are those of sealed data
    guarantee: accounting.Guarantee | None = None  # of a differentially private stage

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
        dataset: Dataset | Sealed
        if sealed.is_sealed(data.source):
            dataset = sealed.read(data.source)
            stage = _sealed_stage(name, stage, run, data, dataset)
            say(
                f"stage {name}: the data are sealed; their masks are used ({stage.mask}, "
                f"{stage.rate:g}), mirroring and shifts are not"
            )
        else:
            dataset = prepare(data, progress=progress)
        config.check_labels(run, data.source, dataset.label_names)
        if run.space.kind == "latents" and isinstance(dataset, Dataset):
            encoder = vae.of_space(run.space, dataset.channels)
            spaces.build(run.space, dataset.size, dataset.channels)  # refuses sizes, before work
            dataset = latents.prepare(
                dataset, encoder, progress=progress, device=pick_device(run.train.device)
            )
        ids = dataset.train_ids
        if isinstance(dataset, Sealed) and data.limit:
            ids = ids[: data.limit]  # their order is random
        if len(ids) < stage.batch:
            say(
                f"stage {name}: {len(ids)} images are fewer than a batch of "
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
        with torch.device("meta"):  # no weight is allocated
            backbone = network(spec)
        backbones.check_features(backbone, spec.noise)
        multiple = backbone.stride
        if isinstance(dataset, Sealed):
            _check_network(name, spec, backbone, dataset)
            multiple = dataset.about["multiple"]
        images = max(1, round(stage.images / stage.batch)) * stage.batch
        if stage.dp is not None:
            of_data = accounting.guarantee(name, stage, stage.dp, len(ids), images)
        result.append(
            Plan(
                index=index,
                name=name,
                stage=stage,
                spec=spec,
                space=space,
                dataset=dataset,
                order=Order(ids, key(run.train.seed, "order", index)),
                images=images,
                levels=_levels(name, stage, space.grid, images, multiple),
                mask_key=sealed.read_key(stage.fixed_key) if stage.fixed_key else None,
                guarantee=None if stage.dp is None else of_data,
            )
        )
    return result


def _sealed_stage(
    name: str, stage: config.Stage, run: config.Run, data: config.Data, dataset: Sealed
) -> config.Stage:
    """The stage with the mask of its sealed data. Raises UserError where they cannot serve it."""
    place, about, source = f"stages.{name}", dataset.about, f"'{data.source}'"
    if stage.mask == "none":
        raise UserError(
            f"{place}: whole images are asked for, but {source} is sealed and holds patches alone; "
            f"use pretrain, or give --{place}.data.source other images"
        )
    if run.noise.hidden_weight:
        raise UserError(
            f"noise.hidden_weight {run.noise.hidden_weight:g} needs the hidden patches, which the "
            f"sealed data {source} do not hold; set it to 0"
        )
    if run.space.kind != "pixels":
        raise UserError(f"{place}: {source} holds patches of pixels; set --space.kind pixels")
    if run.space.patch != about["patch"]:
        raise UserError(
            f"{place}: {source} was sealed with patches of {about['patch']}, the recipe has "
            f"{run.space.patch}; add --space.patch {about['patch']}"
        )
    wished = config.image_size(data.size)
    if wished not in (None, dataset.size):
        raise UserError(
            f"{place}: {source} was sealed at {dataset.size[0]}×{dataset.size[1]} pixels and "
            f"cannot become {wished[0]}×{wished[1]}; leave the size out, or seal the images again"
        )
    if data.held_out != "auto":
        raise UserError(
            f"{place}: what is held out of {source} was decided at sealing; leave held_out "
            f"{data.held_out} out"
        )
    return dataclasses.replace(
        stage,
        mask=about["kind"],
        rate=about["rate"],
        rate_schedule="constant",
        block=about["block"],
        fixed=True,
        fixed_key="",
        reweight=False,
        flip=False,
        shift=0,
    )


def _check_network(
    name: str, spec: config.ModelSpec, backbone: backbones.Backbone, dataset: Sealed
) -> None:
    """Raise UserError if the network needs more of an image than the sealed patches."""
    about = dataset.about
    V, kind = about["visible"], about["kind"]
    if not backbone.saves(V, kind):
        raise UserError(
            f"stages.{name}: network.kind {spec.network.kind} computes on whole images and cannot "
            f"take the patches of data sealed by mask {kind}; use uvit, dit or maskdit, or seal "
            "crops"
        )
    if about["multiple"] % backbone.stride and kind == "crop":
        raise UserError(
            f"stages.{name}: this network takes crops in multiples of {backbone.stride} patches, "
            f"and the data were sealed with {about['multiple']}; seal them again with --multiple "
            f"{backbone.stride}"
        )


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
