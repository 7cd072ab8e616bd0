"""What the study of MaskDiT found, and whether it is the masks: `python -m studies.maskdit.page`.

Reads the results.json that `underpaint compare studies/maskdit/study.yaml` wrote.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from studies.lib import compared
from studies.lib.page import Page, Section
from underpaint.compare import record

HERE = Path(__file__).parent
CLAIM = 0.31  # of the time
HALF = 0.5  # the point at which all arms ran
WITH, WITHOUT = "with the loss on hidden patches", "without the loss on hidden patches"
WHOLE = "encoder-decoder, whole images"


def answer(results: dict[str, Any]) -> list[str]:
    """The claim first, then the compute, then what the other arms say of the reason."""
    told = results["by_seconds"][WITH]
    reached = told["ratio"] is not None and told["relation"] != ">" and told["ratio"] <= CLAIM
    return [
        f"The claim of {CLAIM:g} of the time is {'' if reached else 'not '}reached. In time on one "
        f"core: {told['sentence']}.",
        f"In compute: {results['verdicts'][WITH]['sentence']}. "
        + compared.slower(results, WITH, WHOLE),
        parts(results),
    ]


def parts(results: dict[str, Any]) -> str:
    """What hiding does to the same network, and what the loss on hidden patches does."""
    more = compared.apart(results, WITHOUT, HALF)
    whole, aux = more[WHOLE], more[WITH]
    if whole.low > 0:
        masks = "the masks lower the error of this network"
    elif whole.high < 0:
        masks = "the masks raise the error of this network"
    else:
        masks = "it is not shown that the masks lower the error of this network"
    if aux.low <= 0 <= aux.high:
        loss = "no effect of the loss on hidden patches is shown"
    else:
        loss = f"the loss on hidden patches {'raises' if aux.low > 0 else 'lowers'} it"
    return (
        "At half the compute, error minus that of half hidden without the loss on hidden patches: "
        f"the same encoder and decoder on whole images {compared.in_words(whole)}, with that loss "
        f"{compared.in_words(aux)}. So {masks}, and {loss}."
    )


def page(results: dict[str, Any]) -> Page:
    """All that was found."""
    study = results["study"]
    tables = [compared.beside(results, WITHOUT, point) for point in study["points"]]
    done = [
        "Settings: `studies/maskdit/study.yaml`. Every trial and every run: `results.json`, and "
        "with score against compute `comparison.html`, which `make pages` writes. Drawn heads of "
        "64×64 in pixels, one small network, "
        f"{study['budget']:g} training FLOPs, and the error of x0 for a score: the published "
        "figure is of latents of ImageNet, a network hundreds of times as large, and FID. What "
        "holds here need not hold there.",
        " ".join(f"{note[0].upper()}{note[1:]}." for note in results["notes"]),
        "To repeat: `python -m studies.lib.draw`, then `underpaint compare "
        "studies/maskdit/study.yaml --out FOLDER`.",
        compared.cost(results),
    ]
    return Page(
        "Does an encoder of visible patches reach the error of DiT sooner?",
        answer(results),
        [
            *(
                Section(f"At {point:g} of the compute", tables=[table])
                for point, table in zip(study["points"], tables, strict=True)
            ),
            Section("What was done", done),
        ],
    )


if __name__ == "__main__":
    print(page(record.read(HERE / "results.json")).write(HERE / "results.html"))
