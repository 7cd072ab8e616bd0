"""What batch and learning rate suit a DiT and few images?

    python -m studies.small.run                 as many processes as there are cores

The presets `small-300` and `small-3000` as they were, with a DiT, are tried on as many images of a
style (avatars:pixel-art, 32×32) as their names say, from weights of another style
(`units.heads`), their stages cut to a quarter, with two pairs of batch and learning rate:

    large      32 images a step, at the rate the preset had (2e-4 and 5e-4)
    small      8 whole or 16 masked images a step at 2e-3, as in studies/transfer/run.py

All else is the preset's: augmentation, dropout, label drop, decay, cool-down, images of warm-up.
One seed. Scores: Fréchet distance of 500 samples to held-out images (MobileNetV2 features, no FID)
and the error on held-out images, of half B.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from studies.lib import samples, units

HERE = Path(__file__).parent
SIZES = (300, 3000)
WERE = {300: 2e-4, 3000: 5e-4}
ARMS = ("large", "small")
LENGTH = {  # a quarter of the preset's: images of the masked and of the whole stage
    300: {"masked": 8_000, "whole": 16_000},
    3000: {"masked": 24_000, "whole": 48_000},
}
COUNT = 500  # samples, and images of a half
UNITS = [f"{arm}_{size}" for size in SIZES for arm in ARMS]


def steps(arm: str, size: int) -> dict[str, dict[str, Any]]:
    """Batch and learning rate of both stages."""
    batches = {"masked": 32, "whole": 32} if arm == "large" else {"masked": 16, "whole": 8}
    rate = {"large": WERE[size], "small": 2e-3}[arm]
    return {name: {"batch": batch, "learning_rate": rate} for name, batch in batches.items()}


def settings(unit: str) -> dict[str, Any]:
    """What the name of a unit stands for."""
    arm, size = unit.split("_")
    return {"images": int(size), "stages": steps(arm, int(size))}


def do(unit: str, work: Path, scale: float) -> dict[str, Any]:
    """Train one, begun or gone on with, and score it."""
    from underpaint import config

    arm, size = unit.split("_")
    stages = steps(arm, int(size))
    for name, stage in stages.items():
        images = int(LENGTH[int(size)][name] * scale)
        stage["images"] = max(1, images // stage["batch"]) * stage["batch"]
    changes = {
        "data": {"source": "avatars:pixel-art", "size": 32, "limit": int(size)}
        | {"held_out": "2000"},
        "stages": stages,
        "train": {"threads": 1, "seed": 1, "sample_every": -1, "check_every": -1},
        "sampling": units.EULER,
    }
    run = config.from_dict(config.Run, changes, "small: ", units.base(f"small-{size}"))
    folder = work / unit
    spent = units.trained(run, folder, units.heads(work))
    scores = samples.scored(folder, spent["images"], COUNT)
    shutil.rmtree(folder / "checkpoints")
    return {**spent, **scores}


def write(work: Path, out: Path, scale: float) -> None:
    """The JSON of all units that are done."""
    told = {**units.made(), "scale": scale, "count": COUNT}
    units.write_json(out, {**told, "units": units.gather(UNITS, work, settings)})


if __name__ == "__main__":
    raise SystemExit(units.main(__doc__ or "", UNITS, HERE / "results.json", do, write))
