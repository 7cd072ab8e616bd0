"""The images of a stage as training sees them: visible patches at positions.

Three kinds: decoded images and latents here, sealed data in their wing. What they share is the
protocol `TrainingSet`; nothing that trains or measures knows which one it has.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from underpaint import config
from underpaint.core import augmentation, masks, salient, spaces
from underpaint.core.masks import Mask, MaskSpec
from underpaint.data import Dataset, augment, fixed_masks
from underpaint.data.dataset import Latents
from underpaint.data.digests import Identities
from underpaint.data.streamed import Images
from underpaint.training.seeding import seed_from

Ids = NDArray[np.int64]


class Gathered(NamedTuple):
    """What the host reads of a step's images."""

    x0: Tensor  # [B, C, H, W] images or latents; of sealed data [B, V, P] patches
    labels: Tensor  # [B] int64, −1 unlabelled
    condition: Tensor | None = None  # [B, D] of the augmentation, if the stage has any
    mask: Mask | None = None  # where it follows from the images alone

    def tensors(self) -> list[Tensor]:
        """All that is there."""
        found = [self.x0, self.labels, self.condition, *(self.mask or ())[1:]]
        return [x for x in found if x is not None]

    def to(self, device: torch.device) -> Self:
        """The same on `device`, whither pinned memory is copied while the host goes on."""
        return self._each(lambda x: x.to(device, non_blocking=True))

    def pinned(self) -> Self:
        """The same in pinned memory of the host."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        mask = self.mask and Mask(
            self.mask.grid, *(None if x is None else change(x) for x in self.mask[1:])
        )
        condition = None if self.condition is None else change(self.condition)
        return type(self)(change(self.x0), change(self.labels), condition, mask)


class Visible(NamedTuple):
    """What a step sees of its images, before any noise."""

    patches: Tensor  # [B, V, P]
    mask: Mask
    condition: Tensor | None = None  # [B, D] of the augmentation, if the stage has any
    hidden: Tensor | None = None  # [B, N − V, P], where the loss asks for it


class Examples(Protocol):
    """Fixed images to measure a network on: nothing is augmented, latents are at their means."""

    def __len__(self) -> int: ...

    def batch(self, part: slice, spec: MaskSpec, generator: torch.Generator) -> tuple[Tensor, Mask]:
        """The visible patches [b, V, P] of a part of them and their masks, drawn by `spec`.

        Sealed data have masks of their own.
        """


class TrainingSet(Protocol):
    """The images of one stage."""

    spec: MaskSpec  # of the stage
    size: tuple[int, int]  # height, width in pixels
    channels: int
    labels: Ids  # [n], −1 unlabelled
    label_names: tuple[str, ...]
    train_ids: Ids
    held_out_ids: Ids
    key: str  # names the content
    images: Images | None  # [n, H, W, C] whole images, where there are some

    def gather(
        self,
        ids: Ids,
        rate: float,
        augment: float,
        seed: int,
        pixels: NDArray[np.uint8] | None = None,
    ) -> Gathered:
        """The images `ids` for a step, on the CPU; in any thread.

        `rate` of fixed masks; `augment`: probability of each change; `pixels`: of the images [B, H,
        W, C], where they have been read. A pure function of its arguments: augmentation follows
        from `seed`.
        """

    def visible(self, gathered: Gathered, rate: float, generator: torch.Generator) -> Visible:
        """What a step sees of these images, which are on the generator's device.

        Masks that are not fixed are drawn from `generator`.
        """

    def examples(self, ids: Ids) -> Examples:
        """These images as they are, to measure on."""

    def pixels(self, ids: Ids) -> NDArray[np.uint8]:
        """A copy of whole images [b, H, W, C]. Raises ValueError where there are none."""

    def content(self, image: int) -> str:
        """Names one image by what is known of its pixels."""

    def identities(self, ids: Ids) -> Identities:
        """The sha256 of each image's file and of its pixels; none where they are not known."""


class Array:
    """Images in memory as examples: uint8 [n, H, W, C], or latents float32 [n, c, h, w]."""

    def __init__(self, images: np.ndarray, space: spaces.Space) -> None:
        self.images, self.space = images, space

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, part: slice, spec: MaskSpec, generator: torch.Generator) -> tuple[Tensor, Mask]:
        images = np.ascontiguousarray(self.images[part])
        uint8 = images.dtype == np.uint8
        planes = spaces.from_uint8(images) if uint8 else torch.from_numpy(images)
        mask = _mask(planes, self.space, spec, generator)
        return masks.gather(self.space.encode(planes), mask.visible), mask


