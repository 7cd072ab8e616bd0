"""When to stop: what the checks of a run on held-out images say about going on.

The checks denoise the same held-out images with the same noises each time, so two of them differ
image by image: with differences d of n images a change is believed if |mean(d)| > 2 sd(d)/√n.

    gain        a check that is believed to be better than the last gain (the first one is a gain)
    improving   a gain among the last PATIENCE checks
    copying     the last two checks are believed to be worse on held-out images than the last gain,
                while the error on training images is lower than it was there
    stop        neither: more of the same brings nothing

A believed gain is sought against the last gain and not against the check before, so that a slow but
steady fall counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

__all__ = ["PATIENCE", "Finding", "judge"]

PATIENCE = 3  # checks without a gain
BELIEVED = 2.0  # standard errors

Answer = Literal["improving", "stop", "copying", "unknown"]


class Finding(NamedTuple):
    """What a run's checks say, in a sentence, and the numbers behind it."""

    answer: Answer
    sentence: str
    best: int | None  # images of the run at the last gain: the checkpoint to keep
    since: int  # images since then
    evidence: dict[str, Any]


def judge(records: Sequence[dict[str, Any]]) -> Finding:
    """The finding of the lines of a `metrics.jsonl`; of its checks on whole images."""
    checks = _comparable(records)
    if len(checks) < 2:
        sentence = (
            "Whether to go on cannot be told: that needs two checks of held-out images at least"
        )
        return Finding("unknown", sentence, None, 0, {})
    best = 0
    for i in range(1, len(checks)):
        if _worse(checks[best], checks[i]):
            best = i
    since = len(checks) - 1 - best
    gain, last = checks[best], checks[-1]
    images = last["images"] - gain["images"]
    mean, error = _difference(gain, last)
    evidence = {
        "images": [gain["images"], last["images"]],
        "held_out": [gain["held_out_mean"], last["held_out_mean"]],
        "train": [gain["train_mean"], last["train_mean"]],
        "gap": [gain["gap"], last["gap"]],
        "change": mean,
        "change_se": error,
        "bins_worse": [
            i
            for i, (a, b) in enumerate(zip(gain["held_out"], last["held_out"], strict=True))
            if b > a
        ],
        "checks_since": since,
    }
    told = (
        f"held-out error {gain['held_out_mean']:.4f} after {gain['images']:,} images and "
        f"{last['held_out_mean']:.4f} after {last['images']:,} "
        f"(change {mean:+.4f} ± {error:.4f}), on training images {gain['train_mean']:.4f} and "
        f"{last['train_mean']:.4f}"
    )
    copying = (
        since >= 2
        and all(_worse(check, gain) for check in checks[-2:])
        and last["train_mean"] < gain["train_mean"]
    )
    if copying:
        sentence = f"Copying: the held-out score worsens while the training score improves ({told})"
        return Finding("copying", sentence, gain["images"], images, evidence)
    if since >= PATIENCE:
        sentence = f"Stop: no gain in the last {images:,} images ({told})"
        return Finding("stop", sentence, gain["images"], images, evidence)
    first = checks[0]
    sentence = (
        f"Improving: the last believed gain on held-out images was after {gain['images']:,} of "
        f"{last['images']:,} images (error {first['held_out_mean']:.4f} at the first check, "
        f"{last['held_out_mean']:.4f} at the last)"
    )
    return Finding("improving", sentence, gain["images"], images, evidence)


def _comparable(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Checks of whole images, from the last one back as long as the held-out images are as many."""
    checks = [
        r
        for r in records
        if r["kind"] == "check" and r["mask"] == "whole" and r.get("held_out_images")
    ]
    found: list[dict[str, Any]] = []
    for check in reversed(checks):
        if found and len(check["held_out_images"]) != len(found[-1]["held_out_images"]):
            break
        found.append(check)
    return found[::-1]


def _difference(before: dict[str, Any], after: dict[str, Any]) -> tuple[float, float]:
    """Mean change of the error image by image, and its standard error."""
    d = np.asarray(after["held_out_images"]) - np.asarray(before["held_out_images"])
    error = float(d.std(ddof=1) / math.sqrt(len(d))) if len(d) > 1 else math.inf
    return float(d.mean()), error


def _worse(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether check `one` is believed to be worse than `other`."""
    mean, error = _difference(other, one)
    return mean > BELIEVED * error
