"""Which images are held out: used only for evaluation, never for training.

An image is identified by the sha256 of its file; images with the same decoded pixels form a group
and stay on one side. Groups are taken in the order of their smallest hash until 5 % of the images
are held out (at least one from 20 images on, none below), never more than 10 %. Every decision is
recorded at the first `prepare`: an image once held out is never trained on later, one that was
trained on is never held out, and added images are assigned among themselves by the same rule.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from underpaint.bounded import DAMAGE
from underpaint.data import digests
from underpaint.errors import UserError
from underpaint.io import replacing

TRAIN, HELD_OUT, ASIDE = 0, 1, 2
SHARE, MOST, SMALLEST = 0.05, 0.10, 20


class Record(NamedTuple):
    """Sides decided earlier, by the sha256 of the files, which ascend."""

    sha: digests.Sums  # [m, 32]
    side: NDArray[np.int8]  # [m], TRAIN or HELD_OUT

    @classmethod
    def of(cls, parts: list[tuple[digests.Sums, NDArray[np.int8]]]) -> "Record":
        """What these say, each digest once."""
        sha = np.concatenate([np.empty((0, 32), np.uint8), *(sha for sha, _ in parts)])
        side = np.concatenate([np.empty(0, np.int8), *(side for _, side in parts)])
        first = digests.distinct(sha)[0]
        return cls(sha[first], side[first])

    def sides(self, file_sha: digests.Sums) -> NDArray[np.int8]:
        """The side of each file, −1 of those that are not known: [n]."""
        place = digests.places(file_sha, digests.keys(self.sha))
        return np.where(place < 0, -1, self.side[place] if len(self.side) else -1).astype(np.int8)


def assign(
    file_sha: digests.Sums,
    pixel_sha: digests.Sums,
    record: Record | None = None,
    wanted: int | None = None,
) -> NDArray[np.int8]:
    """The side of each image, [n] of TRAIN, HELD_OUT and (rarely) ASIDE.

    file_sha, pixel_sha: [n, 32]. `wanted`: exactly so many held out, where groups allow it. ASIDE:
    held-out images whose pixels now equal those of one in training, and held-out groups that do not
    fit into 10 % any more.
    """
    n = len(file_sha)
    group = digests.distinct(pixel_sha)[1]  # [n]
    groups = int(group.max(initial=-1)) + 1
    size = np.bincount(group, minlength=groups)
    known = (record or Record.of([])).sides(file_sha)
    trained = np.bincount(group[known == TRAIN], minlength=groups) > 0
    held = np.bincount(group[known == HELD_OUT], minlength=groups) > 0

    side = np.where(trained[group], TRAIN, np.where(held[group], HELD_OUT, -1)).astype(np.int8)
    side[(known == HELD_OUT) & trained[group]] = ASIDE

    by_hash = digests.order(file_sha)
    _, first = np.unique(group[by_hash], return_index=True)
    in_order = np.argsort(first, kind="stable")  # groups by their smallest file hash
    most = int(MOST * n) if wanted is None else wanted
    aim = (max(1, round(SHARE * n)) if n >= SMALLEST else 0) if wanted is None else wanted

    held &= ~trained
    count = 0
    dropped = np.zeros(groups, bool)
    for g in in_order[held[in_order]].tolist():
        if count + size[g] <= most:
            count += int(size[g])
        else:
            dropped[g] = True
    side[dropped[group]] = ASIDE
    chosen = np.zeros(groups, bool)
    for g in in_order[~(held | trained)[in_order]].tolist():
        if count >= aim:
            break
        if count + size[g] <= most:
            chosen[g] = True
            count += int(size[g])
    side[chosen[group]] = HELD_OUT
    side[side == -1] = TRAIN
    return side


def extended(record: Record | None, file_sha: digests.Sums, side: NDArray[np.int8]) -> Record:
    """The record with the images that it did not know. Those set aside stay unrecorded."""
    record = record or Record.of([])
    new = (side != ASIDE) & (record.sides(file_sha) < 0)
    return Record.of([(record.sha, record.side), (file_sha[new], side[new])])


def read_record(path: Path) -> Record | None:
    """The record of a source, None at its first `prepare`."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            shas, side = arrays["sha"], arrays["side"]
        if shas.shape != (len(side), 32) or not np.isin(side, (TRAIN, HELD_OUT)).all():
            raise ValueError("of another shape")
        return Record.of([(shas, side)])
    except DAMAGE:
        raise UserError(
            f"{path}: the record of which images are held out is damaged; delete it to draw anew"
        ) from None


def write_record(path: Path, record: Record) -> None:
    """Replace the file in one step: a reader sees the old or the new one."""
    with replacing(path) as part, part.open("wb") as file:
        np.savez(file, sha=record.sha, side=record.side)
