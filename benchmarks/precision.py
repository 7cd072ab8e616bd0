"""What bf16 costs and saves when a model draws or is audited, on this machine.

    python benchmarks/precision.py [--samples 500] [--work runs/precision]

Drawing: the packaged weights draws the same seeds in float32 and in bf16; seconds in turn, how far
the pixels of each pair lie apart, and the Fréchet distance of both to 1,000 of its training images
(MobileNetV2 features, no FID). Audit: a network that saw each of 200 images 120 times is attacked
in both, on as many members and 800 held-out images; seconds, and the AUC of each attack at its best
noise level. One thread. Writes benchmarks/results/precision.json; on a quiet machine about ten
minutes, four of them training.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from underpaint import api, config, data, model
from underpaint.core.spaces import from_uint8
from underpaint.evaluation import features, metrics
from underpaint.hardware import Precision, has_amx
from underpaint.privacy import attacks, statistics

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
REAL = 1000  # images the samples are compared with
MEMBERS, OTHERS = 200, 800
ROUNDS = 4  # parts drawn in turn, so that the machine's mood hits both
LEARNED: dict[str, Any] = {
    "data": {"source": "avatars:lorelei", "limit": MEMBERS, "held_out": str(OTHERS)},
    "network": {"kind": "dit", "labels": False},
    "stages": {"masked": None}
    | {"whole": {"batch": 16, "learning_rate": 2e-3, "minutes": 0, "images": 24_000}},
    "train": {"threads": 1, "sample_every": -1, "check_every": -1, "ema": 0.99}
    | {"weight_decay": 0.0},
}


def drawing(count: int) -> dict[str, Any]:
    """Seconds, distance of the pixels in levels of 255, Fréchet distances."""
    loaded = model.load("pretrained:lorelei", device="cpu")
    seconds = dict.fromkeys(PRECISIONS, 0.0)
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in PRECISIONS}
    for start in range(0, count, -(-count // ROUNDS)):
        for name in PRECISIONS:
            loaded.precision = name
            began = time.perf_counter()
            part = min(-(-count // ROUNDS), count - start)
            drawn[name].append(loaded.sample(part, seed=start))
            seconds[name] += time.perf_counter() - began
    one, two = (np.concatenate(drawn[name]).astype(float) for name in PRECISIONS)
    apart = np.abs(one - two).reshape(count, -1).mean(1)
    network = features.load("mobilenetv2")
    dataset = data.prepare(config.Data(source="avatars:lorelei"))
    real = torch.from_numpy(network(dataset.batch(dataset.train_ids[:REAL])))
    frechet = {
        name: float(metrics.frechet_distance(real, torch.from_numpy(network(images))))
        for name, images in zip(PRECISIONS, (one.astype("u1"), two.astype("u1")), strict=True)
    }
    return {
        "samples": count,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "mean_levels_apart": {"median": float(np.median(apart)), "most": float(apart.max())},
        "FD-MobileNetV2": frechet,
    }


def auditing(work: Path) -> dict[str, Any]:
    """Seconds, and the best AUC of each attack."""
    if not (work / "checkpoints" / "LATEST").is_file():
        run = config.from_dict(config.Run, LEARNED, "precision: ", config.preset("quickstart"))
        api.train(run, work, quiet=True, write_report=False)
    dataset = data.prepare(config.Data(**LEARNED["data"]))
    told: dict[str, Any] = {"members": MEMBERS, "others": OTHERS, "seconds": {}, "auc": {}}
    for name in PRECISIONS:
        loaded = model.load(work, device="cpu", precision=name)
        sides = [
            loaded.space.encode(from_uint8(dataset.batch(ids)))
            for ids in (dataset.train_ids, dataset.held_out_ids)
        ]
        sigmas = attacks.levels(loaded.denoiser.process)
        began = time.perf_counter()
        one, two = (
            attacks.scores(loaded.denoiser, side, list(attacks.ATTACKS), sigmas) for side in sides
        )
        told["seconds"][name] = round(time.perf_counter() - began, 1)
        told["auc"][name] = {
            attack: max(
                statistics.auc(one[attack][:, i], two[attack][:, i]).value
                for i in range(len(sigmas))
            )
            for attack in attacks.ATTACKS
        }
    return told


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--work", type=Path, default=Path("runs/precision"), help="the run learned")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "precision.json"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    result = {
        "amx": has_amx(),
        "load_before": round(os.getloadavg()[0], 2),
        "drawing": drawing(given.samples),
        "audit": auditing(given.work),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    given.out.parent.mkdir(exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
