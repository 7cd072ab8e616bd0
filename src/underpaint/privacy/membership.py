"""Who is who in an audit: members, non-members, and what of each image an attack may see.

Members are the images that a run recorded as trained on (`images.json`), non-members those it held
out; lists of images can be given instead. Of sealed data there are the visible patches alone: then
the records that were trained on and those held out at sealing are the two sides, under the masks
that the model was trained with.

What is seen of an image follows the run's last stage: all of it if that had whole images; the same
patches in training and attack where masks were fixed; else one mask of the stage's kind for all.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from underpaint import config, model
from underpaint.core import salient
from underpaint.core.masks import Mask, draw, showing
from underpaint.core.spaces import from_uint8, levels
from underpaint.data import Dataset, Sealed, latents, prepare
from underpaint.errors import UserError
from underpaint.privacy import attacks, memorisation
from underpaint.sealed import format as sealed
from underpaint.training.step import mask_seed

__all__ = ["FEWEST", "Images", "Sides", "numbers_of", "recorded_run", "sides", "some"]

FEWEST = 16  # images a side: eight to choose on and eight to score on


class Images(NamedTuple):
    """One side: rows of a data set."""

    dataset: Dataset | Sealed
    ids: NDArray[np.int64]
    data: config.Data  # how they were read

    def pixels(self) -> NDArray[np.uint8]:
        """[n, H, W, C]; of sealed images black where nothing was kept."""
        if isinstance(self.dataset, Dataset):
            return self.dataset.batch(self.ids)
        values, positions = self.dataset.batch(self.ids)  # [n, V, P], [n, V]
        (height, width), patch = self.dataset.size, self.dataset.about["patch"]
        h, w, C = height // patch, width // patch, self.dataset.channels
        whole = np.zeros((len(values), h * w, values.shape[2]), np.uint8)
        np.put_along_axis(whole, positions[:, :, None], values, 1)
        planes = whole.reshape(-1, h, w, C, patch, patch).transpose(0, 1, 4, 2, 5, 3)
        return planes.reshape(-1, height, width, C)

    def patches(self, loaded: model.Model) -> Tensor:
        """[n, N, P], as the model's space gives them; zeros where a sealed image is not known."""
        if isinstance(self.dataset, Sealed):
            values, positions = self.dataset.batch(self.ids)
            known = levels(values)
            h, w = loaded.space.grid
            ids = torch.from_numpy(positions)[:, :, None].expand_as(known)
            return known.new_zeros(len(known), h * w, known.shape[2]).scatter(1, ids, known)
        if self.dataset.latents is not None:
            return loaded.space.encode(torch.from_numpy(self.dataset.latents.means(self.ids)))
        return loaded.space.encode(from_uint8(self.dataset.batch(self.ids)))

    def labels(self, loaded: model.Model) -> Tensor | None:
        """[n], −1 where the model does not know the label's name; None for one without labels."""
        if not loaded.label_names:
            return None
        table = numbers_of(self.dataset.label_names, loaded.label_names)
        return torch.from_numpy(table[self.dataset.labels[self.ids]])


class Sides(NamedTuple):
    """Both sides, and the run whose recipe tells what a model has seen of an image."""

    run: config.Run | None
    place: Path | None  # the run's folder
    members: Images
    non_members: Images
    notes: list[str]  # what the reader has to know of them

    def masks(
        self, loaded: model.Model, own: Images, others: Images, seed: int
    ) -> tuple[list[Mask | None], attacks.Ensemble, str]:
        """What is seen of the images of either side, the run's kind of random masks, and in words.

        None: whole images.
        """
        last = list(self.run.stages.values())[-1] if self.run else None
        ensemble = _ensemble(self.run, loaded)
        if isinstance(own.dataset, Sealed):
            found: list[Mask | None] = [_shown(side, loaded) for side in (own, others)]
            return found, ensemble, "the patches that were kept of each image at sealing"
        if last is None or last.mask == "none":
            return [None, None], ensemble, "whole images"
        if last.fixed and not sealed.is_sealed((last.data or own.data).source):
            found = [_fixed(last, side, loaded) for side in (own, others)]
            return found, ensemble, "of each image the patches of its own fixed mask"
        generator = torch.Generator().manual_seed(seed)
        multiple = loaded.denoiser.stride
        mask = draw(
            ensemble.kind,
            loaded.space.grid,
            1,
            ensemble.rate,
            block=ensemble.block,
            multiple=multiple,
            generator=generator,
        )
        if mask.visible is None:
            return [None, None], ensemble, "whole images"
        both: list[Mask | None] = [_spread(mask, len(side.ids)) for side in (own, others)]
        return both, ensemble, "the same patches of every image"