def _mask(planes: Tensor, space: spaces.Space, spec: MaskSpec, generator: masks.Generator) -> Mask:
    """Masks for images or latents [B, C, H, W], drawn and needed where these are."""
    contrast = salient.local_variance(planes, space.grid) if spec.kind == "salient" else None
    return masks.draw(
        spec, space.grid, len(planes), generator, device=planes.device, contrast=contrast
    )


@dataclass
class ImageSet:
    """Decoded images; `mask_key`: of fixed masks that are those of sealed data."""

    dataset: Dataset
    stage: config.Stage
    space: spaces.Space
    spec: MaskSpec
    mask_key: bytes | None = None
    keep_hidden: bool = False  # whether the loss looks at hidden patches, too

    def __post_init__(self) -> None:
        dataset = self.dataset
        self.size, self.channels = dataset.size, dataset.channels
        self.labels, self.label_names = dataset.labels, dataset.label_names
        self.train_ids, self.held_out_ids = dataset.train_ids, dataset.held_out_ids
        self.key = dataset.key
        self.images: Images | None = dataset.images

    def gather(
        self,
        ids: Ids,
        rate: float,
        augment: float,
        seed: int,
        pixels: NDArray[np.uint8] | None = None,
    ) -> Gathered:
        planes, condition = self._planes(ids, pixels, augment, np.random.default_rng(seed), seed)
        mask = None
        if self.stage.fixed:  # from each image alone, whatever the epoch
            known = (digest.tobytes() for digest in self.dataset.pixel_digests[ids])
            drawn_from = fixed_masks.generators(self.mask_key, known)
            mask = _mask(planes, self.space, self.spec.at(rate), drawn_from)
        return Gathered(planes, torch.from_numpy(self.labels[ids]), condition, mask)

    def visible(self, gathered: Gathered, rate: float, generator: torch.Generator) -> Visible:
        mask = gathered.mask
        if mask is None:
            mask = _mask(gathered.x0, self.space, self.spec.at(rate), generator)
        x0_patches, hidden = self.space.encode(gathered.x0), None
        if self.keep_hidden and mask.hidden is not None:
            hidden = masks.gather(x0_patches, mask.hidden)
        visible = masks.gather(x0_patches, mask.visible)
        return Visible(visible, mask, gathered.condition, hidden)

    def examples(self, ids: Ids) -> Examples:
        return Array(self.dataset.batch(ids), self.space)

    def pixels(self, ids: Ids) -> NDArray[np.uint8]:
        return self.dataset.batch(ids)

    def content(self, image: int) -> str:
        """The sha256 of the pixels."""
        return self.dataset.pixel_digests[image].tobytes().hex()

    def identities(self, ids: Ids) -> Identities:
        return Identities(self.dataset.file_digests[ids], self.dataset.pixel_digests[ids])

    def _planes(
        self,
        ids: Ids,
        pixels: NDArray[np.uint8] | None,
        p: float,
        rng: np.random.Generator,
        seed: int,
    ) -> tuple[Tensor, Tensor | None]:
        """The augmented images in [-1, 1], float32 [B, C, H, W], and how they were augmented."""
        stage = self.stage
        pixels = self.dataset.batch(ids) if pixels is None else pixels
        planes = spaces.from_uint8(augment(pixels, rng, stage.flip, stage.shift))
        if not p:
            return planes, None
        # draws of their own: what flip and shift do does not depend on augment
        changes = augmentation.draw(
            np.random.default_rng(seed_from(seed, "augment")),
            len(ids),
            p,
            square=planes.shape[2] == planes.shape[3],
            colour=planes.shape[1] >= 3,
        )
        return augmentation.apply(planes, changes), augmentation.condition(changes)


@dataclass
class LatentSet(ImageSet):
    """Latents of an autoencoder, drawn anew at each step."""

    def _planes(
        self,
        ids: Ids,
        pixels: NDArray[np.uint8] | None,
        p: float,
        rng: np.random.Generator,
        seed: int,
    ) -> tuple[Tensor, Tensor | None]:
        return torch.from_numpy(self._latents.draw(ids, rng, self.stage.flip)), None

    def examples(self, ids: Ids) -> Examples:
        """The means of the latents."""
        return Array(self._latents.means(ids), self.space)

    @property
    def _latents(self) -> Latents:
        assert self.dataset.latents is not None
        return self.dataset.latents
