"""Which recipe for these images, this machine and this budget; lengths are not yet set.

- patch: the finest of 4 pixels and more at which the smallest network would see `ENOUGH` whole
  images, leaving as many patches as the quick start has; finer than 4 lost to 4 at equal compute
  where it was tried.
- network: the largest of `NETWORKS` with at most one parameter for `VALUES` numbers of the training
  images, that sees `ENOUGH` images and `PATCHES` patches a parameter: as wide as the budget can
  teach, and too narrow to hold the images. Fewer than `FEW` images get the packaged weights'.
- prediction: the velocity, as the presets; x0, with the velocity's weights, where the network has
  no more features than a patch has numbers. On heads of 32×32 in patches of 48 numbers (8,000
  images, one seed) the error through 48 features was 0.083 with velocity and 0.051 with x0; through
  64, 0.047 and 0.046.
- masked stage: as `evidence.json` says of the number of patches nearest to this one; none where it
  does not say `pays`. It speaks of FLOPs: that is turned into time by what a FLOP of each stage
  takes on this machine, and masks are proposed where the middle of that interval is below 1.
- learning rate: the small presets' at width 128, times 128/width (what an update moves in a layer
  grows with its inputs; Yang et al. 2022, arXiv 2203.03466). At width 768 that is 3.3e-4, and
  MaskDM's published one 2e-4.
- augmentation, dropout and label drop: between those of the presets small-300, small-3000 and
  small-30000, linear in the logarithm of the number of images.
- batch: of whole images that of `default` on a CPU, for small ones learned more at equal compute,
  up to MaskDM's on a GPU; of masked images as many times that as in the study of the evidence.

These rules are ours and have not been tried against others; each gives its reason.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from underpaint import config, factory
from underpaint.backbones import Backbone
from underpaint.core import masks
from underpaint.errors import UserError
from underpaint.planning import evidence, memory, pace
from underpaint.planning.evidence import Cell
from underpaint.planning.machine import Machine
from underpaint.training import cost

__all__ = [
    "FEW",
    "Images",
    "Small",
    "choose",
    "counted",
    "patches_that_fit",
    "small",
    "split",
    "visible",
]

# (width, depth, heads): the quick start's, and ours up to DiT-S, one between, and DiT-B
NETWORKS = ((128, 5, 4), (192, 7, 6), (256, 9, 8), (384, 12, 6), (512, 12, 8), (768, 12, 12))
SMALL = ("small-300", "small-3000", "small-30000")
FEW = 1000  # images: below, start from the packaged weights and keep to few epochs
ENOUGH = 50_000  # images seen: about what `default` sees in its ten minutes on one thread
PATCHES = 50  # seen for each parameter: our packaged weights 20, MaskDM's published recipe 555
VALUES = 10  # numbers of the training images for each parameter
LEAST_GRID = 16  # patches an image, without which there is nothing to plan
QUICK_GRID = 64  # patches an image of the quick start; no fewer are proposed where more can be had
COARSEST = 32  # pixels a side of a patch
LARGEST_BATCH = 256  # MaskDM's
STEPS = 10_000  # of whole images, below which the batch does not grow


@dataclass(frozen=True)
class Images:
    """What is known of the images."""

    source: str
    count: int  # that are trained on
    held_out: int
    size: tuple[int, int]
    channels: int
    classes: int = 0


class Small(NamedTuple):
    """What the number of images decides."""

    learning_rate: float  # at width 128
    augment: float
    dropout: float
    label_drop: float
    masked_images: int  # lengths of the stages
    whole_images: int


def choose(
    images: Images, machine: Machine, budget: float, reasons: list[str]
) -> tuple[config.Run, Cell]:
    """A recipe without lengths, and the study that decided on its masks.

    Adds a sentence to `reasons` for each choice. Raises UserError where no patch divides the images
    or the smallest network does not fit in the memory.
    """
    patch = _patch(images, machine, budget, reasons)
    patches = images.size[0] * images.size[1] // patch**2
    cell = evidence.load().nearest(patches)
    doubt = cell.sentence()
    if cell.verdict == "pays" and cell.low is not None and cell.high is not None:
        more: list[str] = []
        run = _proposed(images, machine, budget, patch, cell, more)
        times = _slowdown(run, cell, counted(run, images), machine)
        low, high = times * cell.low, times * cell.high
        doubt += f"; in time {low:.2f} to {high:.2f} on {machine.name}"
        if low * high < 1:
            likely = "" if high < 1 else ": undecided, but it is likelier to pay than not"
            reasons.append(
                f"masked stage, for {patches} patches an image: in our studies {doubt}{likely}"
            )
            reasons += more
            return run, cell
        doubt += ", where a masked step does fewer FLOPs a second"
        cell = dataclasses.replace(cell, verdict="does not pay" if low > 1 else "undecided")
    answer = "masking will not pay"
    if cell.verdict == "undecided":
        answer = "it is undecided whether masking pays"
    reasons.append(
        f"no masked stage: for {patches} patches an image {answer}; in our studies {doubt}"
    )
    return _proposed(images, machine, budget, patch, cell, reasons), cell


def split(
    run: config.Run, cell: Cell, backbone: Backbone, an_image: dict[str, float]
) -> dict[str, float]:
    """Seconds of each stage in a training FLOP of `run`, which spends `cell.share` of them masked.

    `an_image`: seconds of an image of each stage.
    """
    share = {"masked": cell.share, "whole": 1 - cell.share} if len(run.stages) > 1 else {}
    return {
        name: share.get(name, 1.0) * an_image[name] / backbone.flops(visible(stage, backbone.grid))
        for name, stage in run.stages.items()
    }


def counted(run: config.Run, images: Images) -> Backbone:
    """The network of `run`, to be counted."""
    return cost.network(run, images.size, images.channels, images.classes)


def visible(stage: config.Stage, grid: tuple[int, int]) -> int:
    """Patches that the stage shows."""
    return masks.visible_count(factory.mask_spec(stage, 1), grid)


def patches_that_fit(size: tuple[int, int]) -> list[int]:
    """Sides of patches that divide the image, from 4 up, then those below; finest first.

    Raises UserError where there is none.
    """
    height, width = size
    fit = [
        p
        for p in range(2, COARSEST + 1)
        if height % p == 0 and width % p == 0 and height * width >= LEAST_GRID * p * p
    ]
    ordered = [p for p in fit if p >= 4] or fit[::-1]
    if not ordered:
        better = " ".join(str(max(8, round(side / 8) * 8)) for side in dict.fromkeys(size))
        raise UserError(
            f"size {height}×{width} is not divisible into {LEAST_GRID} patches or more of 2 to "
            f"{COARSEST} pixels a side; give --size {better}"
        )
    return ordered


def small(count: int) -> Small:
    """The settings for `count` images, between those of the small presets."""
    runs = [config.preset(name) for name in SMALL]
    counts = np.log([int(name.rpartition("-")[2]) for name in SMALL])
    at = math.log(max(1, count))

    def between(values: list[float]) -> float:
        return float(np.interp(at, counts, values))

    def among(name: str, stage: str, logarithmic: bool = False) -> float:
        values = [float(getattr(run.stages[stage], name)) for run in runs]
        return math.exp(between(list(np.log(values)))) if logarithmic else between(values)

    def epochs(stage: str) -> float:
        images = np.array([run.stages[stage].images for run in runs])
        return math.exp(between(list(np.log(images) - counts)))

    return Small(
        learning_rate=among("learning_rate", "whole", logarithmic=True),
        augment=among("augment", "whole"),
        dropout=between([run.network.dropout for run in runs]),
        label_drop=between([run.network.label_drop for run in runs]),
        masked_images=round(epochs("masked") * count),
        whole_images=round(epochs("whole") * count),
    )


# --- the choices -------------------------------------------------------------------------------


def _patch(images: Images, machine: Machine, budget: float, reasons: list[str]) -> int:
    enough = ENOUGH
    if images.count < FEW:
        enough = min(enough, small(images.count).whole_images)
    fitting = patches_that_fit(images.size)
    height, width = images.size
    fine = [p for p in fitting if height * width >= QUICK_GRID * p * p]
    for patch in fine or fitting[:1]:
        run = _default(NETWORKS[0], patch)
        backbone = counted(run, images)
        patches = math.prod(backbone.grid)
        batch = run.stages["whole"].batch
        work = pace.work(backbone, patches, batch, machine.bytes_per)
        seen = budget * batch / machine.pace.seconds(work)
        if seen >= enough:
            reasons.append(
                f"patch {patch}: the smallest network would see {seen:,.0f} whole images in the "
                f"budget, {enough:,} or more being wanted"
            )
            return patch
    reasons.append(
        f"the budget is small for this size: in patches of {patch} the smallest network would "
        f"see {seen:,.0f} whole images, where {enough:,} are wanted"
    )
    return patch


def _proposed(
    images: Images, machine: Machine, budget: float, patch: int, cell: Cell, reasons: list[str]
) -> config.Run:
    """The recipe with the stages of `cell`."""
    run = _network(images, machine, budget, patch, cell, reasons)
    _batches(run, images, machine, budget, reasons)
    return run


def _seconds(run: config.Run, backbone: Backbone, machine: Machine) -> dict[str, float]:
    """Seconds of an image of each stage, as predicted."""
    return {
        name: machine.pace.seconds(
            pace.work(backbone, visible(stage, backbone.grid), stage.batch, machine.bytes_per)
        )
        / stage.batch
        for name, stage in run.stages.items()
    }


def _slowdown(run: config.Run, cell: Cell, backbone: Backbone, machine: Machine) -> float:
    """Seconds of the run's stages over those of whole images alone with as many FLOPs."""
    parts = split(run, cell, backbone, _seconds(run, backbone, machine))
    return sum(parts.values()) * (1 - cell.share) / parts["whole"]


