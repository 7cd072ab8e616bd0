"""Do weights that learned one style on hidden images help to learn another from few images?

    python -m studies.transfer.run              as many processes as there are cores
    python -m studies.transfer.run --page       the page alone

Pre-training on 10,000 heads of one style (avatars:lorelei), by visible parts alone (`masked`), by
whole images for the same training FLOPs (`whole`), or none (`scratch`); then fine-tuning on 1,000
(10 %) or 100 (1 %) images of another style (avatars:pixel-art), whole images, 32×32, constant
learning rate. Every arm gets the same four trials of the learning rate with seed 0, as long as
`TRIED`. Each run is scored at `POINTS` by samples of its averaged weights against held-out images
of the new style: half A chooses the learning rate and each run's best point, half B is reported. So
each arm stands at its best, however long it took to get there; the ratios at equal points and the
whole curves are told beside it, with the distance between the two halves, below which no distance
of so few samples can be expected to fall.

Units: primer-ARM_SEED (pre-training), trial-ARM_SIZE_RATE and ARM_SIZE_SEED.

The effect is a ratio of Fréchet distances (MobileNetV2 features, no FID), as a geometric mean over
seeds with a t-interval on its logarithm, paired by seed.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from pathlib import Path
from typing import Any

from studies.lib import samples, units
from studies.transfer import page as transfer_page
from underpaint.compare import study

HERE = Path(__file__).parent
ARMS = ("scratch", "whole", "masked")
# images of fine-tuning; on 1,000, a run from scratch still halved its distance after 32,000
POINTS = {1000: (8_000, 16_000, 32_000, 64_000), 100: (2_000, 4_000, 8_000, 16_000)}
TRIED = {1000: 16_000, 100: 4_000}
RATES = (8e-3, 4e-3, 2e-3, 1e-3)  # from scratch, 4e-3 is best of the last three
SEEDS = (1, 2, 3, 4, 5)
PRETRAINED = 2e13  # training FLOPs of a pre-training
COUNT = 500  # samples, and images of a half
BATCH = 8
MASKED_BATCH = 16  # of a quarter of the patches; drew nearest in studies/batches

STAGE = {"batch": BATCH, "learning_rate": 4e-3, "minutes": 0, "images": BATCH, "warmup": 1000}
MASKED = STAGE | {
    "mask": "patch",  # better than blocks at 100 patches an image (studies/where)
    "rate": 0.75,
    "batch": MASKED_BATCH,
    "schedule": "cooldown",
}
WHOLE = STAGE | {"schedule": "cooldown"}

PRIMERS = [f"primer-{arm}_{seed}" for seed in (0, *SEEDS) for arm in ARMS[1:]]
TRIALS = [f"trial-{arm}_{size}_{rate:g}" for size in POINTS for rate in RATES for arm in ARMS]
RUNS = [f"{arm}_{size}_{seed}" for seed in SEEDS for size in POINTS for arm in ARMS]


def primer(unit: str, folder: Path, scale: float) -> dict[str, Any]:
    """Pre-train on the first style."""
    from underpaint import config

    arm, seed = unit.removeprefix("primer-").split("_")
    own = {"masked": MASKED} if arm == "masked" else {"whole": WHOLE}
    run = config.from_dict(
        config.Run,
        {
            "data": {"source": "avatars:lorelei"},
            "noise": units.INDEPENDENT,
            "stages": {"masked": None, "whole": None} | own,
            "train": {"threads": 1, "seed": int(seed), "sample_every": -1, "check_every": -1},
        },
        "transfer: ",
        units.base("quickstart"),
    )
    run = study.scaled(run, {arm: 1.0}, PRETRAINED, scale, (32, 32), 3, 8)
    return units.trained(run, folder)


def finetune(unit: str, work: Path, scale: float) -> dict[str, Any]:
    """Fine-tune on the second style, and score every point."""
    from underpaint import config

    arm, size, last = unit.removeprefix("trial-").split("_")
    trial = unit in TRIALS
    seed = 0 if trial else int(last)
    rate = float(last) if trial else chosen(work, arm, int(size))
    wanted = (TRIED[int(size)],) if trial else POINTS[int(size)]
    points = [max(BATCH, int(point * scale) // BATCH * BATCH) for point in wanted]
    every = math.gcd(*points)
    run = config.from_dict(
        config.Run,
        {
            "data": {"source": "avatars:pixel-art", "limit": int(size), "held_out": "2000"},
            "noise": units.INDEPENDENT,
            "stages": {
                "masked": None,
                "whole": STAGE | {"images": points[-1], "learning_rate": rate},
            },
            "train": {
                "threads": 1,
                "seed": seed,
                "sample_every": -1,
                "check_every": -1,
                "checkpoint_every": every,
                "keep": 1000,  # all: a run that was stopped has more than its points
            },
            "sampling": units.EULER,
        },
        "transfer: ",
        units.base("quickstart"),
    )
    folder = work / unit
    start = None if arm == "scratch" else str(work / f"primer-{arm}_{seed}")
    if start and not (Path(start) / "result.json").is_file():
        raise units.NotYet
    spent = units.trained(run, folder, start)
    curve = [{"images": n, **samples.scored(folder, n, COUNT)} for n in points]
    shutil.rmtree(folder / "checkpoints")  # hundreds of megabytes
    return {"learning_rate": rate, **spent, "curve": curve}


def chosen(work: Path, arm: str, size: int) -> float:
    """The learning rate whose best point is the better on half A."""
    done = units.gather([f"trial-{arm}_{size}_{rate:g}" for rate in RATES], work)
    if len(done) < len(RATES):
        raise units.NotYet
    return float(
        min(done.values(), key=lambda found: transfer_page.best(found)["frechet_A"])[
            "learning_rate"
        ]
    )


def needed(primer: str, done: dict[str, Any]) -> bool:
    """Whether `primer` is a pre-training whose weights, never committed, a run that is left takes.

    `done`: the units that are done.
    """
    if primer not in PRIMERS:
        return False
    arm, seed = primer.removeprefix("primer-").split("_")
    of_arm = [name for name in TRIALS if name.startswith(f"trial-{arm}_")]
    begin = of_arm if seed == "0" else [f"{arm}_{size}_{seed}" for size in POINTS]
    return any(name not in done for name in begin)


def settings(unit: str) -> dict[str, Any]:
    """What the name of a unit stands for; a trial's learning rate stands beside its result."""
    arm, *size, last = unit.removeprefix("trial-").removeprefix("primer-").split("_")
    seed = {"seed": 0 if unit in TRIALS else int(last)}
    return {"arm": arm} | ({"images": int(size[0])} if size else {}) | seed


