"""A run's folder as the training loop leaves it, without training."""

import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from underpaint import config

WHOLE_FLOPS = 4.0e8  # training, an image


def write_images(path: Path, n: int = 60, size: int = 8, labels: int = 4) -> Path:
    """An .npz of `n` images with labels."""
    pixels = np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)
    np.savez(path, images=pixels, labels=np.arange(n) % labels)
    return path


def write_run(
    folder: Path,
    source: str,
    *,
    stages: tuple[str, ...] = ("masked", "whole"),
    checks: bool = True,
    held_out: bool = True,
    finished: bool = True,
    labels: tuple[str, ...] = ("0", "1", "2", "3"),
    start: str | None = None,
    level: float = 1.0,
    settings: dict | None = None,
    grid: Image.Image | None = None,
) -> Path:
    """`stages`: "masked" hides 75 %, others nothing; each has 100 steps and four checks."""
    recipe = {
        "data": {"source": source, "held_out": "6" if held_out else "none", **(settings or {})},
        "stages": {
            name: {
                "images": 32_000,
                "batch": 32,
                "schedule": "cooldown",
                **({"mask": "patch", "rate": 0.75} if name == "masked" else {}),
            }
            for name in stages
        },
        "train": {"threads": 1},
    }
    run = config.from_dict(config.Run, recipe, "test: ")
    records = _records(stages, checks, held_out, finished, list(labels), level)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config.to_yaml(run))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    environment = {"underpaint": "0.1.0", "torch": "2.13.0", "device": "cpu", "start": start}
    environment |= {"parameters": 1_080_000, "command": f"underpaint train --data {source}"}
    (folder / "env.json").write_text(json.dumps(environment))
    (folder / "samples").mkdir()
    for record in records:
        if record["kind"] == "sample":
            (grid or Image.new("RGB", (64, 32))).save(folder / record["file"])
    return folder


def _records(stages, checks, held_out, finished, labels, level):
    rng = np.random.default_rng(1)
    records, images, seconds, flops = [], 0, 0.0, 0.0
    for index, name in enumerate(stages):
        masked = name == "masked"
        visible, rate, speed = (16, 0.75, 1000.0) if masked else (64, 0.0, 320.0)
        own_flops = WHOLE_FLOPS / 4 if masked else WHOLE_FLOPS

        facts = {
            "kind": "stage",
            "stage": name,
            "index": index,
            "mask": "patch" if masked else "none",
            "rate_asked": rate,
            "rate": rate,
            "visible": visible,
            "patches": 64,
        }
        cost = {"flops_per_image": own_flops, "whole_flops_per_image": WHOLE_FLOPS}
        so_far = {"images": images, "seconds": seconds, "flops": flops}
        records.append({**facts, "event": "start", **so_far})
        steps = 100 if finished or index + 1 < len(stages) else 40
        for step in range(1, steps + 1):
            images += 320
            seconds += 320 / speed * (1 + 0.05 * rng.normal())
            flops += 320 * own_flops
            progress = step / 100
            loss = level * (0.12 + 0.3 * math.exp(-images / 9000)) * (1 + 0.06 * rng.normal())
            loss *= 1.35 if masked else 1.0
            records.append(
                {
                    "kind": "step",
                    "stage": name,
                    "images": images,
                    "loss": loss,
                    "stage_images": step * 320,
                    "x0_mse": loss / 3,
                    "grad_norm": 0.4,
                    "lr": 1e-3 * min(1.0, 4 * (1 - progress)),
                    "rate": rate,
                    "skipped": 0,
                    "visible": visible,
                    "flops": flops,
                    **cost,
                    "seconds": seconds,
                    "time": 1e9,
                    "images_per_s": speed * (1 + 0.05 * rng.normal()),
                }
            )
            if checks and step % 25 == 0:
                records += [
                    _check(name, images, mask, held_out, level)
                    for mask in (("whole", "stage") if masked else ("whole",))
                ]
            if step % 25 == 0:
                file = f"samples/images_{images:012d}.png"
                records.append(
                    {
                        "kind": "sample",
                        "stage": name,
                        "images": images,
                        "file": file,
                        "columns": len(labels),
                        "rows": 4,
                        "labels": labels,
                    }
                )
        if steps == 100:
            so_far = {"images": images, "seconds": seconds, "flops": flops}
            records.append({**facts, "event": "end", **so_far})
    return records


def _check(stage, images, mask, held_out, level):
    edges = [-6 + 1.5 * i for i in range(9)]
    sigmas = [math.exp(-(a + b) / 4) for a, b in itertools.pairwise(edges)]
    factor = level * (0.35 + 0.8 * math.exp(-images / 12000)) * (1.3 if mask == "stage" else 1)
    train = [factor * s**2 * 0.25 / (s**2 + 0.25) for s in sigmas]
    unseen = [value * (1 + images / 4e5) for value in train]
    mean = float(np.mean(unseen))
    gap = {
        "held_out": unseen,
        "held_out_mean": mean,
        "held_out_se": 0.03 * mean,
        "gap": mean - float(np.mean(train)),
        "held_out_images": [mean, mean],
    }
    return {
        "kind": "check",
        "stage": stage,
        "images": images,
        "mask": mask,
        "rate": 0.0,
        "log_snr_edges": edges,
        "train": train,
        "train_mean": float(np.mean(train)),
        **(gap if held_out else dict.fromkeys(gap)),
    }


def model(labels: tuple[str, ...], images: np.ndarray) -> SimpleNamespace:
    """Stands for a trained model: its samples are `images`, over and over."""

    def sample(n, *, seed, labels):
        return images[np.arange(n) % len(images)]

    return SimpleNamespace(label_names=labels, sample=sample)
