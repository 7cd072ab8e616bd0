"""Writing a sealed data set (see `format`), image by image, none of them kept.

Each image is decoded in memory, a few at a time; its visible patches go to a random place of the
file, the rest is forgotten. No cache is read or written. What is remembered of an image until the
end, in memory alone, is a thumbnail (see `near_duplicates`) and two digests (to split): about a
third of a kilobyte.

A file gets its name when all of it was read back and verified. One whose writing was interrupted is
removed; it never held anything but visible patches.
"""

import hashlib
import secrets
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from underpaint import config as settings
from underpaint import cores
from underpaint.core import masks
from underpaint.core.alpha import premultiplied
from underpaint.core.spaces import Pixels
from underpaint.data import digests, fixed_masks, split
from underpaint.data.build import check_bad, check_size, in_order, natural_order
from underpaint.data.decode import Options
from underpaint.data.near_duplicates import NearDuplicates
from underpaint.data.preparation import decoding
from underpaint.data.source import find
from underpaint.errors import UserError
from underpaint.io import replacing, writing
from underpaint.progress import doing
from underpaint.sealed import format as sealed

BATCH = 64  # images whose patches are written together
SUPPORT = 3  # pixels of the Lanczos kernel to either side


def seal(
    data: settings.Data,
    out: str | Path,
    *,
    patch: int = 4,
    kind: str = "block",
    rate: float = 0.9,
    block: int = 2,
    multiple: int = 1,
    key: bytes | None = None,
    labels: bool = False,
    drop_duplicates: bool = False,
    workers: int = 0,
) -> dict[str, Any]:
    """Write the visible patches of all images of `data` to `out`; returns what `verify` says.

    `kind`, `rate`, `block`, `multiple` as in `masks.MaskSpec`. `key`: of the masks, else random and
    forgotten. `labels`: keep the images' labels. `drop_duplicates`: of images that are nearly equal
    keep the first. Raises UserError for data and masks that cannot be, or if `out` exists.
    """
    path = Path(out).expanduser()
    if kind not in sealed.KINDS:
        raise UserError(f"mask '{kind}' cannot be sealed; use one of {', '.join(sealed.KINDS)}")
    if path.exists():
        raise UserError(f"'{out}' exists; give another name, or delete it first")
    options, wanted = decoding(data), _wanted(data.held_out)
    source = find(data.source)
    if source.shards:
        raise UserError(
            f"data '{data.source}' are shards, which are streamed and not sealed; unpack them into "
            "a folder"
        )
    key = secrets.token_bytes(32) if key is None else key
    with writing(path), replacing(path) as temporary:
        with temporary.open("w+b") as file:
            contents = source.open()
            spec = masks.MaskSpec(kind, rate, block=block, multiple=multiple)
            writer: Writer | None = None
            bad: list[dict[str, Any]] = []
            with warnings.catch_warnings(), doing("sealing images", contents.total) as at:
                warnings.simplefilter("ignore")  # of decoders
                images = in_order(
                    source.origin, contents.items, options, workers or cores.available()
                )
                for done, (item, image) in enumerate(images, 1):
                    if image.pixels is None:
                        bad.append({"path": item.name, "reason": image.reason})
                    else:
                        if options.size is None:  # the first image's; all others must agree
                            options = options._replace(size=image.original_size)
                        check_size(source.origin, item.name, image.pixels, options)
                        if writer is None:
                            shape = image.pixels.shape
                            writer = Writer(file, contents.total, shape, patch, spec, key, labels)
                        bleed = _bleed(image.original_size, options)
                        shas = image.file_sha, image.pixel_sha
                        label = item.label if labels else None
                        writer.add(image.pixels, shas, label, bleed, drop_duplicates)
                    if done % BATCH == 0 or done == contents.total:
                        at(done)
            check_bad(source.origin, bad, writer.seen if writer else 0, data.max_bad)
            if writer is None or writer.count < 2:
                raise UserError(f"data '{source.origin}' is one image; at least 2 are needed")
            names = contents.label_names if labels else ()
            if wanted is not None and wanted >= writer.count:
                raise UserError(
                    f"held-out {wanted}: the data have {writer.count} images; hold out fewer"
                )
            writer.finish(wanted, names)
        about = sealed.verify(temporary)
        if path.exists():
            raise UserError(f"'{out}' was made by another process meanwhile; give another name")
    return about | {"file": str(path.resolve()), "unreadable": len(bad)}


