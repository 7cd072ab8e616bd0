"""The design of studies/privacy/run.py: whose pictures, and how each arm trains on them.

*Private* are the drawn heads with glasses, a beard, earrings or freckles, *public* those with none.
Each seed draws its own members, non-members and quality reference from the private heads, disjoint;
the public heads are the same for all. An arm is one or two stages of equal compute each, and all
arms have the same training FLOPs (in the private stage of `public-dp` every draw of an image
counts; its gradients of single images take longer than that).

Exposures: how often a member's pixel was seen, images of the stages on members · V/N / members.
"""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from studies.lib import units
from underpaint.compare import study
from underpaint.training import cost

__all__ = [
    "ARMS",
    "COUNTS",
    "Part",
    "counts",
    "described",
    "exposures",
    "points",
    "pools",
    "recipe",
    "write",
]

ATTRIBUTES = ("glasses", "beard", "earrings", "freckles")
COUNTS = {"members": 500, "others": 3000, "reference": 1000}
CHECKPOINTS = 4
BATCH, PRIVATE_BATCH, DRAWS = 16, 250, 2
FIRST = {"batch": BATCH, "learning_rate": 2e-3, "minutes": 0, "images": BATCH, "warmup": 1000}
LAST = FIRST | {"schedule": "cooldown"}
PATCHES = {"mask": "patch", "rate": 0.75}
BLOCKS = {"mask": "block", "block": 2, "rate": 0.9}


class Part(NamedTuple):
    """A stage: its pictures, what differs from a stage on whole images, its share of the FLOPs."""

    pictures: str  # members or public
    own: dict[str, Any]
    share: float


class Arm(NamedTuple):
    """One way to train."""

    letter: str
    title: str
    parts: tuple[Part, ...]


MEMBERS, PUBLIC = Part("members", {}, 0.5), Part("public", {}, 0.5)
FIXED = BLOCKS | {"fixed": True}
PRIVATE = {"dp": {"epsilon": 8.0, "delta": 1e-5, "clip": 1.0, "multiplicity": DRAWS}}

ARMS = {
    "ordinary": Arm("a", "whole images of members", (Part("members", {}, 1.0),)),
    "parts-whole": Arm("b", "75 % hidden, then whole", (Part("members", PATCHES, 0.5), MEMBERS)),
    "parts": Arm("c", "75 % hidden, nothing else", (Part("members", PATCHES, 1.0),)),
    "fixed-public": Arm(
        "d", "fixed masks of 90 %, then public", (Part("members", FIXED, 0.5), PUBLIC)
    ),
    "fresh-public": Arm(
        "e", "fresh masks of 90 %, then public", (Part("members", BLOCKS, 0.5), PUBLIC)
    ),
    "whole-public": Arm("f", "whole members, then public", (MEMBERS, PUBLIC)),
    "public-dp": Arm(
        "g", "public, then members at epsilon 8", (PUBLIC, Part("members", PRIVATE, 0.5))
    ),
    "public": Arm("h", "public alone", (Part("public", {}, 1.0),)),
}


# --- whose pictures ------------------------------------------------------------------------------


def counts(scale: float) -> dict[str, int]:
    """How many pictures of each kind: all of them from a tenth of the study's length up."""
    return {name: max(16, round(n * min(1.0, 10 * scale))) for name, n in COUNTS.items()}


def pools(private: NDArray[np.bool_], seed: int, scale: float) -> dict[str, NDArray[np.int64]]:
    """Rows of the pictures in each pool, drawn from `seed` alone; `public` is that of all seeds.

    Raises ValueError where there are too few private pictures.
    """
    wanted = counts(scale)
    ids = np.flatnonzero(private)
    if sum(wanted.values()) > len(ids):
        raise ValueError(
            f"{len(ids)} private pictures are fewer than the {sum(wanted.values())} that a seed "
            "draws; draw more of them (studies/lib/draw.py --size 32 --count 40000)"
        )
    order = np.random.default_rng([seed, 6]).permutation(ids)
    ends = np.cumsum(list(wanted.values()))
    drawn = dict(zip(wanted, np.split(order, ends)[:-1], strict=True))
    return drawn | {"public": np.flatnonzero(~private)}


