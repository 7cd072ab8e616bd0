"""Recipes that a plan chooses from: what studies measured, fitted to images of another size.

- patch: the one that divides the image whose grid is nearest to that measured at 64×64.
- prediction: as measured; x0, with the velocity's weights, where a network has no more features
  than a patch has numbers. On heads of 32×32 in patches of 48 numbers (8,000 images, one seed) the
  error through 48 features was 0.083 with velocity and 0.051 with x0; through 64, 0.047 and 0.046.
- dropout and label drop: between those of the presets small-300, small-3000 and small-30000, in
  the logarithm of the epochs; the lengths for few images: in that of the number of images.
"""

import math
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from underpaint import config
from underpaint.data import Dataset
from underpaint.errors import UserError
from underpaint.model_folder import find, read_spec
from underpaint.planning.evidence import Values
from underpaint.training import cost

MEASURED = 64  # pixels a side of the images of the ladder
SMALL = ("small-300", "small-3000", "small-30000")
FEW = 1000  # images: below, the packaged weights are a start, and epochs few
LEAST_GRID, COARSEST = 16, 32  # patches per image at least; pixels a side of a patch at most
PRETRAINED = "pretrained:lorelei"


@dataclass(frozen=True)
class Images:
    """What is known of the images."""

    source: str
    count: int  # that are trained on
    held_out: int
    size: tuple[int, int]
    channels: int
    classes: int = 0

    @classmethod
    def of(cls, dataset: Dataset, source: str) -> Self:
        """Those of `source`, decoded."""
        counts = len(dataset.train_ids), len(dataset.held_out_ids)
        return cls(source, *counts, dataset.size, dataset.channels, len(dataset.label_names))


def patches_that_fit(size: tuple[int, int], unit: int = 1) -> list[int]:
    """Sides of patches of which `unit` in a row divide the image.

    Raises UserError where there is none.
    """
    height, width = size
    fit = [p for p in range(2, COARSEST + 1) if height % (unit * p) == width % (unit * p) == 0]
    fit = [p for p in fit if height * width >= LEAST_GRID * p * p]
    if not fit:
        better = " ".join(str(max(8, round(side / 8) * 8)) for side in dict.fromkeys(size))
        raise UserError(
            f"size {height}×{width} is not divisible into {LEAST_GRID} patches or more of 2 to "
            f"{COARSEST} pixels a side; give --size {better}"
        )
    return fit


def changed(run: config.Run, **changes: Values) -> config.Run:
    """`run` with other settings, by section."""
    return config.from_dict(config.Run, changes, "plan: ", run)


def patch_for(run: config.Run, size: tuple[int, int]) -> int:
    """The patch that divides images of `size` whose grid is nearest to that of `run` at 64×64."""
    network = run.network
    unit = 2 ** network.options.get("levels", 1) if network.kind == "hourglass" else 1
    wanted = run.space.patch * math.sqrt(math.prod(size)) / MEASURED
    fit = patches_that_fit(size, unit)
    return min(fit, key=lambda patch: round(abs(math.log(patch / wanted)), 6))


def recipe(images: Images, network: Values) -> config.Run:
    """A network of the evidence for these images: on whole images alone, a batch long.

    Raises UserError where it has no grid on images of this size.
    """
    run = changed(config.preset("default"), **network["settings"])
    patch = patch_for(run, images.size)
    size = list(dict.fromkeys(images.size))
    run = changed(
        run,
        data={"source": images.source, "size": size, "channels": config.named(images.channels)},
        space={"patch": patch},
        network={"dropout": drops(math.inf)[0]},  # which takes memory; `plan` sets it by the epochs
        stages={"masked": None, "whole": {"images": run.stages["whole"].batch}},
    )
    backbone = cost.network(run, images.size, images.channels, images.classes)
    if backbone.features <= backbone.patch_dim and run.noise.prediction != "x0":
        return changed(run, noise={"prediction": "x0", "weighting": "velocity"})
    return run


def packaged(images: Images) -> list[Values]:
    """The network of the packaged weights, where they are a start for these images: see `adapt`."""
    spec, run = read_spec(find(PRETRAINED)), config.preset(SMALL[0])
    if images.count >= FEW or images.channels != spec.channels:
        return []
    patch, theirs = patch_for(run, images.size), spec.space.patch
    as_many = [theirs * side for side in images.size] == [patch * side for side in spec.size]
    fits = patch == theirs or as_many
    return [{"settings": config.to_dict(run), "measured": []}] if fits else []


def masked(run: config.Run, cell: Values, unit: int) -> config.Run:
    """`run` with the masked stage of `cell` first; `unit`: patches a side of a coarsest token."""
    whole = run.stages["whole"]
    hiding = {"mask": cell["mask"], "rate": cell["rate"], "schedule": "constant"}
    hiding |= {k: cell["batch"] * getattr(whole, k) for k in ("batch", "images", "warmup")}
    hiding |= {"block": cell["block"] * unit} if cell["mask"] == "block" else {}
    first = config.from_dict(config.Stage, hiding, "evidence: ", whole)
    return replace(run, stages={"masked": first, "whole": whole})


def length(count: int) -> float:
    """Images to see of so many, by the presets."""
    counts, epochs, _, _ = _presets()
    return float(count * np.interp(math.log(max(1, count)), np.log(counts), epochs))


def drops(epochs: float) -> tuple[float, float]:
    """Dropout and label drop of a run of so many epochs, by the presets.

    What keeps a network from copying hinders one that has no time to copy: 3.5 epochs of 3,000
    photographs ended the better without dropout (studies/plan).
    """
    _, lengths, *columns = (column[::-1] for column in _presets())
    at = math.log(max(1.0, epochs))
    dropout, label_drop = (float(np.interp(at, np.log(lengths), column)) for column in columns)
    return float(f"{dropout:.2g}"), float(f"{label_drop:.2g}")


def _presets() -> list[tuple[float, ...]]:
    """Images, epochs, dropout and label drop of the presets, fewest images first."""
    runs = [(int(name.rpartition("-")[2]), config.preset(name)) for name in SMALL]
    rows = [(n, r.last.images / n, r.network.dropout, r.network.label_drop) for n, r in runs]
    return list(zip(*rows, strict=True))