class Writer:
    """Writes patches and positions to random rows, and keeps what is needed at the end."""

    def __init__(
        self,
        file: BinaryIO,
        total: int,
        shape: tuple[int, ...],
        patch: int,
        spec: masks.MaskSpec,
        key: bytes,
        labelled: bool,
    ) -> None:
        """`total`: images at most; `shape`: of each, height, width and channels.

        Raises UserError for a grid and a mask that cannot be sealed.
        """
        height, width, channels = shape
        self.file, self.key, self.spec = file, key, spec
        try:
            self.space = Pixels((height, width), channels, patch)
            h, w = self.space.grid
            self.V = masks.visible_count(spec, (h, w))
        except ValueError as error:
            raise UserError(str(error)) from None
        if h * w == self.V:
            raise UserError(
                f"mask '{spec.kind}' at rate {spec.rate:g} hides nothing of a grid of {h}×{w}; "
                "raise the rate"
            )
        if h * w > 1 << 16:
            raise UserError(f"a grid of {h}×{w} has more than 65,536 patches; give a larger patch")
        order = np.random.default_rng(secrets.randbits(128))
        self.slots = order.permutation(total).astype(np.int32)  # of the images in their order
        self.count = self.seen = self.bleed = self.dropped = 0
        self.file_sha, self.pixel_sha = bytearray(), bytearray()
        self.labels: list[int] = []  # numbers of `names`
        self.names: dict[str, int] = {}
        self.root = np.arange(total, dtype=np.int32)  # of an image's group of near duplicates
        self.near_duplicates = NearDuplicates((height, width), channels, total)
        self.waiting: list[NDArray[np.uint8]] = []
        # for all images until the end, when it is known how many there are
        arrays = sealed.blocks(total, self.V, self.space.patch_dim, labelled)
        self.arrays = {block.name: block for block in arrays}

    def add(
        self,
        pixels: NDArray[np.uint8],
        shas: tuple[bytes, bytes],
        label: str | None,
        bleed: int,
        drop_duplicates: bool,
    ) -> None:
        """Take an image [H, W, C], or leave it out as a near duplicate."""
        self.seen += 1
        near = self.near_duplicates.near(pixels)
        if near and drop_duplicates:
            self.dropped += 1
            return
        number = self.near_duplicates.add(pixels)
        for other in near:
            self.root[self._of(number)] = self._of(other)
        self.file_sha += shas[0]
        self.pixel_sha += shas[1]
        self.labels.append(-1 if label is None else self.names.setdefault(label, len(self.names)))
        self.bleed = max(self.bleed, bleed)
        self.waiting.append(pixels)
        self.count += 1
        if len(self.waiting) == BATCH:
            self._flush()

    def _flush(self) -> None:
        """Write the patches of the waiting images, and forget the images."""
        if not self.waiting:
            return
        first, B = self.count - len(self.waiting), len(self.waiting)
        pixels = (bytes(self.pixel_sha[32 * i : 32 * i + 32]) for i in range(first, self.count))
        generators = fixed_masks.generators(self.key, pixels)
        mask = masks.draw(self.spec, self.space.grid, B, generators)
        planes = torch.from_numpy(premultiplied(np.stack(self.waiting))).permute(0, 3, 1, 2)
        assert mask.visible is not None  # a mask that hides nothing was refused
        positions = mask.visible.numpy().astype("<u2")
        patches = masks.gather(self.space.encode(planes), mask.visible).numpy()
        for i, slot in enumerate(self.slots[first : self.count].tolist()):
            self._put("positions", slot, positions[i].tobytes())
            self._put("patches", slot, patches[i].tobytes())
        self.waiting.clear()

    def finish(self, wanted: int | None, label_names: tuple[str, ...] | None) -> None:
        """Close the gaps, split, and write labels, held-out marks, checksums and header."""
        self._flush()
        del self.near_duplicates  # most of what is held, and no longer needed
        n, slots = self.count, self._compact()
        names = label_names or natural_order(list(self.names))
        of_name = np.array([names.index(name) for name in self.names] + [-1])  # −1 stays −1
        label = np.empty(n, np.int32)
        label[slots] = of_name[np.array(self.labels)]
        groups = np.array([self._of(i) for i in range(n)])
        file_sha = np.frombuffer(self.file_sha, np.uint8).reshape(n, 32)
        pixel_sha = np.frombuffer(self.pixel_sha, np.uint8).reshape(n, 32)
        exact = n - len(digests.distinct(pixel_sha)[0])
        side = split.assign(file_sha, pixel_sha[groups], None, wanted)  # groups stay together
        held_out = np.empty(n, bool)
        held_out[slots] = side == split.HELD_OUT
        duplicates = self._joint(groups, slots) | {"exact": exact, "dropped": self.dropped}
        arrays = sealed.blocks(n, self.V, self.space.patch_dim, bool(names))
        checksums = self._rewrite(arrays, {"labels": label, "held_out": held_out})
        about = {
            "images": n,
            "size": list(self.space.size),
            "channels": self.space.channels,
            "patch": self.space.patch,
            "visible": self.V,
            "patch_dim": self.space.patch_dim,
            "kind": self.spec.kind,
            "rate": float(self.spec.rate),
            "block": self.spec.block,
            "multiple": self.spec.multiple,
            "label_names": list(names),
            "held_out": int(held_out.sum()),
            "bleed": self.bleed,
            "duplicates": duplicates,
            "arrays": {block.name: block.offset for block in arrays},
            "checksums": hashlib.sha256(checksums).hexdigest(),
        }
        self.file.write(checksums)
        self.file.truncate()
        self.file.seek(0)
        self.file.write(sealed.header(about))

    def _compact(self) -> NDArray[np.int32]:
        """Move the last rows into the gaps of images that were left out.

        Rows are random, so the order stays random. Returns each image's row.
        """
        n = self.count
        slots = self.slots[:n].copy()
        free = np.setdiff1d(np.arange(n, dtype=np.int32), slots)
        for place, image in zip(free.tolist(), np.flatnonzero(slots >= n).tolist(), strict=True):
            for name in ("positions", "patches"):
                self._put(name, place, self._get(name, int(slots[image])))
            slots[image] = place
        return slots

    def _joint(self, groups: NDArray[np.int32], slots: NDArray[np.int32]) -> dict[str, Any]:
        """How many images have near duplicates, and what share of an image a group shows."""
        _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        shared = np.flatnonzero(sizes[group] > 1)
        N = self.space.grid[0] * self.space.grid[1]
        shows: dict[int, set[int]] = {}
        for image in shared.tolist():
            positions = np.frombuffer(self._get("positions", int(slots[image])), "<u2")
            shows.setdefault(int(group[image]), set()).update(positions.tolist())
        coverage = [len(positions) / N for positions in shows.values()]
        return {
            "groups": len(shows),
            "images": len(shared),
            "largest": int(sizes.max()) if len(shared) else 0,
            "joint_coverage_mean": round(float(np.mean(coverage)), 4) if coverage else 0.0,
            "joint_coverage_largest": round(max(coverage), 4) if coverage else 0.0,
        }

    def _rewrite(self, arrays: list[sealed.Block], known: dict[str, NDArray[Any]]) -> bytes:
        """Write the arrays to their final places, chunk by chunk; returns that of the checksums.

        What is not `known` is read from where it was written, which is never before its place.
        """
        checksums = bytearray(arrays[-1].npy_header())
        for block, first, last, begin, _ in sealed.chunks(arrays):
            if block.name in known:
                data = known[block.name][first:last].tobytes()
            else:
                data = self._get(block.name, first, last - first)
            if begin == block.start:
                data = block.npy_header() + data
            self.file.seek(begin)
            self.file.write(data)
            checksums += hashlib.sha256(data).digest()
        return bytes(checksums)

    def _get(self, name: str, row: int, count: int = 1) -> bytes:
        block = self.arrays[name]
        self.file.seek(block.offset + row * block.row)
        return self.file.read(count * block.row)

    def _put(self, name: str, row: int, data: bytes) -> None:
        block = self.arrays[name]
        self.file.seek(block.offset + row * block.row)
        self.file.write(data)

    def _of(self, image: int) -> int:
        """The first image of the group of near duplicates that `image` belongs to."""
        while self.root[image] != image:
            self.root[image] = self.root[self.root[image]]
            image = int(self.root[image])
        return int(image)


def _bleed(original_size: tuple[int, int], options: Options) -> int:
    """How many pixels beside a patch resampling mixes into it."""
    assert options.size is not None
    if original_size == options.size:
        return 0
    scale = max(target / source for target, source in zip(options.size, original_size, strict=True))
    return int(np.ceil(SUPPORT * max(1.0, scale)))


def _wanted(held_out: str) -> int | None:
    """How many images are held out; None: the usual share."""
    if held_out in ("auto", "none"):
        return 0 if held_out == "none" else None
    if held_out.isascii() and held_out.isdigit():
        return int(held_out)
    raise UserError(
        f"held-out '{held_out}': the split is made at sealing; give auto, none or a number"
    )