def write(pictures: Path, work: Path, seeds: tuple[int, ...], scale: float) -> dict[str, Any]:
    """The pools as uint8 [n, H, W, C]: work/public.npy and work/SEED/POOL.npy, and their sizes."""
    from PIL import Image

    with zipfile.ZipFile(pictures) as archive:
        rows = list(csv.DictReader(io.StringIO(archive.read("labels.csv").decode())))
        images = np.stack(
            [np.asarray(Image.open(io.BytesIO(archive.read(row["filename"])))) for row in rows]
        )
    private = np.array([any(row[name] != "none" for name in ATTRIBUTES) for row in rows])
    for seed in seeds:
        own = work / str(seed)
        own.mkdir(parents=True, exist_ok=True)
        for name, ids in pools(private, seed, scale).items():
            place = work if name == "public" else own
            if not (place / f"{name}.npy").is_file():
                np.save(place / f"{name}.npy", images[ids])
    return {
        "pictures": len(rows),
        "private": int(private.sum()),
        "public": int((~private).sum()),
        **counts(scale),
    }


# --- how an arm trains ---------------------------------------------------------------------------


def recipe(arm: str, seed: int, length: float, scale: float, work: Path) -> Any:
    """The run of an arm: stages that spend `scale` · `length` FLOPs, a checkpoint a quarter."""
    from underpaint import config

    parts = ARMS[arm].parts
    stages: dict[str, Any] = {"masked": None, "whole": None}  # those of the preset are left out
    for i, part in enumerate(parts):
        place = work / "public.npy" if part.pictures == "public" else work / str(seed)
        source = place if part.pictures == "public" else place / "members.npy"
        stage = (LAST if i == len(parts) - 1 else FIRST) | part.own
        if "dp" in part.own:  # noise is a step's, so few and large ones, and a low rate
            batch = min(PRIVATE_BATCH, counts(scale)["members"] // 2)
            stage |= {"batch": batch, "images": batch, "learning_rate": 2e-4, "warmup": 0}
            stage |= {"schedule": "constant"}
        stages[f"{i + 1}-{part.pictures}"] = stage | {
            "data": {"source": str(source), "size": 32, "held_out": "none"}
        }
    first = next(stage for stage in stages.values() if stage)
    settings: dict[str, Any] = {
        "data": first["data"],
        "network": {"kind": "dit", "labels": False},
        "noise": units.INDEPENDENT,
        "stages": stages,
        "train": {"threads": 1, "seed": seed, "sample_every": -1, "check_every": -1, "keep": 1000}
        | {"ema": 0.99, "weight_decay": 0.0},
        # 20 steps of Euler, as many evaluations, left grain on the flat grounds of some networks
        "sampling": {"sampler": "heun", "steps": 10},
    }
    if arm == "public-dp":  # its last stage has few steps
        settings["train"]["ema"] = 0.98
    run = config.from_dict(config.Run, settings, "privacy: ", units.base("quickstart"))
    shares = {f"{i + 1}-{part.pictures}": part.share for i, part in enumerate(parts)}
    run = study.scaled(run, shares, length, scale, (32, 32), 3)
    run.train.checkpoint_every = max(
        1,
        min(int(run.stages[name].images / share / CHECKPOINTS) for name, share in shares.items()),
    )
    return run


def described(run: Any) -> list[dict[str, Any]]:
    """What each stage of the run costs and shows, as `cost.describe` counts it."""

    return list(cost.describe(run, (32, 32), 3)["stages"])


def exposures(arm: str, stages: list[dict[str, Any]], members: int) -> dict[str, float]:
    """How often a member's pixel was seen on average, and the share of its pixels ever seen.

    Of a private stage it is what is expected, each image counted once however often it is drawn.
    """
    seen, ever = 0.0, 0.0
    for told, part in zip(stages, ARMS[arm].parts, strict=True):
        if part.pictures != "members":
            continue
        visible = told["visible"] / told["patches"]
        seen += told["images"] * visible / members
        ever = max(ever, visible if part.own.get("fixed") else 1.0)
    return {"exposures": seen, "share_seen": ever}


def points(stages: list[dict[str, Any]], there: list[int]) -> list[tuple[int, float]]:
    """Of the checkpoints `there` (in images) those nearest to each quarter of the FLOPs.

    They lie a quarter apart at most, so none is further than an eighth from where it should be.
    Returns (images, share of the FLOPs), ascending, the last one among them.
    """
    ends = np.cumsum([0] + [told["images"] for told in stages])
    spent = np.cumsum([0.0] + [told["flops"] for told in stages])
    shares = {n: float(np.interp(n, ends, spent) / spent[-1]) for n in there}
    chosen = {
        min(shares, key=lambda n: abs(shares[n] - i / CHECKPOINTS))
        for i in range(1, CHECKPOINTS + 1)
    }
    return [(n, shares[n]) for n in sorted(chosen | {max(there)})]
