"""Draw images with the model.onnx beside this file: numpy, onnxruntime and pillow are enough.

python sample.py -n 8 --label NAME --seed 0 --out samples.png        (its seeds are numpy's own)
"""

import argparse
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image


def main() -> None:
    here = Path(__file__).parent
    card = json.loads((here / "model.json").read_text(encoding="utf-8"))
    add = (parser := argparse.ArgumentParser()).add_argument
    add("-n", type=int, default=8, help="how many images")
    add("--label", choices=card["labels"], help="of this class (default: no label)")
    add("--seed", type=int, default=0)
    add("--steps", choices=list(card["levels"]), default=str(card["steps"]))
    add("--guidance", type=float, default=card["guidance"], help="1: none")
    add("--noise", help="a .npy of standard normal numbers [n, C, H, W] instead of a seed")
    add("--out", default="samples.png")
    args = parser.parse_args()
    shape = card["channels"], card["height"], card["width"]
    noise = np.random.default_rng(args.seed).standard_normal((args.n, *shape))
    noise = np.load(args.noise) if args.noise else noise
    label = card["labels"].index(args.label) if args.label else -1
    session = onnxruntime.InferenceSession(here / card["graph"])

    def network(x: np.ndarray, sigma: float, label: int) -> np.ndarray:
        inputs = {"x": x, "sigma": np.full(len(x), sigma, np.float32)}
        if card["labels"]:
            inputs["labels"] = np.full(len(x), label)
        return session.run(None, inputs)[0]

    def denoise(x: np.ndarray, sigma: float) -> np.ndarray:
        x0 = network(x, sigma, label)
        if label >= 0 and args.guidance != 1:
            null = network(x, sigma, -1)
            x0 = null + np.float32(args.guidance) * (x0 - null)
        if card["clip"] == "none":
            return x0
        most = np.ones((len(x), 1, 1, 1), np.float32)
        if card["clip"] == "dynamic":
            most = np.maximum(most, np.quantile(abs(x0), 0.995, (1, 2, 3), keepdims=True))
        return (np.clip(x0, -most, most) / most).astype(np.float32)

    levels = card["levels"][args.steps]
    x = (noise * levels[0]).astype(np.float32)
    for s, r in pairwise(levels):  # from level s down to r
        x0 = denoise(x, s)
        ahead = x0 + (r / s) * (x - x0)
        if r > 0 and card["sampler"] == "heun":
            x0_ahead = denoise(ahead, r)
            if s > 3 * max(r, 1):  # a long step through almost pure noise
                mean = (x0 + x0_ahead) / 2
                ahead = mean + (r / s) * (x - mean)
            else:
                ahead = x + (r - s) * ((x - x0) / s + (ahead - x0_ahead) / r) / 2
        x = ahead.astype(np.float32)

    pixels = np.rint((x + 1) * 127.5).clip(0, 255).transpose(0, 2, 3, 1)
    if shape[0] == 4:  # colours times alpha → straight colours
        alpha = pixels[..., 3:]
        colours = np.minimum(pixels[..., :3], alpha) * 255 + alpha // 2
        pixels = np.concatenate([colours // np.maximum(alpha, 1), alpha], -1)
    row = np.concatenate(list(pixels.astype(np.uint8)), axis=1)
    Image.fromarray(row[..., 0] if shape[0] == 1 else row).save(args.out)


if __name__ == "__main__":
    main()
