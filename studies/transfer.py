"""Do weights that learned one style on hidden images help to learn another from few images?

    python studies/transfer.py [--work runs/transfer]      as many processes as there are cores
    python studies/transfer.py --page                      the page alone

Pre-training on 10,000 heads of one style (avatars:lorelei), by visible parts alone (`masked`), by
whole images for the same training FLOPs (`whole`), or none (`scratch`); then fine-tuning on 1,000
(10 %) or 100 (1 %) images of another style (avatars:pixel-art), whole images, 32×32, constant
learning rate. Every arm gets the same two trials of the learning rate with seed 0. Each run is
scored at `POINTS` by samples of its averaged weights against held-out images of the new style: half
A chooses the learning rate and each run's best point, half B is reported. So each arm stands at its
best, however long it took to get there, and the whole curves are in the JSON.

Units: primer-ARM_SEED (pre-training) and ARM_SIZE_SEED or, for tuning, ARM_SIZE_RATE. A run of
scratch or whole takes 5 to 10 minutes of one core.

The effect is a ratio of Fréchet distances (MobileNetV2 features, no FID), as a geometric mean over
seeds with a t-interval on its logarithm, paired by seed.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import units

HERE = Path(__file__).parent
ARMS = ("scratch", "whole", "masked")
SIZES = {1000: (8_000, 16_000, 32_000, 64_000), 100: (4_000, 8_000, 16_000, 32_000)}
RATES = (1e-3, 3e-4)
SEEDS = (1, 2, 3, 4, 5)
PRIMER = 2e13  # training FLOPs of a pre-training
COUNT = 500  # samples, and images of a half
BATCH = 32

STAGE = {"batch": BATCH, "learning_rate": 1e-3, "minutes": 0, "images": BATCH, "warmup": 1000}
MASKED = STAGE | {"mask": "block", "block": 2, "rate": 0.75, "schedule": "cooldown"}
WHOLE = STAGE | {"schedule": "cooldown"}

PRIMERS = [f"primer-{arm}_{seed}" for seed in (0, *SEEDS) for arm in ARMS[1:]]
TRIALS = [f"{arm}_{size}_{rate:g}" for size in SIZES for rate in RATES for arm in ARMS]
RUNS = [f"{arm}_{size}_{seed}" for seed in SEEDS for size in SIZES for arm in ARMS]


def primer(unit: str, folder: Path, scale: float) -> dict[str, Any]:
    """Pre-train on the first style."""
    from underpaint import api, config
    from underpaint.judge import study

    arm, seed = unit.removeprefix("primer-").split("_")
    own = {"masked": MASKED} if arm == "masked" else {"whole": WHOLE}
    run = config.from_dict(
        config.Run,
        {
            "data": {"source": "avatars:lorelei"},
            "stages": {"masked": None, "whole": None} | own,
            "train": {"threads": 1, "seed": int(seed), "sample_every": -1, "check_every": -1},
        },
        "transfer: ",
        config.preset("quickstart"),
    )
    run = study.scaled(run, {arm: 1.0}, PRIMER, scale, (32, 32), 3, 8)
    _train(api, run, folder, None)
    return {"flops": _end(folder)["flops"], "images": _end(folder)["images"]}


def finetune(unit: str, work: Path, scale: float) -> dict[str, Any]:
    """Fine-tune on the second style, and score every point."""
    from underpaint import api, config

    arm, size, last = unit.split("_")
    trial = unit in TRIALS
    seed = 0 if trial else int(last)
    rate = float(last) if trial else chosen(work, arm, int(size))
    points = [max(BATCH, int(point * scale) // BATCH * BATCH) for point in SIZES[int(size)]]
    every = math.gcd(*points)
    run = config.from_dict(
        config.Run,
        {
            "data": {"source": "avatars:pixel-art", "limit": int(size), "held_out": "2000"},
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
                "keep": points[-1] // every,
            },
        },
        "transfer: ",
        config.preset("quickstart"),
    )
    folder = work / unit
    start = None if arm == "scratch" else str(work / f"primer-{arm}_{seed}")
    if start and not (Path(start) / "result.json").is_file():
        raise units.NotYet
    _train(api, run, folder, start)
    return {
        "learning_rate": rate,
        "flops": _end(folder)["flops"],
        "curve": [{"images": n, **_scores(folder, n)} for n in points],
    }


def _train(api: Any, run: Any, folder: Path, start: str | None) -> None:
    begun = (folder / "checkpoints" / "LATEST").is_file()
    api.train(
        None if begun else run,
        folder,
        start=None if begun else start,
        resume=begun,
        overwrite=not begun,
        quiet=True,
        write_report=False,
    )


def _end(folder: Path) -> dict[str, Any]:
    """The last line of metrics of a stage."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    return dict([m for m in found if m["kind"] == "stage" and m["event"] == "end"][-1])


