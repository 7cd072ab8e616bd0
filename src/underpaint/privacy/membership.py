"""The data of an audit: members, non-members, and what of each image an attack may see.

Members are the images that a run recorded as trained on (`images.json`), non-members those it held
out; lists of images can be given instead. Of sealed data there are the visible patches alone: then
the records that were trained on are the members and those held out at sealing the non-members,
under the masks that the model was trained with.

What is seen of an image follows the run's last stage: all of it if that had whole images; the same
patches in training and attack where masks were fixed; else one mask of the stage's kind for all.
"""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from underpaint import config, factory, model
from underpaint.compare.split_scoring import final_data
from underpaint.core import salient
from underpaint.core.masks import Mask, MaskSpec, draw, from_visible, whole
from underpaint.core.spaces import Pixels, from_uint8, levels
from underpaint.data import Dataset, fixed_masks, latents, prepare
from underpaint.errors import UserError
from underpaint.privacy import attacks
from underpaint.sealed import format as sealed
from underpaint.sealed.format import Sealed

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
        space = Pixels(self.dataset.size, self.dataset.channels, self.dataset.about["patch"])
        return space.decode(self._placed(torch.from_numpy, space.grid)).permute(0, 2, 3, 1).numpy()

    def patches(self, loaded: model.Model) -> Tensor:
        """[n, N, P], as the model's space gives them; zeros where a sealed image is not known."""
        if isinstance(self.dataset, Sealed):
            return self._placed(levels, loaded.space.grid)
        if self.dataset.latents is not None:
            return loaded.space.encode(torch.from_numpy(self.dataset.latents.means(self.ids)))
        return loaded.space.encode(from_uint8(self.dataset.batch(self.ids)))

    def _placed(self, convert: Callable[..., Tensor], grid: tuple[int, int]) -> Tensor:
        """The patches of sealed images at their places [n, N, P], zeros elsewhere."""
        values, positions = self.dataset.batch(self.ids)  # [n, V, P], [n, V]
        known = convert(values)
        ids = torch.from_numpy(positions)[:, :, None].expand_as(known)
        return known.new_zeros(len(known), math.prod(grid), known.shape[2]).scatter(1, ids, known)

    def labels(self, loaded: model.Model) -> Tensor | None:
        """[n], −1 where the model does not know the label's name; None for one without labels."""
        if not loaded.label_names:
            return None
        theirs, known = self.dataset.label_names, loaded.label_names
        numbers = [known.index(name) if name in known else -1 for name in theirs]
        table = torch.tensor([*numbers, -1])  # the last is of no label
        return table[torch.from_numpy(self.dataset.labels[self.ids])]


class MembershipData(NamedTuple):
    """Members, non-members, and the run whose recipe says what a model has seen of an image."""

    run: config.Run | None
    place: Path | None  # the run's folder
    members: Subset
    non_members: Subset
    notes: list[str]  # what the reader has to know of them

    def masks(
        self, loaded: model.Model, members: Subset, non_members: Subset, seed: int
    ) -> tuple[list[Mask], attacks.Ensemble, str]:
        """What is seen of members and non-members, the run's random masks, the first as text."""
        both = (members, non_members)
        last = list(self.run.stages.values())[-1] if self.run else None
        ensemble, grid = _ensemble(self.run, loaded), loaded.space.grid
        if isinstance(members.dataset, Sealed):
            kept = [_shown(part, loaded) for part in both]
            return kept, ensemble, "the patches that were kept of each image at sealing"
        if last is None or last.mask == "none":
            return [whole(grid), whole(grid)], ensemble, "whole images"
        if last.fixed and not sealed.is_sealed((last.data or members.data).source):
            fixed = [_fixed(last, part, loaded) for part in both]
            return fixed, ensemble, "of each image the patches of its own fixed mask"
        kind, rate, block, _ = ensemble
        stride, unit = loaded.denoiser.stride, loaded.denoiser.unit
        spec = MaskSpec(kind, rate, block=block, multiple=stride, unit=unit)
        mask = draw(spec, grid, 1, torch.Generator().manual_seed(seed))
        seen = "whole images" if mask.visible is None else "the same patches of every image"
        same = [attacks.rows(mask, torch.zeros(len(part.ids), dtype=torch.int64)) for part in both]
        return same, ensemble, seen


