"""How far the losses of training on sealed images are from those under fresh masks.

    python benchmarks/sealed.py [--steps 100]

Trains one small network three times on the same images in the same order: sealed; from whole images
under the same fixed masks (the losses must be equal bit for bit); under masks that are drawn anew.
Writes benchmarks/results/sealed.json with the losses' distances: root mean square over the steps
in all, and of the means over the last tenth of the steps.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from underpaint.sealed import format as sealed

os.environ["OMP_NUM_THREADS"] = "1"
IMAGES, SIDE, PATCH, RATE, BATCH = 600, 32, 4, 0.9, 16


def losses(folder: Path, steps: int) -> dict[str, list[float]]:
    """The loss of each step by way of training."""
    import numpy as np
    import torch

    from underpaint import config
    from underpaint.core.masks import MaskSpec, draw, gather
    from underpaint.core.spaces import Pixels
    from underpaint.data import digests, fixed_masks, prepare
    from underpaint.sealed.writer import seal
    from underpaint.training import train

    os.environ["UNDERPAINT_CACHE"] = str(folder / "cache")
    images = prepare(config.Data(source="avatars:lorelei", size=(SIDE,))).images[:IMAGES]
    np.save(folder / "some.npy", images)
    (folder / "key").write_bytes(bytes(range(32)))
    plain = config.Data(source=str(folder / "some.npy"), held_out="none")
    seal(plain, folder / "some.up", rate=RATE, patch=PATCH, key=bytes(range(32)), workers=1)
    # the images in the order of the records: their masks and patches tell which is which
    space = Pixels((SIDE, SIDE), 3, PATCH)
    every = space.encode(torch.from_numpy(np.array(images)).permute(0, 3, 1, 2))
    key = bytes(range(32))
    seeds = [fixed_masks.seed_of(key, digests.of_array(image)) for image in images]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    mask = draw(MaskSpec("block", RATE, block=2), space.grid, IMAGES, generators)
    kept = gather(every, mask.visible).numpy()
    assert mask.visible is not None
    number = {
        (places.tobytes(), values.tobytes()): i
        for i, (places, values) in enumerate(zip(mask.visible.numpy(), kept, strict=True))
    }
    shown, at = sealed.read(folder / "some.up").batch(np.arange(IMAGES))
    order = [
        number[places.astype(np.int64).tobytes(), values.tobytes()]
        for values, places in zip(shown, at, strict=True)
    ]
    np.save(folder / "ordered.npy", images[order])
    stage = config.Stage(images=steps * BATCH, mask="block", rate=RATE, block=2, batch=BATCH)
    fixed = replace(stage, fixed=True, fixed_key=str(folder / "key"))
    ordered = replace(plain, source=str(folder / "ordered.npy"))
    ways = {
        "sealed": (config.Data(source=str(folder / "some.up")), stage),
        "fixed": (ordered, fixed),
        "fresh": (ordered, stage),
    }
    found = {}
    for name, (data, own) in ways.items():
        run = config.Run(
            data=data,
            space=config.Space(patch=PATCH),
            network=config.Network(width=64, depth=3, heads=4),
            stages={"masked": own},
            train=config.Train(threads=1, check_every=-1, sample_every=-1, log_every=BATCH),
        )
        records = (train(run, folder / name, quiet=True) / "metrics.jsonl").read_text()
        lines = [json.loads(line) for line in records.splitlines()]
        found[name] = [line["loss"] for line in lines if line["kind"] == "step"]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "sealed.json"
    )
    given = parser.parse_args()
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        found = {name: np.array(own) for name, own in losses(Path(folder), given.steps).items()}
    gaps = {name: found["sealed"] - found[name] for name in ("fixed", "fresh")}
    tail = max(1, given.steps // 10)
    result = {
        "images": IMAGES,
        "steps": given.steps,
        "batch": BATCH,
        "rate": RATE,
        "equal_bit_for_bit": bool((gaps["fixed"] == 0).all()),
        "distance_to_fixed": float(np.sqrt(np.square(gaps["fixed"]).mean())),
        "distance_to_fresh": float(np.sqrt(np.square(gaps["fresh"]).mean())),
        "loss_at_the_end": {name: float(own[-tail:].mean()) for name, own in found.items()},
    }
    given.out.parent.mkdir(exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 0 if result["equal_bit_for_bit"] else 1


if __name__ == "__main__":
    sys.exit(main())
