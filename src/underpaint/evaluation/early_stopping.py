"""When to stop: what the checks of a stage on held-out images say about going on.

The checks denoise the same held-out images with the same noises each time, so two of them differ
image by image: with differences d of n images a change is believed if |mean(d)| > 2 sd(d)/√n.

    gain        a check that is believed to be better than the last gain (the first one is a gain)
    improving   a gain among the last PATIENCE checks, the last of which has the lowest error so far
    waiting     such a gain, but the error has not fallen since: too early to stop
    copying     the last two checks are believed to be worse on held-out images than the last gain,
                while the error on training images is lower than it was there
    stop        none of these: more of the same brings nothing

A believed gain is sought against the last gain and not against the check before, so that a slow but
steady fall counts. A stage is judged at its own mask, since that is what it learns; only checks at
the same rate are compared. After a return to the best weights (`train.stop auto`) the checks of the
weights that were given up no longer count. The samples (sample_metrics.py) are reported beside, and
how the error compares with that of a Wiener filter (wiener.py).
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from underpaint.evaluation import wiener
from underpaint.evaluation.sample_metrics import comparable
from underpaint.training.monitor import Answer, Finding

PATIENCE = 3  # checks without a gain
BELIEVED = 2.0  # standard errors


def judge(records: Sequence[dict[str, Any]]) -> Finding:
    """The finding of the lines of a `metrics.jsonl`, about the last stage that was checked."""
    checks = _comparable(records)
    if len(checks) < 2:
        sentence = "too early to say whether to go on: that needs two checks of held-out images"
        best = checks[0]["images"] if checks else None
        return Finding("unknown", sentence, best, 0, False, {})
    gain, since, last = checks[0], 0, checks[-1]
    for check in checks[1:]:
        gain, since = (check, 0) if _worse(gain, check) else (gain, since + 1)
    images = last["images"] - gain["images"]
    mean, error = _difference(gain, last)
    evidence = {
        "images": [gain["images"], last["images"]],
        "held_out": [gain["held_out_mean"], last["held_out_mean"]],
        "train": [gain["train_mean"], last["train_mean"]],
        "gap": [gain["gap"], last["gap"]],
        "change": mean,
        "change_se": error,
        "bins_worse": np.flatnonzero(np.less(gain["held_out"], last["held_out"])).tolist(),
        "checks_since": since,
        "below_wiener": last.get("below_wiener"),
    }
    drawn, measured = _drawn(records, gain["images"], last["images"])
    evidence |= measured
    worse = since > 0 and _worse(last, gain)
    copying = (
        since >= 2
        and worse
        and _worse(checks[-2], gain)
        and last["train_mean"] < gain["train_mean"]
    )
    found, best = last["held_out_mean"], gain["held_out_mean"]
    lowest = since == 0 or found < min(check["held_out_mean"] for check in checks[:-1])
    improving = lowest and since < PATIENCE
    change = _percent(checks[-2]["held_out_mean"] if improving else best, found)
    scale = "; ".join(filter(None, [change, wiener.below(last)]))
    error_now = f"held-out error {found:.4f} ({scale})"
    best_at = f"best at {gain['images']:,} images"
    answer: Answer
    if copying:
        answer = "copying"
        sentence = (
            f"memorizing: {error_now}, {best_at}, while the error on training images fell from "
            f"{gain['train_mean']:.4f} to {last['train_mean']:.4f}{drawn}"
        )
    elif since >= PATIENCE:
        answer = "stop"
        state = "getting worse" if worse else "plateaued"
        sentence = f"{state} for {images:,} images: {error_now}, {best_at}{drawn}"
    elif improving:
        answer = "improving"
        sentence = f"still improving: {error_now}, best so far"
    else:
        answer = "waiting"
        than = "worse than" if worse else "no better than"
        sentence = f"check: {error_now}, {than} at {gain['images']:,} images"
    sentence = "; ".join(filter(None, [sentence, wiener.worse(last)]))
    return Finding(answer, sentence, gain["images"], images, worse, evidence)


def _percent(before: float, after: float) -> str:
    """The relative change of an error, as `−19 %`."""
    change = 100 * (after / before - 1) if before else 0.0
    digits = 1 if abs(change) < 10 else 2  # of no use beyond these
    text = np.format_float_positional(change, digits, fractional=False, sign=True, trim="-")
    return f"{text} %".replace("-", "\N{MINUS SIGN}")


def _drawn(
    records: Sequence[dict[str, Any]], first: int, last: int
) -> tuple[str, dict[str, list[float]]]:
    """What was drawn about the images `first` and `last` of the run, in words and numbers.

    It is shown and decides nothing: unlike the errors, these scores have no paired images from
    which to tell a change from chance.
    """
    said, evidence = "", {}
    for key, words, shown in (
        ("frechet_train", "Fréchet distance to training images", "{:.4g}"),
        ("frechet_held_out", "to held-out images", "{:.4g}"),
        ("copies", "near copies among samples", "{:.1%}"),
    ):
        scored = [r for r in records if r["kind"] == "scores" and r.get(key) is not None]
        scored = scored if key == "copies" else comparable(scored)
        within = [r for r in scored if first <= r["images"] <= last]
        if len(within) > 1:
            evidence[key] = [within[0][key], within[-1][key]]
            one, two = (shown.format(value) for value in evidence[key])
            said += f"; {words} {one} and {two}"
    return said, evidence


def _comparable(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last stage's checks, from the last one back as long as they measure the same."""
    checks = [r for r in records if r["kind"] == "check" and r.get("held_out_images")]
    if not checks:
        return []
    stage = checks[-1].get("stage")
    mask = "stage" if any(r["mask"] == "stage" for r in checks if _of(r, stage)) else "whole"
    kept: list[dict[str, Any]] = []
    given_up = None  # images from and to which weights were given up
    for record in records:
        if record["kind"] == "stop" and record["stage"] == stage and record["back"]:
            given_up = (record["back"], record["images"])
        elif record["kind"] == "check" and record["mask"] == mask and _of(record, stage):
            if given_up:  # not before other checks have followed: they are why the stage ended
                kept = [r for r in kept if not given_up[0] < r["images"] <= given_up[1]]
                given_up = None
            kept.append(record)
    last = kept[-1:]
    same = itertools.takewhile(lambda check: _measured(check) == _measured(last[0]), kept[::-1])
    return list(same)[::-1]


def _of(check: dict[str, Any], stage: str | None) -> bool:
    return check.get("stage") == stage and bool(check.get("held_out_images"))


def _measured(check: dict[str, Any]) -> tuple[int, float | None]:
    """How many images at what rate: two checks of the same measure the same."""
    return len(check["held_out_images"]), check.get("rate")


def _difference(before: dict[str, Any], after: dict[str, Any]) -> tuple[float, float]:
    """Mean change of the error image by image, and its standard error."""
    d = np.asarray(after["held_out_images"]) - np.asarray(before["held_out_images"])
    error = float(d.std(ddof=1) / math.sqrt(len(d))) if len(d) > 1 else math.inf
    return float(d.mean()), error


def _worse(one: dict[str, Any], other: dict[str, Any]) -> bool:
    mean, error = _difference(other, one)
    return mean > BELIEVED * error