def _network(
    images: Images, machine: Machine, budget: float, patch: int, cell: Cell, reasons: list[str]
) -> config.Run:
    values = images.count * images.size[0] * images.size[1] * images.channels
    best, why = None, ""
    for shape in NETWORKS:
        run = _recipe(images, shape, patch, cell)
        backbone = counted(run, images)
        size = sum(p.numel() for p in backbone.parameters())
        patches = math.prod(backbone.grid)
        needed = memory.peak(
            backbone, shape[1], patches, 1, base=machine.base, bytes_per=machine.bytes_per
        )
        seen, looked = _sight(run, cell, backbone, machine, budget)
        if needed > machine.memory:
            why = f"the next needs {needed / 2**30:.1f} GiB for one image"
            if best is None:
                raise UserError(
                    f"{machine.name} has {machine.memory / 2**30:.1f} GiB to train in, and the "
                    f"smallest network at size {images.size[0]}×{images.size[1]} and patch {patch} "
                    f"needs {needed / 2**30:.1f} GiB for one image; give a smaller --size"
                )
        elif best is None:
            best, why = run, "the smallest"
            if images.count < FEW:
                why = f"that of the packaged weights, for fewer than {FEW:,} images"
                break
            continue
        elif size > values / VALUES:
            why = f"a larger network would overfit (over 1 parameter per {VALUES} pixel values)"
        elif seen < ENOUGH:
            why = f"the next would see {seen:,.0f} images, where {ENOUGH:,} are wanted"
        elif looked < PATCHES * size:
            why = (
                f"the next would see {looked / size:.0f} patches a parameter, where {PATCHES} are "
                "wanted"
            )
        else:
            best, why = run, "the largest of the list"
            continue
        break
    assert best is not None
    network = best.network
    reasons.append(
        f"network: width {network.width}, depth {network.depth}: {why} (rules of thumb, not "
        "measured)"
    )
    if best.noise.prediction == "x0":
        numbers = counted(best, images).patch_dim
        reasons.append(
            f"prediction x0: a patch has {numbers} numbers, too many to predict noise through the "
            f"network's {network.width} features, but clean images need fewer; weighting velocity, "
            "which keeps the noisiest levels in view, where the layout is decided"
        )
    return best