def design() -> list[str]:
    """What was done, for the page."""
    from underpaint.report import summary

    return [
        "Pre-training on 10,000 drawn heads of one style, on parts alone (75 % of the patches "
        f"hidden) or on whole images, for the same {summary.flops(PRETRAINED)} training FLOPs, "
        "or none. Then fine-tuning on 1,000 or 100 heads of another style, whole images of 32×32, "
        f"at a constant learning rate. Batches are of {BATCH} whole or {MASKED_BATCH} masked "
        f"images. The rate is one of {', '.join(f'{rate:g}' for rate in RATES)}, chosen for each "
        "arm and number of images by trials with seed 0 on "
        f"{' or '.join(f'{n:,}' for n in TRIED.values())} images. A network of each seed is "
        "pre-trained anew.",
        f"Scores are of {COUNT} samples of the averaged weights and {COUNT} held-out images; half "
        "A of those chooses the learning rate and the point of a run, half B is shown: each arm "
        "at its best, however long it took. No distance of so few samples can be expected below "
        "that of the halves to each other. Intervals are t-intervals over seeds. FD and KD: "
        "Fréchet and kernel distance in MobileNetV2 features, no FID. Error of x0: mean squared, "
        "pixels from −1 to 1, on half B.",
        "Times are as the runs went, two processes beside each other. One trial (whole_100_0.001) "
        "stood still for half an hour, which its time contains.",
        "To repeat: `python -m studies.transfer.run`; every number is in `results.json`.",
    ]


def write(work: Path, out: Path, scale: float) -> None:
    """The JSON of all units that are done, and the page."""
    results = units.gather([*PRIMERS, *TRIALS, *RUNS], work, settings)
    about = {**units.made(), "scale": scale, "count": COUNT, "design": design()}
    effects = transfer_page.effects(results)
    told = {**about, "effects": effects, "units": results}
    units.write_json(out, told)
    transfer_page.page(json.loads(json.dumps(told))).write(out.with_suffix(".html"))


def main() -> int:
    """All units that are not done yet."""
    import torch

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [*PRIMERS[:2], *TRIALS, *PRIMERS[2:], *RUNS]
    parser.add_argument("--only", nargs="+", default=names, choices=names, metavar="UNIT")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the lengths")
    parser.add_argument("--work", type=Path, default=Path("runs/transfer"), help="runs")
    parser.add_argument("--out", type=Path, default=HERE / "results.json", help="results")
    parser.add_argument("--page", action="store_true", help="write the page of --out and stop")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.page:
        told = json.loads(given.out.read_text(encoding="utf-8"))
        print(transfer_page.page(told).write(given.out.with_suffix(".html")))
        return 0
    done = units.committed(given.out, given.scale).get("units", {})
    units.restore({name: done[name] for name in done if not needed(name, done)}, given.work)

    def do(unit: str) -> dict[str, Any]:
        if unit in PRIMERS:
            return primer(unit, given.work / unit, given.scale)
        return finetune(unit, given.work, given.scale)

    return units.conduct(
        given.only, given.work, do, lambda: write(given.work, given.out, given.scale)
    )


if __name__ == "__main__":
    raise SystemExit(main())
