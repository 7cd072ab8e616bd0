"""What a run's records answer: is it good, would more time help, does it copy?"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from underpaint.evaluation import wiener
from underpaint.evaluation.early_stopping import judge

Records = Sequence[dict[str, Any]]

# where training longer is no advice
STILL = {
    "noise": "samples are still noise",
    "blurred": "samples are still blurred: they lack the fine detail of real images",
}
GOOD = "samples are as sharp as real images, without noise or copies; judge their shapes by eye"
# images: of 32×32 pixels, heads were heads after 8,000 and sharp blobs after 2,000; photographs
# were textures after 5,200
FEW = 8000
SOON = "samples are sharp and without noise, but {:,} images seen are few for shapes: train longer"
YOUNG = "samples cannot be good yet: the network removes noise worse than a linear filter does"
LONGER = {
    "improving": "more training would probably help: the held-out error was still falling",
    "waiting": "more training may still help: the held-out error has only just stopped falling",
    "stop": "more training with these settings would not help: the held-out error no longer falls",
    "copying": "more training would make it worse: it is memorizing its training images",
}
EARLY = "not known: that takes two checks on held-out images, and short runs have none or one"
BLIND = "not known: no images were held out, which would show it"
MEMORIZING = "it is memorizing: held-out images get worse while training images get better"
UNKNOWN = "not measured so far"


class Answers(NamedTuple):
    """A sentence, or a few, for each question; where nothing was measured they say so."""

    good: str
    longer: str
    copies: str


def verdict(records: Records) -> list[str]:
    """The sentences about the lines of a `metrics.jsonl`; none where nothing was measured."""
    answer, health = judge(records).answer, _health(records)
    found = [_looks(records), _scale(records)]
    if answer in LONGER and (not health or health["verdict"] != "copies" or answer == "copying"):
        found.append(LONGER[answer])
    return [_sentence(text) for text in found if text]


def answers(records: Records) -> Answers:
    """The three answers of a page, from the lines of a `metrics.jsonl`."""
    answer = judge(records).answer
    good = [text for text in (_looks(records), _scale(records)) if text]
    copies = [_copied(records), MEMORIZING if answer == "copying" else None]
    return Answers(
        " ".join(map(_sentence, good or [UNKNOWN])),
        _sentence(LONGER.get(answer, BLIND if _is_blind(records) else EARLY)),
        " ".join(_sentence(text) for text in copies if text) or _sentence(UNKNOWN),
    )


def _copied(records: Records) -> str | None:
    """How many samples of the last grid are near copies."""
    share = (_health(records) or {}).get("copied")
    if share is None:
        return None
    if not share:
        return "no sample of the last grid is a near copy of a training image"
    return f"{share:.0%} of the samples of the last grid are near copies of training images"


def _looks(records: Records) -> str | None:
    """How the last grid looks, in a sentence."""
    if not (health := _health(records)):
        return None
    looks, check = health["verdict"], _checked(records)
    if looks in STILL and judge(records).answer in ("stop", "copying"):
        return STILL[looks]
    below = (check or {}).get("below_wiener")
    if looks == "good" and below is not None and below < 0:
        return YOUNG  # flat samples of flat images are as sharp as these from the start
    if looks == "good" and check is None and 0 < (seen := _seen(records)) < FEW:
        return SOON.format(seen)
    return str(health["sentence"] or GOOD)


def _scale(records: Records) -> str | None:
    """How far the last check's error is below that of a Wiener filter."""
    check = _checked(records)
    if check is None or not (scale := wiener.below(check)):
        return None
    text = f"the held-out error is {scale}, the best linear denoiser"
    return "; ".join(filter(None, [text, wiener.worse(check)]))


def _checked(records: Records) -> dict[str, Any] | None:
    """The last check, of whole images where there are any."""
    checks = [r for r in records if r["kind"] == "check"]
    checks = [r for r in checks if r["mask"] == "whole"] or checks  # of sealed data none is
    return checks[-1] if checks else None


def _is_blind(records: Records) -> bool:
    """Whether the checks had no held-out images."""
    check = _checked(records)
    return check is not None and check["held_out_mean"] is None


def _seen(records: Records) -> int:
    """Images that a run has seen that began from nothing; 0 for others."""
    grids = [r["images"] for r in records if r["kind"] == "sample" and "images" in r]
    return grids[-1] if grids and grids[0] > 0 else 0


def _health(records: Records) -> dict[str, Any] | None:
    """What was measured of the last sample grid."""
    found = [r["health"] for r in records if r["kind"] == "sample" and r.get("health")]
    return found[-1] if found else None


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
