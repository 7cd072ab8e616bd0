"""How near to real heads the packaged weights draw, beside those that they replaced.

    python benchmarks/packaged.py [--count 500] [--steps 10]

`before` is the DiT of commit ce44b43, taken from git. Both draw as many samples as there are
held-out images, of the same seeds and with the labels of these, by Heun in the same steps, without
guidance; `real` is as many training images. Writes benchmarks/results/packaged.json and, beside
it, a picture of both.

    frechet      distance in MobileNetV2 features (never an FID), with its 95 % interval
    difference   of the new weights to the old, in the same seeds: what both share cancels
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from underpaint import config, data, model, model_folder
from underpaint.evaluation import features, metrics
from underpaint.pictures import grid

BEFORE, PLACE = "ce44b43", "src/underpaint/pretrained/lorelei"
RESULTS = Path(__file__).parent / "results"
ENDS = ("", "_low", "_high")


def before(folder: Path) -> Path:
    """The weights of that commit, unpacked; a DiT of format 2 is one of today's format."""
    packed = subprocess.run(
        ["git", "archive", BEFORE, PLACE], check=True, capture_output=True, cwd=RESULTS.parents[1]
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    card = folder / PLACE / "config.json"
    told = json.loads(card.read_text(encoding="utf-8")) | {"format": model_folder.FORMAT}
    card.write_text(json.dumps(told), encoding="utf-8")
    return folder / PLACE


def main() -> None:
    """Draw, score, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=500, help="samples, and images of each kind")
    parser.add_argument("--steps", type=int, default=10, help="of Heun's sampler")
    given = parser.parse_args()
    torch.set_num_threads(1)
    heads = data.prepare(config.Data(source="avatars:lorelei", size=(32,)))
    network = features.load("mobilenetv2")
    ids = heads.held_out_ids[: given.count]
    real, labels = network(heads.batch(ids)), [int(label) for label in heads.labels[ids]]
    seen = np.random.default_rng(0).permutation(heads.train_ids)[: given.count]
    drawn, pictures, about = {"real": network(heads.batch(seen))}, [], {}
    with tempfile.TemporaryDirectory() as place:
        sources = {"before": str(before(Path(place))), "now": "pretrained:lorelei"}
        for name, source in sources.items():
            loaded = model.load(source, device="cpu", precision="fp32")
            how = {"sampler": "heun", "steps": given.steps, "grid": "uniform", "guidance": 1.0}
            samples = loaded.sample(len(ids), seed=0, labels=labels, **how)
            drawn[name] = network(samples)
            pictures.append(grid(samples[:32], 8))
            weights = sum(p.numel() for p in loaded.backbone.parameters())
            about[name] = {"kind": loaded.spec.network.kind, "parameters": weights}
    held_out = torch.from_numpy(real)
    found: dict[str, Any] = {"count": len(ids), "sampler": f"heun-{given.steps}"}
    for name, one in drawn.items():
        x = torch.from_numpy(one)
        value = metrics.frechet_distance(x, held_out)
        interval = metrics.jackknife(metrics.frechet_distance, x, held_out, value)
        found[name] = about.get(name, {}) | {
            f"frechet{end}": round(v, 2) for end, v in zip(ENDS, interval, strict=True)
        }
    now, then = (torch.from_numpy(drawn[name]) for name in ("now", "before"))
    apart = metrics.frechet_difference(now, then, held_out)
    found["difference"] = [round(v, 2) for v in apart]
    (RESULTS / "packaged.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    width = sum(picture.width for picture in pictures) + 16
    beside = Image.new("RGB", (width, pictures[0].height), "white")
    beside.paste(pictures[0], (0, 0))
    beside.paste(pictures[1], (pictures[0].width + 16, 0))
    beside.save(RESULTS / "packaged.png")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
