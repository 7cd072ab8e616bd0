"""The data of an audit: members, non-members, and what of each image an attack may see.

Members are the images that a run recorded as trained on (`images.json`), non-members those it held
out; lists of images can be given instead. Of sealed data there are the visible patches alone: then
the records that were trained on are the members and those held out at sealing the non-members,
under the masks that the model was trained with.

What is seen of an image follows the run's last stage: all of it if that had whole images; the same
patches in training and attack where masks were fixed; else one mask of the stage's kind for all.
"""

import dataclasses
import math
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from underpaint import config, factory, model
from underpaint.core.masks import Mask, MaskSpec, draw
from underpaint.core.spaces import to_uint8
from underpaint.data import digests, fixed_masks, latents, prepare
from underpaint.errors import UserError
from underpaint.privacy import attacks
from underpaint.sealed import format as sealed
from underpaint.sealed.training_set import SealedSet
from underpaint.training import identities, provenance
from underpaint.training.training_set import ImageSet, LatentSet, TrainingSet

FEWEST = 16  # members, and non-members: eight to calibrate on and eight to evaluate on


class Subset(NamedTuple):
    """Images of a data set: the members or the non-members."""

    images: TrainingSet
    ids: NDArray[np.int64]
    data: config.Data  # how they were read

    @property
    def whole(self) -> bool:
        """Whether they are whole images; of sealed ones there are the visible patches alone."""
        return self.images.images is not None

    def pixels(self, loaded: model.Model) -> NDArray[np.uint8]:
        """[n, H, W, C]; of sealed images black where nothing was kept."""
        if self.images.images is not None:
            return self.images.images[self.ids]
        return to_uint8(loaded.space.decode(self.patches(elsewhere=-1.0))).numpy()

    def patches(self, elsewhere: float = 0.0) -> Tensor:
        """[n, N, P], as the model's space gives them; `elsewhere` in what is hidden for ever."""
        known, mask = self.seen()
        if mask.visible is None:
            return known
        n, N, ids = len(known), math.prod(mask.grid), mask.visible[:, :, None].expand_as(known)
        return known.new_full((n, N, known.shape[2]), elsewhere).scatter(1, ids, known)

    def seen(self) -> tuple[Tensor, Mask]:
        """All patches [n, V, P] that there are of each image, and which these are."""
        every = slice(None)
        return self.images.examples(self.ids).batch(every, MaskSpec(), torch.Generator())

    def files(self) -> list[str]:
        """sha256 of each image's file; none of sealed images."""
        return [file.tobytes().hex() for file in self.images.identities(self.ids).files]

    def labels(self, loaded: model.Model) -> Tensor | None:
        """[n], −1 where the model does not know the label's name; None for one without labels."""
        if not loaded.label_names:
            return None
        theirs, known = self.images.label_names, loaded.label_names
        numbers = [known.index(name) if name in known else -1 for name in theirs]
        table = torch.tensor([*numbers, -1])  # the last is of no label
        return table[torch.from_numpy(self.images.labels[self.ids])]

    def different(self) -> Self:
        """The subset without images whose pixels equal those of an earlier one."""
        pixels = self.images.identities(self.ids).pixels
        if not len(pixels):
            return self
        first = np.unique(digests.keys(pixels), return_index=True)[1]
        return self._replace(ids=np.sort(self.ids[first]))


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
        last = self.run.last if self.run else None
        ensemble, grid = _ensemble(self.run, loaded), loaded.space.grid
        if not members.whole:
            text = "the patches that were kept of each image at sealing"
            return [part.seen()[1] for part in both], ensemble, text
        if last is None or last.mask == "none":
            return [Mask(grid), Mask(grid)], ensemble, "whole images"
        if last.fixed and not sealed.is_sealed((last.data or members.data).source):
            fixed = [part.images.gather(part.ids, last.rate, 0.0, 0).mask for part in both]
            return (
                [mask or Mask(grid) for mask in fixed],
                ensemble,
                "of each image the patches of its own fixed mask",
            )
        kind, rate, block, _ = ensemble
        stride, unit = loaded.denoiser.stride, loaded.denoiser.unit
        spec = MaskSpec(kind, rate, block=block, multiple=stride, unit=unit)
        mask = draw(spec, grid, 1, torch.Generator().manual_seed(seed))
        seen = "whole images" if mask.visible is None else "the same patches of every image"
        same = [attacks.rows(mask, torch.zeros(len(part.ids), dtype=torch.int64)) for part in both]
        return same, ensemble, seen


