"""The data of an audit: members, non-members, and what of each image an attack may see.

Members are the images that a run recorded as trained on (`images.json`), non-members those it held
out; lists of images can be given instead. Of sealed data there are the visible patches alone: then
the records that were trained on are the members and those held out at sealing the non-members,
under the masks that the model was trained with.

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

from underpaint import config, factory, model
from underpaint.core import salient
from underpaint.core.masks import Mask, MaskSpec, draw, from_visible
from underpaint.core.spaces import from_uint8, levels
from underpaint.data import Dataset, fixed_masks, latents, prepare
from underpaint.errors import UserError
from underpaint.privacy import attacks
from underpaint.sealed import format as sealed
from underpaint.sealed.format import Sealed

__all__ = [
    "FEWEST",
    "MembershipData",
    "Subset",
    "distinct",
    "label_indices",
    "load",
    "subsample",
]

FEWEST = 16  # members, and non-members: eight to calibrate on and eight to evaluate on


class Subset(NamedTuple):
    """Rows of a data set: the members or the non-members."""

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
        table = label_indices(self.dataset.label_names, loaded.label_names)
        return torch.from_numpy(table[self.dataset.labels[self.ids]])


class MembershipData(NamedTuple):
    """Members, non-members, and the run whose recipe says what a model has seen of an image."""

    run: config.Run | None
    place: Path | None  # the run's folder
    members: Subset
    non_members: Subset
    notes: list[str]  # what the reader has to know of them

    def masks(
        self, loaded: model.Model, members: Subset, non_members: Subset, seed: int
    ) -> tuple[list[Mask | None], attacks.Ensemble, str]:
        """What is seen of members and non-members, the run's random masks, and the first in words.

        None: whole images.
        """
        last = list(self.run.stages.values())[-1] if self.run else None
        ensemble = _ensemble(self.run, loaded)
        if isinstance(members.dataset, Sealed):
            kept: list[Mask | None] = [_shown(part, loaded) for part in (members, non_members)]
            return kept, ensemble, "the patches that were kept of each image at sealing"
        if last is None or last.mask == "none":
            return [None, None], ensemble, "whole images"
        if last.fixed and not sealed.is_sealed((last.data or members.data).source):
            fixed: list[Mask | None] = [
                _fixed(last, part, loaded) for part in (members, non_members)
            ]
            return fixed, ensemble, "of each image the patches of its own fixed mask"
        generator = torch.Generator().manual_seed(seed)
        spec = MaskSpec(
            ensemble.kind,
            ensemble.rate,
            block=ensemble.block,
            multiple=loaded.denoiser.stride,
            unit=loaded.denoiser.unit,
        )
        mask = draw(spec, loaded.space.grid, 1, generator)
        if mask.visible is None:
            return [None, None], ensemble, "whole images"
        same: list[Mask | None] = [_repeat(mask, len(part.ids)) for part in (members, non_members)]
        return same, ensemble, "the same patches of every image"


def load(
    folder: Path, loaded: model.Model, members: str | None, non_members: str | None
) -> MembershipData:
    """Members and non-members, which do not overlap. Raises UserError where they are not known."""
    place, run = _recorded_run(folder)
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
    dataset = None if known is None else _with_latents(prepare(data), loaded)
    subsets = []
    for source, name in ((members, "trained"), (non_members, "held_out")):
        if source is not None:
            given_data = dataclasses.replace(
                data,
                source=source,
                channels=loaded.spec.channels,
                held_out="none",
                audit_split=0.0,
                limit=0,
                only="",
                size=loaded.spec.size,
            )
            images = _with_latents(prepare(given_data), loaded)
            subsets.append(Subset(images, images.train_ids, given_data))
        elif dataset is not None and known is not None:
            listed = set(known.get(name, []))
            ids = [i for i, sha in enumerate(dataset.file_sha256) if sha in listed]
            subsets.append(Subset(dataset, np.array(ids, np.int64), data))
    _require_disjoint(subsets[0], subsets[1])
    return MembershipData(run, place, subsets[0], subsets[1], _notes(run, data))


def _recorded_run(folder: Path) -> tuple[Path | None, config.Run | None]:
    """The run's folder around a model's folder, and its recipe."""
    place = next((p for p in (folder, *folder.parents) if (p / "config.yaml").is_file()), None)
    return place, config.load(place / "config.yaml") if place else None


def distinct(dataset: Dataset, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """`ids` with the first alone of those whose pixels are equal, ascending."""
    digests = np.ascontiguousarray(dataset.pixel_digests[ids]).view("V32").reshape(len(ids))
    return np.sort(ids[np.unique(digests, return_index=True)[1]])


def subsample(subset: Subset, n: int, seed: int) -> Subset:
    """At most `n` different images of a subset, a function of `seed`, ascending."""
    ids = subset.ids
    if len(ids) and isinstance(subset.dataset, Dataset):
        ids = distinct(subset.dataset, ids)
    if len(ids) > n:
        ids = np.sort(np.random.default_rng(seed).choice(ids, n, replace=False))
    return subset._replace(ids=ids)


def label_indices(names: tuple[str, ...], known: tuple[str, ...]) -> NDArray[np.int64]:
    """The place of each of `names` in `known`, −1 if it is not there; the last is of no label."""
    return np.array([*(known.index(n) if n in known else -1 for n in names), -1], np.int64)


# --- where they come from ------------------------------------------------------------------------


def _recorded(
    folder: Path, place: Path | None, given: bool, closed: bool
) -> dict[str, list[str]] | None:
    """What the run recorded; None if both lists are `given`."""
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


def _with_latents(dataset: Dataset, loaded: model.Model) -> Dataset:
    return dataset if loaded.vae is None else latents.prepare(dataset, loaded.vae)


def _of_sealed(
    run: config.Run | None, place: Path | None, source: str, limit: int, loaded: model.Model
) -> MembershipData:
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
    unit = loaded.backbone.unit
    of_file = MaskSpec(
        about["kind"], about["rate"], block=about["block"], multiple=about["multiple"]
    )
    if not of_file.in_units(unit, loaded.space.grid):
        raise UserError(
            f"'{source}' was sealed by masks that are not in squares of {unit}×{unit} patches, as "
            f"a network of kind {spec.network.kind} takes them; give the images themselves by "
            "--members and --non-members"
        )
    ids = dataset.train_ids[:limit] if limit else dataset.train_ids
    data = config.Data(source=source)
    notes = [
        "The images are sealed: the attacks see the patches that were kept, under the same masks "
        "as in training. Copies and completion cannot be tried without the images themselves."
    ]
    held_out = Subset(dataset, dataset.held_out_ids, data)
    return MembershipData(run, place, Subset(dataset, ids, data), held_out, notes)


def _require_disjoint(members: Subset, non_members: Subset) -> None:
    """Raise UserError if an image is a member and a non-member, by its pixels."""
    sha = [
        {part.dataset.pixel_sha256[i] for i in part.ids.tolist()}
        for part in (members, non_members)
        if isinstance(part.dataset, Dataset)
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


def _shown(subset: Subset, loaded: model.Model) -> Mask:
    """The masks [n, V] of sealed images."""
    if not isinstance(subset.dataset, Sealed):
        raise TypeError("only sealed images have masks of their own")
    about, (_, positions) = subset.dataset.about, subset.dataset.batch(subset.ids)
    visible = torch.from_numpy(positions)
    return from_visible(loaded.space.grid, visible, about["kind"], about["multiple"])


def _fixed(stage: config.Stage, subset: Subset, loaded: model.Model) -> Mask:
    """The masks [n, V] that a stage with fixed masks gives these images, or would have given."""
    if isinstance(subset.dataset, Sealed):
        raise TypeError("sealed images have masks of their own")
    key = fixed_masks.read_key(stage.fixed_key) if stage.fixed_key else None
    seeds = [
        fixed_masks.seed_of(key, subset.dataset.pixel_digests[i].tobytes())
        for i in subset.ids.tolist()
    ]
    contrast = None
    if stage.mask == "salient":
        contrast = salient.local_variance(
            from_uint8(subset.dataset.batch(subset.ids)), loaded.space.grid
        )
    spec = factory.mask_spec(stage, loaded.denoiser)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return draw(spec, loaded.space.grid, len(subset.ids), generators, contrast=contrast)


def _repeat(mask: Mask, count: int) -> Mask:
    """The mask [1, V] of one image for `count` of them."""
    fields = (None if f is None else f.expand(count, *f.shape[1:]) for f in mask[1:])
    return Mask(mask.grid, *fields)
