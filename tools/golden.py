"""Golden figures: what every preset, shrunk, computes in its first steps, bit for bit.

`python tools/golden.py record` writes tools/golden.json; `python tools/golden.py` compares with it
and ends with exit code 1 where anything differs. One thread, float32, CPU. These figures belong to
one machine and one torch; they guard the rebuilding of the house and go away at its end.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent.parent))

import underpaint as up
from tests.systems import save_autoencoder

HERE = Path(__file__).parent
STEPS = 10
RENAMED = {"default": "own"}  # names that presets had when the figures were recorded


def digest(*arrays: np.ndarray) -> str:
    """Of the arrays' bytes, whatever their order and names."""
    each = sorted(hashlib.sha256(np.ascontiguousarray(a).tobytes()).digest() for a in arrays)
    return hashlib.sha256(b"".join(each)).hexdigest()[:16]


def shrunk(name: str, source: Path, vae: Path) -> up.config.Run:
    """The preset with a small network, images of 8×8 patches and STEPS steps a stage."""
    run = up.preset(name)
    unit = run.space.patch
    if run.space.kind == "wavelets":
        unit *= 2**run.space.levels
    if run.space.kind == "latents":
        run.space.vae, run.space.factor = str(vae), 2
        unit *= 2
    side = 32 if run.network.kind == "unet" else 8 * unit
    run.data.source, run.data.size, run.data.limit = str(source), (side,), 0
    run.data.held_out = "16"
    run.network.width, run.network.heads = 64, 2
    run.network.depth = min(run.network.depth, 3)
    options = {"decoder_width": 64, "decoder_depth": 1, "decoder_heads": 2}
    if run.network.kind == "maskdit":
        run.network.options |= options
    if run.network.kind == "unet":
        run.network.width = 32
        run.network.options |= {"multipliers": [1, 2], "attention": [1]}
    for stage in run.stages.values():
        stage.minutes, stage.batch, stage.images = 0.0, 8, 8 * STEPS
        stage.data, stage.size = None, ()
        stage.warmup = min(stage.warmup, 16)
    train = run.train
    train.threads, train.precision, train.device, train.seed = 1, "fp32", "cpu", 3
    train.microbatch, train.log_every, train.sample_every = 4, 8, -1
    run.sampling.steps, run.sampling.count = 4, 2
    train.check_every, train.check_images = 8 * STEPS, 8
    return run


def figures(name: str, work: Path) -> dict:
    run = shrunk(name, work / "images.npz", work / "vae")
    out = up.train(run, work / name, quiet=True)
    lines = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [m for m in lines if m["kind"] == "step"]
    checks = [m for m in lines if m["kind"] == "check"]
    last = sorted((out / "checkpoints").glob("[0-9]*/"))[-1]
    model = up.load(out)
    labels = list(model.label_names) or None
    samples = model.sample(4, seed=5, steps=4, labels=labels)
    return {
        "loss": [m["loss"] for m in steps],
        "x0_mse": [m["x0_mse"] for m in steps],
        "grad_norm": [m["grad_norm"] for m in steps],
        "visible": [m["visible"] for m in steps],
        "held_out": [m.get("held_out_mean") for m in checks],
        "weights": digest(*(v.numpy() for v in load_file(last / "model.safetensors").values())),
        "ema": digest(*(v.numpy() for v in load_file(last / "ema.safetensors").values())),
        "samples": digest(samples),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("verb", nargs="?", default="compare", choices=("record", "compare"))
    parser.add_argument("--only", nargs="*", default=[])
    args = parser.parse_args()
    torch.set_num_threads(1)
    known = {} if args.verb == "record" else json.loads((HERE / "golden.json").read_text())
    found, wrong = {}, []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["UNDERPAINT_CACHE"] = f"{folder}/cache"
        work = Path(folder)
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (64, 16, 16, 3), np.uint8)
        np.savez(work / "images.npz", images=images, labels=np.arange(64) % 2)
        save_autoencoder(work / "vae")
        from underpaint import backbones, config

        # the figures were recorded before narrow networks were refused
        backbones.check_features = lambda *_: None
        names = args.only or config.preset_names()
        for name in names:
            key = RENAMED.get(name, name)
            found[key] = figures(name, work)
            if known and key in known and found[key] != known[key]:
                wrong.append((key, [k for k in found[key] if found[key][k] != known[key][k]]))
            print(
                key,
                found[key]["samples"],
                "differs" if wrong and wrong[-1][0] == key else "",
                flush=True,
            )
        model = up.load(os.environ.get("GOLDEN_PACKAGED", "pretrained:lorelei"), device="cpu")
        labels = list(model.label_names)
        found["packaged"] = {"samples": digest(model.sample(8, seed=1, steps=6, labels=labels))}
        if known and found["packaged"] != known["packaged"]:
            wrong.append(("packaged", ["samples"]))
    if args.verb == "record":
        (HERE / "golden.json").write_text(json.dumps(found, indent=1) + "\n")
    for key, what in wrong:
        print(f"{key}: {', '.join(what)} differ")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
