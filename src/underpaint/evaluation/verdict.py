"""A run in three sentences: how its samples look, how good it is, and would more time help?"""

from collections.abc import Sequence
from typing import Any

from underpaint.evaluation import wiener
from underpaint.evaluation.early_stopping import judge

NOISE = "samples are still noise"  # where training longer is no advice
GOOD = "samples are as sharp as real images, without noise or copies; judge their shapes by eye"
LONGER = {
    "improving": "more training would probably help: the held-out error was still falling",
    "waiting": "more training may still help: the held-out error has only just stopped falling",
    "stop": "more training with these settings would not help: the held-out error no longer falls",
    "copying": "more training would make it worse: it is memorizing its training images",
}


def verdict(records: Sequence[dict[str, Any]]) -> list[str]:
    """The sentences about the lines of a `metrics.jsonl`; none where nothing was measured."""
    answer, found = judge(records).answer, []
    health = [r["health"] for r in records if r["kind"] == "sample" and r.get("health")]
    looks = health[-1]["verdict"] if health else None
    if looks:
        found.append(health[-1]["sentence"] or GOOD)
    if looks == "noise" and answer in ("stop", "copying"):
        found = [NOISE]
    checks = [r for r in records if r["kind"] == "check"]
    checks = [r for r in checks if r["mask"] == "whole"] or checks  # of sealed data none is
    if checks and (scale := wiener.below(checks[-1])):
        text = f"the held-out error is {scale}, the best linear denoiser"
        found.append("; ".join(filter(None, [text, wiener.worse(checks[-1])])))
    if answer in LONGER and (looks != "copies" or answer == "copying"):
        found.append(LONGER[answer])
    return [f"{sentence[0].upper()}{sentence[1:]}." for sentence in found]
