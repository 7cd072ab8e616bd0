"""Of which images a run is: hashes of those that it trains on and of those held out.

    RUN/images.bin   the sha256 of each file, 32 bytes: first those trained on, ascending, then
                     those held out
    RUN/images.json  how many of each there are, and a sha256 of all that

Runs of earlier versions have all hashes as text in images.json.
"""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from underpaint import config
from underpaint.bounded import Is, checked, read_json, read_regular
from underpaint.data import digests
from underpaint.data.digests import Sums
from underpaint.errors import UserError
from underpaint.training.checkpointing import RunFolder
from underpaint.training.stages import PreparedStage

ABOUT = {
    "trained": Is(int, 0, 2**40),
    "held_out": Is(int, 0, 2**40),
    "sha256": Is(str, 64, 64),
}
TEXTS = dict.fromkeys(("trained", "held_out"), Is(list, of=Is(str, 64, 64)))  # earlier versions
LARGEST = 1 << 40  # bytes


class Images(NamedTuple):
    """The sha256 of each file that is trained on in any stage, and of those held out: ascending."""

    trained: Sums  # [n, 32]
    held_out: Sums

    def digest(self) -> str:
        """sha256 of all of them, and of which are which."""
        digest = hashlib.sha256(f"{len(self.trained)} {len(self.held_out)}\n".encode())
        digest.update(np.ascontiguousarray(self.trained).data)
        digest.update(np.ascontiguousarray(self.held_out).data)
        return digest.hexdigest()


def of(stages: list[PreparedStage]) -> Images:
    """The images of all stages. Sealed data add none: they do not know their files."""
    sets = {id(data.train_ids): data for data in (stage.training_set for stage in stages)}.values()
    trained = _distinct([data.identities(data.train_ids).files for data in sets])
    held_out = _distinct([data.identities(data.held_out_ids).files for data in sets])
    return Images(trained, held_out[~digests.among(held_out, trained)])


def _distinct(parts: list[Sums]) -> Sums:
    sums = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return sums[digests.distinct(sums)[0]]


def write(folder: RunFolder, images: Images) -> None:
    """Write what a run is of."""
    about = {"trained": len(images.trained), "held_out": len(images.held_out)}
    folder.write("images.bin", images.trained.tobytes() + images.held_out.tobytes())
    folder.write("images.json", json.dumps(about | {"sha256": images.digest()}))


def read(run: Path) -> Images:
    """What `write` wrote when the run began. Raises UserError if it is missing or damaged."""
    path = run / "images.json"
    try:
        about = read_json(path, LARGEST)
        if isinstance(about, dict) and isinstance(about.get("trained"), list):
            texts = checked(about, TEXTS)
            return Images(*(_distinct([_of_texts(texts[name])]) for name in TEXTS))
        about, path = checked(about, ABOUT), run / "images.bin"
        sums = np.frombuffer(read_regular(path, LARGEST), np.uint8).reshape(-1, 32)
        images = Images(sums[: about["trained"]], sums[about["trained"] :])
        if len(images.held_out) != about["held_out"] or images.digest() != about["sha256"]:
            raise ValueError("its checksum in images.json is another")
        return images
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: is missing or damaged ({error})") from None


class Recorded(NamedTuple):
    """Which images of a data set a run has trained on and held out."""

    train_ids: NDArray[np.int64]
    held_out_ids: NDArray[np.int64]
    lacking: str  # what of the run's images is not in the data set, in a sentence; empty: nothing


def split_of(run: Path, files: Sums, source: str) -> Recorded:
    """The split that the run in the folder `run` recorded, of the images of `source`.

    `files`: sha256 of their files [n, 32]. Raises UserError where none of them was trained on, or
    nothing is recorded.
    """
    known = read(run)
    ids, lacking = [], []
    for wanted, what in ((known.trained, "training"), (known.held_out, "held-out")):
        ids.append(np.flatnonzero(digests.among(files, wanted)))
        if missing := int((~digests.among(wanted, files)).sum()):
            lacking.append(f"{missing:,} of {len(wanted):,} {what} images")
    if len(known.trained) and not len(ids[0]):
        raise UserError(
            f"{source}: holds none of the images that {run} was trained on; give these as --data"
        )
    recipe = config.load(run / "config.yaml")
    if len({recipe.data_of(stage).source for stage in recipe.stages.values()}) > 1:
        lacking = []  # those of other stages lie elsewhere
    said = f"{source} lacks {' and '.join(lacking)} of {run}" if lacking else ""
    return Recorded(ids[0], ids[1], said)


def _of_texts(texts: list[str]) -> Sums:
    return np.frombuffer(b"".join(map(bytes.fromhex, texts)), np.uint8).reshape(-1, 32)