def sides(folder: Path, loaded: model.Model, members: str | None, non_members: str | None) -> Sides:
    """Members and non-members, which do not overlap. Raises UserError where they are not known."""
    place, run = recorded_run(folder)
    for given, flag in ((members, "--members"), (non_members, "--non-members")):
        if given is not None and sealed.is_sealed(given):
            if flag == "--non-members" or non_members is not None:
                raise UserError(
                    f"{flag} {given}: is sealed, and its own held-out images are the non-members; "
                    "give --members with the sealed file and leave --non-members out"
                )
            return _of_sealed(run, place, given, 0, loaded)
    last = list(run.stages.values())[-1] if run else None
    data = (last.data or run.data) if last and run else config.Data()
    closed = sealed.is_sealed(data.source)
    if closed and members is None and non_members is None:
        return _of_sealed(run, place, data.source, data.limit, loaded)
    known = _recorded(folder, place, members is not None and non_members is not None, closed)
    if last and last.size:
        data = dataclasses.replace(data, size=last.size)
    own = None if known is None else _ready(prepare(data), loaded)
    found = []
    for source, name in ((members, "trained"), (non_members, "held_out")):
        if source is not None:
            wish = dataclasses.replace(
                data,
                source=source,
                channels=loaded.spec.channels,
                held_out="none",
                audit_split=0.0,
                limit=0,
                only="",
                size=loaded.spec.size,
            )
            given_data = _ready(prepare(wish), loaded)
            found.append(Images(given_data, given_data.train_ids, wish))
        elif own is not None and known is not None:
            listed = set(known.get(name, []))
            there = [i for i, sha in enumerate(own.file_sha256) if sha in listed]
            found.append(Images(own, np.array(there, np.int64), data))
    _apart(found[0], found[1])
    return Sides(run, place, found[0], found[1], _notes(run, data))


def recorded_run(folder: Path) -> tuple[Path | None, config.Run | None]:
    """The run's folder around a model's folder, and its recipe."""
    place = next((p for p in (folder, *folder.parents) if (p / "config.yaml").is_file()), None)
    return place, config.load(place / "config.yaml") if place else None


def some(side: Images, n: int, seed: int) -> Images:
    """At most `n` different images of a side, a function of `seed`, ascending."""
    ids = side.ids
    if len(ids) and isinstance(side.dataset, Dataset):
        ids = memorisation.distinct(side.dataset, ids)
    if len(ids) > n:
        ids = np.sort(np.random.default_rng(seed).choice(ids, n, replace=False))
    return side._replace(ids=ids)


def numbers_of(names: tuple[str, ...], known: tuple[str, ...]) -> NDArray[np.int64]:
    """The place of each of `names` in `known`, −1 if it is not there; the last is of no label."""
    return np.array([*(known.index(n) if n in known else -1 for n in names), -1], np.int64)


# --- where they come from ------------------------------------------------------------------------


def _recorded(
    folder: Path, place: Path | None, given: bool, closed: bool
) -> dict[str, list[str]] | None:
    """What the run recorded; None if both sides are `given`."""
    if given:
        return None
    recorded = place / "images.json" if place else None
    if recorded is None or not recorded.is_file() or closed:
        why = "was trained on sealed images" if closed else "no images.json of a run"
        raise UserError(
            f"{folder}: records no members ({why}); give --members DATA and --non-members DATA"
        )
    try:
        known = json.loads(recorded.read_text(encoding="utf-8"))
        return {name: list(known[name]) for name in ("trained", "held_out")}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{recorded}: is damaged; give --members and --non-members") from None


def _ready(dataset: Dataset, loaded: model.Model) -> Dataset:
    return dataset if loaded.vae is None else latents.prepare(dataset, loaded.vae)