def _scores(folder: Path, images: int) -> dict[str, float]:
    """Distances of a checkpoint's samples to both halves, and its error on half B."""
    import torch

    from underpaint import config, data, model
    from underpaint.judge import features, halves, scores
    from underpaint.judge.overfit import OverfitCheck

    network = features.load("mobilenetv2")
    dataset = data.prepare(config.load(folder / "config.yaml").data)
    loaded = model.load(folder / "checkpoints" / f"{images:012d}", device="cpu")
    labels = [i % len(loaded.label_names) for i in range(COUNT)]
    drawn = torch.from_numpy(network(loaded.sample(COUNT, seed=0, labels=labels)))
    found: dict[str, float] = {}
    for half in ("A", "B"):
        ids = halves.half(dataset, half, COUNT)  # type: ignore[arg-type]
        real = torch.from_numpy(network(dataset.batch(ids)))
        found[f"frechet_{half}"] = scores.frechet_distance(real, drawn)
        found[f"kernel_{half}"] = scores.kernel_distance(real, drawn)[0]
    check = OverfitCheck(
        dataset.batch(ids[:256]),
        None,
        loaded.space,
        loaded.denoiser.process,
        seed=0,
        train_labels=dataset.labels[ids[:256]],
    )
    return found | {"held_out": float(check.measure(loaded.denoiser)["train_mean"])}


def chosen(work: Path, arm: str, size: int) -> float:
    """The learning rate whose best point is the better on half A."""
    done = units.gather([f"{arm}_{size}_{rate:g}" for rate in RATES], work)
    if len(done) < len(RATES):
        raise units.NotYet
    return float(min(done.values(), key=lambda found: best(found)["frechet_A"])["learning_rate"])


def best(found: dict[str, Any]) -> dict[str, Any]:
    """The point of a run that half A prefers."""
    return dict(min(found["curve"], key=lambda point: point["frechet_A"]))


def effect(results: dict[str, Any], size: int, arm: str, against: str) -> dict[str, Any] | None:
    """Ratio of the arm's distance to the other's, over seeds; None before two seeds are done."""
    from underpaint.judge.verdict import interval

    pairs = [(f"{arm}_{size}_{seed}", f"{against}_{size}_{seed}") for seed in SEEDS]
    logs = {
        score: [
            math.log(best(results[a])[score] / best(results[b])[score])
            for a, b in pairs
            if a in results and b in results
        ]
        for score in ("frechet_B", "held_out")
    }
    told: dict[str, Any] = {"size": size, "arm": arm, "against": against}
    for score, values in logs.items():
        found = interval(values)
        if found is None:
            return None
        told[score] = {
            "ratio": math.exp(found.mean),
            "low": math.exp(found.low),
            "high": math.exp(found.high),
            "seeds": len(values),
        }
    return told


def write(work: Path, out: Path, scale: float) -> None:
    """The JSON of all units that are done, and the page."""
    results = units.gather([*PRIMERS, *TRIALS, *RUNS], work)
    asked = [(size, *pair) for size in SIZES for pair in PAIRS]
    effects = [found for size, a, b in asked if (found := effect(results, size, a, b))]
    about = {**units.made(), "scale": scale, "count": COUNT}
    units.write_json(out, {**about, "effects": effects, "units": results})


PAIRS = (("masked", "scratch"), ("whole", "scratch"), ("masked", "whole"))


def main() -> int:
    """All units that are not done yet."""
    import torch

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [*PRIMERS[:2], *TRIALS, *PRIMERS[2:], *RUNS]
    parser.add_argument("--only", nargs="+", default=names, choices=names, metavar="UNIT")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the lengths")
    parser.add_argument("--work", type=Path, default=Path("runs/transfer"), help="runs")
    parser.add_argument("--out", type=Path, default=HERE / "transfer.json", help="results")
    given = parser.parse_args()
    torch.set_num_threads(1)
    done = units.committed(given.out, given.scale).get("units", {})
    # not the primers: runs that are left begin from their weights
    units.restore({name: done[name] for name in done if name not in PRIMERS}, given.work)

    def do(unit: str) -> dict[str, Any]:
        if unit in PRIMERS:
            return primer(unit, given.work / unit, given.scale)
        return finetune(unit, given.work, given.scale)

    return units.conduct(
        given.only, given.work, do, lambda: write(given.work, given.out, given.scale)
    )


if __name__ == "__main__":
    raise SystemExit(main())