def load(
    folder: Path,
    loaded: model.Model,
    members: str | None,
    non_members: str | None,
    moved: str | None = None,
) -> MembershipData:
    """Members and non-members, which do not overlap. Raises UserError where they are not known.

    `moved`: where the run's images are now, if not where they were.
    """
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
    given = members is not None and non_members is not None
    if moved is not None and (run is None or members is not None or non_members is not None):
        raise UserError("--data is where the images of a run are now; leave it out")
    if run and place and not given:
        data = provenance.data_of(run, moved, place)
    else:
        data = run.data_of(run.last) if run else config.Data()
    closed = sealed.is_sealed(data.source)
    if closed and members is None and non_members is None:
        return _of_sealed(run, place, data.source, data.limit, loaded)
    stage, notes, images = run.last if run else config.Stage(), _notes(run), None
    if not given:
        recorded = _recording(folder, place, closed)
        images = _prepared(data, loaded, stage)
        try:
            split = identities.split_of(recorded, images.dataset.file_digests, data.source)
        except UserError as error:
            raise UserError(f"{error}; or give --members and --non-members") from None
        notes += [f"{split.lacking}."] if split.lacking else []
    subsets = []
    for source, name in ((members, "train_ids"), (non_members, "held_out_ids")):
        if source is not None:
            given_data = dataclasses.replace(
                data,
                source=source,
                channels=config.named(loaded.spec.channels),
                held_out="none",
                audit_split=0.0,
                limit=0,
                only="",
                size=loaded.spec.size,
            )
            others = _prepared(given_data, loaded, stage)
            subsets.append(Subset(others, others.train_ids, given_data))
        elif images is not None:
            subsets.append(Subset(images, getattr(split, name), data))
    one, two = (s.images.identities(s.ids).pixels for s in subsets)
    if both := len(np.unique(digests.keys(one[digests.among(one, two)]))):
        raise UserError(
            f"{both} images are members and non-members at once (their pixels are equal); "
            "remove them from one of the lists"
        )
    return MembershipData(run, place, subsets[0], subsets[1], notes)


def subsample(subset: Subset, n: int, seed: int) -> Subset:
    """At most `n` different images of a subset, a function of `seed`, ascending."""
    subset = subset.different()
    if len(subset.ids) <= n:
        return subset
    ids = np.sort(np.random.default_rng(seed).choice(subset.ids, n, replace=False))
    return subset._replace(ids=ids)


# --- where they come from ------------------------------------------------------------------------


def _recording(folder: Path, place: Path | None, closed: bool) -> Path:
    """The run that recorded which images it trained on. Raises UserError if none did."""
    if place is None or not (place / "images.json").is_file() or closed:
        why = "was trained on sealed images" if closed else "no images.json of a run"
        raise UserError(
            f"{folder}: records no members ({why}); give --members DATA and --non-members DATA"
        )
    return place


def _prepared(data: config.Data, loaded: model.Model, stage: config.Stage) -> ImageSet:
    """The images as `stage` has them, with their latents for a model of latents."""
    dataset, kind = prepare(data), ImageSet
    if loaded.vae is not None:
        dataset, kind = latents.prepare(dataset, loaded.vae), LatentSet
    key = fixed_masks.read_key(stage.fixed_key) if stage.fixed_key else None
    spec = factory.mask_spec(stage, loaded.denoiser)
    return kind(dataset, stage, loaded.space, spec, mask_key=key)


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
    images = SealedSet(dataset, loaded.space, of_file, ids)
    held_out = Subset(images, dataset.held_out_ids, data)
    return MembershipData(run, place, Subset(images, ids, data), held_out, notes)


def _notes(run: config.Run | None) -> list[str]:
    """Which images of the run are not in this audit."""
    sources = {run.data_of(s).source for s in run.stages.values()} if run else set()
    left = sorted(sources - {run.data_of(run.last).source, ""}) if run else []
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
    source = run.data_of(stage).source
    if sealed.is_sealed(source):
        about = sealed.read(source).about
        return attacks.Ensemble(about["kind"], about["rate"], about["block"])
    rate = stage.rate if stage.rate_schedule == "constant" else stage.rate_end
    return attacks.Ensemble("patch" if stage.mask == "salient" else stage.mask, rate, stage.block)