def _of_sealed(
    run: config.Run | None, place: Path | None, source: str, limit: int, loaded: model.Model
) -> Sides:
    """The records of a sealed file that were trained on, and those held out."""
    dataset = sealed.read(source)
    about, spec = dataset.about, loaded.spec
    theirs = (dataset.size, dataset.channels, about["patch"], "pixels")
    if theirs != (spec.size, spec.channels, spec.space.patch, spec.space.kind):
        raise UserError(
            f"'{source}' was sealed at {dataset.size[0]}×{dataset.size[1]}×{dataset.channels} in "
            f"patches of {about['patch']}, and the model works on other ones; give the file that "
            "it was trained on"
        )
    if not loaded.backbone.saves(about["visible"], about["kind"]):
        raise UserError(
            f"'{source}' holds patches alone, and a network of kind {spec.network.kind} computes "
            "on whole images; give the images themselves by --members and --non-members"
        )
    ids = dataset.train_ids[:limit] if limit else dataset.train_ids
    data = config.Data(source=source)
    notes = [
        "The images are sealed: the attacks see the patches that were kept, under the same masks "
        "as in training. Copies and completion cannot be tried without the images themselves."
    ]
    held_out = Images(dataset, dataset.held_out_ids, data)
    return Sides(run, place, Images(dataset, ids, data), held_out, notes)


def _apart(one: Images, two: Images) -> None:
    """Raise UserError if an image is on both sides, by its pixels."""
    sha = [
        {side.dataset.pixel_sha256[i] for i in side.ids.tolist()}
        for side in (one, two)
        if isinstance(side.dataset, Dataset)
    ]
    if both := sha[0] & sha[1]:
        raise UserError(
            f"{len(both)} images are members and non-members at once (their pixels are equal); "
            "remove them from one of the lists"
        )


def _notes(run: config.Run | None, data: config.Data) -> list[str]:
    """Which images of the run are not in this audit."""
    sources = {(stage.data or run.data).source for stage in run.stages.values()} if run else set()
    left = sorted(source for source in sources - {data.source} if source)
    if not left:
        return []
    return [
        f"Earlier stages were trained on {' and '.join(left)}, which this audit does not cover; "
        "give --members and --non-members for that."
    ]


# --- what is seen of them ------------------------------------------------------------------------


def _ensemble(run: config.Run | None, loaded: model.Model) -> attacks.Ensemble:
    """Random masks as those of the run's last masked stage."""
    masked = [s for s in run.stages.values() if s.mask != "none"] if run else []
    if not run or not masked:  # a network of convolutions with strides takes crops alone
        return attacks.Ensemble("crop" if loaded.denoiser.stride > 1 else "patch", 0.5, 2)
    stage = masked[-1]
    source = (stage.data or run.data).source
    if sealed.is_sealed(source):
        about = sealed.read(source).about
        return attacks.Ensemble(about["kind"], about["rate"], about["block"])
    rate = stage.rate if stage.rate_schedule == "constant" else stage.rate_end
    return attacks.Ensemble("patch" if stage.mask == "salient" else stage.mask, rate, stage.block)


def _shown(side: Images, loaded: model.Model) -> Mask:
    """The masks [n, V] of sealed images."""
    if not isinstance(side.dataset, Sealed):
        raise TypeError("only sealed images have masks of their own")
    about, (_, positions) = side.dataset.about, side.dataset.batch(side.ids)
    visible = torch.from_numpy(positions)
    return showing(loaded.space.grid, visible, about["kind"], about["multiple"])


def _fixed(stage: config.Stage, side: Images, loaded: model.Model) -> Mask:
    """The masks [n, V] that a stage with fixed masks gives these images, or would have given."""
    if isinstance(side.dataset, Sealed):
        raise TypeError("sealed images have masks of their own")
    own = sealed.read_key(stage.fixed_key) if stage.fixed_key else None
    seeds = [mask_seed(own, side.dataset, i) for i in side.ids.tolist()]
    contrast = None
    if stage.mask == "salient":
        contrast = salient.local_variance(
            from_uint8(side.dataset.batch(side.ids)), loaded.space.grid
        )
    return draw(
        stage.mask,
        loaded.space.grid,
        len(side.ids),
        stage.rate,
        block=stage.block,
        multiple=loaded.denoiser.stride,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        contrast=contrast,
        temperature=stage.temperature,
    )


def _spread(mask: Mask, count: int) -> Mask:
    """The mask [1, V] of one image for `count` of them."""
    own = (None if f is None else f.expand(count, *f.shape[1:]) for f in mask[1:])
    return Mask(mask.grid, *own)