def _sight(
    run: config.Run, cell: Cell, backbone: Backbone, machine: Machine, budget: float
) -> tuple[float, float]:
    """Images and patches that are seen in `budget` seconds, as predicted."""
    images = patches = 0.0
    an_image = _seconds(run, backbone, machine)
    parts = split(run, cell, backbone, an_image)
    for name, stage in run.stages.items():
        seen = parts[name] / sum(parts.values()) * budget / an_image[name]
        images, patches = images + seen, patches + seen * visible(stage, backbone.grid)
    return images, patches


def _default(shape: tuple[int, int, int], patch: int) -> config.Run:
    """The preset `default` with another network and patch."""
    run = config.preset("default")
    width, depth, heads = shape
    run.space = dataclasses.replace(run.space, patch=patch)
    run.network = dataclasses.replace(run.network, width=width, depth=depth, heads=heads)
    return run


def _recipe(images: Images, shape: tuple[int, int, int], patch: int, cell: Cell) -> config.Run:
    run, advised = _default(shape, patch), small(images.count)
    run.data = dataclasses.replace(
        run.data,
        source=images.source,
        size=tuple(dict.fromkeys(images.size)),
        channels=images.channels,
    )
    run.network = dataclasses.replace(
        run.network, dropout=_rounded(advised.dropout), label_drop=_rounded(advised.label_drop)
    )
    rate = _rounded(advised.learning_rate * config.Network().width / shape[0])
    changes = {"learning_rate": rate, "augment": _rounded(advised.augment), "minutes": 0.0}
    whole = config.from_dict(config.Stage, changes, "plan: ", run.stages["whole"])
    hiding = {"mask": cell.mask, "rate": cell.rate, "batch": cell.batch * whole.batch}
    if cell.mask == "block":
        hiding["block"] = cell.block
    masked = config.from_dict(config.Stage, changes | hiding, "evidence: ", run.stages["masked"])
    run.stages = {"masked": masked} if cell.verdict == "pays" else {}
    run.stages["whole"] = whole
    backbone = counted(run, images)
    if backbone.features <= backbone.patch_dim:
        run.noise = dataclasses.replace(run.noise, prediction="x0", weighting="velocity")
    return run


def _batches(
    run: config.Run, images: Images, machine: Machine, budget: float, reasons: list[str]
) -> None:
    """Sets each stage's batch, and one microbatch where that does not fit."""
    backbone = counted(run, images)
    whole = run.stages["whole"]
    batch = whole.batch
    while machine.gpu and 2 * batch <= LARGEST_BATCH:
        work = pace.work(backbone, math.prod(backbone.grid), 2 * batch, machine.bytes_per)
        if budget / machine.pace.seconds(work) < STEPS:
            break
        batch *= 2
    run.stages = {
        name: dataclasses.replace(stage, batch=stage.batch * batch // whole.batch)
        for name, stage in run.stages.items()
    }
    more = f"batch {batch} of whole images"
    if len(run.stages) > 1:
        more = f"batch {run.stages['masked'].batch} of masked and {batch} of whole images"
    reasons.append(
        f"{more}: "
        + (
            f"the largest up to {LARGEST_BATCH} that leaves {STEPS:,} steps of whole images"
            if machine.gpu
            else "of whole images as in `default`, since at equal compute small ones learned more"
        )
    )


def _rounded(value: float) -> float:
    """Two digits, as a person would write it."""
    return float(f"{value:.2g}")