def load(
    folder: Path, loaded: model.Model, members: str | None, non_members: str | None
) -> MembershipData:
    """Members and non-members, which do not overlap. Raises UserError where they are not known."""
    # the run's folder around a model's folder, and its recipe
    place = next((p for p in (folder, *folder.parents) if (p / "config.yaml").is_file()), None)
    run = config.load(place / "config.yaml") if place else None
    for source, flag in ((members, "--members"), (non_members, "--non-members")):
        if source is not None and sealed.is_sealed(source):
            if non_members is not None:
                raise UserError(
                    f"{flag} {source}: is sealed, and its own held-out images are the non-members; "
                    "give --members with the sealed file and leave --non-members out"
                )
            return _of_sealed(run, place, source, 0, loaded)
    data = final_data(run) if run else config.Data()
    closed, given = sealed.is_sealed(data.source), members is not None and non_members is not None
    if closed and members is None and non_members is None:
        return _of_sealed(run, place, data.source, data.limit, loaded)
    known = {} if given else _recorded(folder, place, closed)
    dataset = None if given else _prepared(data, loaded)
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
            images = _prepared(given_data, loaded)
            subsets.append(Subset(images, images.train_ids, given_data))
        elif dataset is not None:
            listed = set(known[name])
            ids = [i for i, sha in enumerate(dataset.file_sha256) if sha in listed]
            subsets.append(Subset(dataset, np.array(ids, np.int64), data))
    one, two = (
        {s.dataset.pixel_sha256[i] for i in s.ids.tolist()}
        for s in subsets
        if isinstance(s.dataset, Dataset)
    )
    if both := one & two:
        raise UserError(
            f"{len(both)} images are members and non-members at once (their pixels are equal); "
            "remove them from one of the lists"
        )
    return MembershipData(run, place, subsets[0], subsets[1], _notes(run, data))


def distinct(dataset: Dataset, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """`ids` with the first alone of those whose pixels are equal, ascending."""
    digests = np.ascontiguousarray(dataset.pixel_digests[ids]).view("V32").reshape(len(ids))
    return np.sort(ids[np.unique(digests, return_index=True)[1]])


def different(subset: Subset) -> Subset:
    """The subset without images whose pixels equal those of an earlier one."""
    if len(subset.ids) and isinstance(subset.dataset, Dataset):
        return subset._replace(ids=distinct(subset.dataset, subset.ids))
    return subset


def subsample(subset: Subset, n: int, seed: int) -> Subset:
    """At most `n` different images of a subset, a function of `seed`, ascending."""
    subset = different(subset)
    if len(subset.ids) <= n:
        return subset
    ids = np.sort(np.random.default_rng(seed).choice(subset.ids, n, replace=False))
    return subset._replace(ids=ids)


# --- where they come from ------------------------------------------------------------------------


def _recorded(folder: Path, place: Path | None, closed: bool) -> dict[str, list[str]]:
    """What the run recorded: the sha256 of the files `trained` on and `held_out`."""
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


def _prepared(data: config.Data, loaded: model.Model) -> Dataset:
    """The images, with their latents for a model of latents."""
    dataset = prepare(data)
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
    assert isinstance(subset.dataset, Sealed)
    about, (_, positions) = subset.dataset.about, subset.dataset.batch(subset.ids)
    visible = torch.from_numpy(positions)
    return from_visible(loaded.space.grid, visible, about["kind"], about["multiple"])


def _fixed(stage: config.Stage, subset: Subset, loaded: model.Model) -> Mask:
    """The masks [n, V] that a stage with fixed masks gives these images, or would have given."""
    assert isinstance(subset.dataset, Dataset)
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
