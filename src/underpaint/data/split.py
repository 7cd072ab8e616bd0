"""Which images are held out: used only for evaluation, never for training.

An image is identified by the sha256 of its file; images with the same decoded pixels form a group
and stay on one side. Groups are taken in the order of their smallest hash until 5 % of the images
are held out (at least one from 20 images on, none below), never more than 10 %. Every decision is
recorded at the first `prepare`: an image once held out is never trained on later, one that was
trained on is never held out, and added images are assigned among themselves by the same rule.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from underpaint.bounded import DAMAGE
from underpaint.errors import UserError
from underpaint.io import replacing

TRAIN, HELD_OUT, ASIDE = 0, 1, 2
SHARE, MOST, SMALLEST = 0.05, 0.10, 20


Record = dict[bytes, int]  # sides decided earlier: sha256 of a file → TRAIN or HELD_OUT


def assign(
    file_sha: NDArray[np.uint8],
    pixel_sha: NDArray[np.uint8],
    record: Record | None = None,
    wanted: int | None = None,
) -> NDArray[np.int8]:
    """The side of each image, [n] of TRAIN, HELD_OUT and (rarely) ASIDE.

    file_sha, pixel_sha: [n, 32]. `wanted`: exactly so many held out, where groups allow it. ASIDE:
    held-out images whose pixels now equal those of one in training, and held-out groups that do not
    fit into 10 % any more.
    """
    n = len(file_sha)
    group = np.unique(_keys(pixel_sha), return_inverse=True)[1].reshape(n)  # [n]
    groups = int(group.max(initial=-1)) + 1
    size = np.bincount(group, minlength=groups)
    known = _recorded(file_sha, record or {})  # [n]: -1 unknown
    trained = np.bincount(group[known == TRAIN], minlength=groups) > 0
    held = np.bincount(group[known == HELD_OUT], minlength=groups) > 0

    side = np.where(trained[group], TRAIN, np.where(held[group], HELD_OUT, -1)).astype(np.int8)
    side[(known == HELD_OUT) & trained[group]] = ASIDE

    by_hash = np.argsort(_keys(file_sha), kind="stable")
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


def extended(record: Record | None, file_sha: NDArray[np.uint8], side: NDArray[np.int8]) -> Record:
    """The record with the images that it did not know. Those set aside stay unrecorded."""
    decided = zip((sha.tobytes() for sha in file_sha), side.tolist(), strict=True)
    return {sha: s for sha, s in decided if s != ASIDE} | (record or {})


def knows_all(record: Record, file_sha: NDArray[np.uint8]) -> bool:
    """Whether nothing is left to decide."""
    return all(sha.tobytes() in record for sha in file_sha)


def _keys(sha: NDArray[np.uint8]) -> NDArray[np.void]:
    return np.ascontiguousarray(sha).view("V32").reshape(len(sha))


def _recorded(file_sha: NDArray[np.uint8], record: Record) -> NDArray[np.int8]:
    return np.array([record.get(sha.tobytes(), -1) for sha in file_sha], np.int8)


def read_record(path: Path) -> Record | None:
    """The record of a source, None at its first `prepare`."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            shas, side = arrays["sha"], arrays["side"]
        if shas.shape != (len(side), 32) or not np.isin(side, (TRAIN, HELD_OUT)).all():
            raise ValueError("of another shape")
        return dict(zip((sha.tobytes() for sha in shas), side.tolist(), strict=True))
    except DAMAGE:
        raise UserError(
            f"{path}: the record of which images are held out is damaged; delete it to draw anew"
        ) from None


def write_record(path: Path, record: Record) -> None:
    """Replace the file in one step: a reader sees the old or the new one."""
    with replacing(path) as part, part.open("wb") as file:
        sha = np.frombuffer(b"".join(record), np.uint8).reshape(-1, 32)
        np.savez(file, sha=sha, side=np.array(list(record.values()), np.int8))
