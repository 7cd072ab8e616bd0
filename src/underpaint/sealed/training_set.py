"""Sealed data in training: the `TrainingSet` of visible patches that are all there is.

`training_set` says what a recipe may not ask of them; `registry` leads here.
"""

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from underpaint import config, factory
from underpaint.core import masks, spaces
from underpaint.core.masks import Mask, MaskSpec
from underpaint.data.digests import Identities
from underpaint.data.streamed import Images
from underpaint.errors import UserError
from underpaint.sealed.format import Sealed, read
from underpaint.training.training_set import Examples, Gathered, Ids, Visible

Grid = tuple[int, int]


class SealedExamples:
    """Visible patches in memory as examples, at their own masks."""

    def __init__(
        self, patches: np.ndarray, positions: np.ndarray, spec: MaskSpec, grid: Grid
    ) -> None:
        """`patches` uint8 [n, V, P], `positions` int64 [n, V]."""
        self.patches, self.positions, self.spec, self.grid = patches, positions, spec, grid

    def __len__(self) -> int:
        return len(self.patches)

    def batch(self, part: slice, spec: MaskSpec, generator: torch.Generator) -> tuple[Tensor, Mask]:
        """Visible patches [b, V, P] and their masks, whatever `spec` asks for."""
        visible = torch.from_numpy(self.positions[part])
        mask = masks.from_visible(self.grid, visible, self.spec.kind, self.spec.multiple)
        return spaces.levels(self.patches[part]), mask


@dataclass
class SealedSet:
    """The images of a stage on sealed data."""

    sealed: Sealed
    space: spaces.Space
    spec: MaskSpec
    train_ids: Ids

    def __post_init__(self) -> None:
        sealed = self.sealed
        self.size, self.channels = sealed.size, sealed.channels
        self.labels, self.label_names = sealed.labels, sealed.label_names
        self.held_out_ids, self.key = sealed.held_out_ids, sealed.key
        self.images: Images | None = None

    def gather(
        self,
        ids: Ids,
        rate: float,
        augment: float,
        seed: int,
        pixels: NDArray[np.uint8] | None = None,
    ) -> Gathered:
        patches, mask = self.examples(ids).batch(slice(None), self.spec, torch.Generator())
        return Gathered(patches, torch.from_numpy(self.labels[ids]), mask=mask)

    def visible(self, gathered: Gathered, rate: float, generator: torch.Generator) -> Visible:
        assert gathered.mask is not None
        return Visible(gathered.x0, gathered.mask)

    def examples(self, ids: Ids) -> Examples:
        return SealedExamples(*self.sealed.batch(ids), self.spec, self.space.grid)

    def pixels(self, ids: Ids) -> NDArray[np.uint8]:
        raise ValueError("sealed data hold no whole images")

    def content(self, image: int) -> str:
        """The sha256 of the patches that are left of it."""
        return self.sealed.digest(image)

    def identities(self, ids: Ids) -> Identities:
        """None: sealed data do not know their files."""
        return Identities.none()


def training_set(
    name: str, stage: config.Stage, run: config.Run, data: config.Data
) -> tuple[config.Stage, SealedSet]:
    """The stage `name` with the mask of its sealed data, and these.

    Raises UserError where they cannot serve it.
    """
    sealed = read(data.source)
    stage = _stage(name, stage, run, data, sealed)
    about = sealed.about
    ids = sealed.train_ids[: data.limit] if data.limit else sealed.train_ids  # in random order
    space = factory.space(run.space, sealed.size, sealed.channels)
    spec = MaskSpec(stage.mask, stage.rate, block=stage.block, multiple=about["multiple"])
    return stage, SealedSet(sealed, space, spec, ids)


def check_network(name: str, spec: config.ModelSpec, training_set: SealedSet) -> None:
    """Raise UserError if the network needs more of an image than the sealed patches."""
    about = training_set.sealed.about
    backbone = factory.unallocated_network(spec)
    V, kind, unit = about["visible"], about["kind"], backbone.unit
    multiple = math.lcm(backbone.stride, unit)
    if kind == "crop" and about["multiple"] % multiple:
        raise UserError(
            f"stages.{name}: this network takes crops in multiples of {multiple} patches, "
            f"and the data were sealed with {about['multiple']}; seal them again with --multiple "
            f"{multiple}"
        )
    if not training_set.spec.in_units(unit, backbone.grid):
        raise UserError(
            f"stages.{name}: network.kind {spec.network.kind} takes masks in squares of "
            f"{unit}×{unit} patches, and the data were sealed with others; seal them again with "
            f"--kind block --block {unit}, or use uvit, dit or maskdit"
        )
    if not backbone.saves(V, kind):
        raise UserError(
            f"stages.{name}: network.kind {spec.network.kind} computes on whole images and cannot "
            f"take the patches of data sealed by mask {kind}; use uvit, dit or maskdit, or seal "
            "crops"
        )


def _stage(
    name: str, stage: config.Stage, run: config.Run, data: config.Data, sealed: Sealed
) -> config.Stage:
    place, about, source = f"stages.{name}", sealed.about, f"'{data.source}'"
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
    asked = config.image_size(data.size)
    if asked not in (None, sealed.size):
        raise UserError(
            f"{place}: {source} was sealed at {sealed.size[0]}×{sealed.size[1]} pixels and "
            f"cannot become {asked[0]}×{asked[1]}; leave the size out, or seal the images again"
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
