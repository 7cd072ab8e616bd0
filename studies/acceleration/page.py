"""What the acceleration study found, and a test of why.

    python -m studies.acceleration.page

Reads the results.json that `underpaint compare studies/acceleration/study.yaml` wrote. Of its
earlier trials those in `before` had the batch of the whole images in the masked stage.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

from studies.lib import compared
from studies.lib.page import Figure, Page, Section, Table
from underpaint.compare import record

HERE = Path(__file__).parent
CLAIM = 0.25  # of the compute
HALF = 0.5  # the point at which all arms ran


class Pair(NamedTuple):
    """Errors of both arms with one learning rate and batch, at one compute."""

    rate: float
    batch: int
    unmasked: float
    masked: float


def _trials(results: dict[str, Any], start: str) -> dict[tuple[float, int, int], float]:
    """Score of every trial whose name has this start, by learning rate, batch and patch."""
    found = {}
    for name, run in record.runs_of(results).items():
        if name.startswith(start):
            whole, patch = run["settings"]["stages"]["whole"], run["settings"]["space"]["patch"]
            found[float(whole["learning_rate"]), whole["batch"], patch] = float(run["score"])
    return found


def pairs(results: dict[str, Any]) -> list[Pair]:
    """Trials of both arms with the same settings, largest batch and lowest rate first."""
    one, two = _trials(results, "tuning/unmasked/"), _trials(results, "before/masked/")
    shared = [key for key in one if key in two and key[2] == 4]
    return [
        Pair(rate, batch, one[rate, batch, patch], two[rate, batch, patch])
        for rate, batch, patch in sorted(shared, key=lambda key: (-key[1], key[0]))
    ]


def answer(results: dict[str, Any]) -> list[str]:
    """The figure first, then what the controls say, then the reason."""
    told = results["verdicts"]["masked"]
    reached = told["ratio"] is not None and told["relation"] != ">" and told["ratio"] <= CLAIM
    lines = [
        f"The claim of {CLAIM:g} of the compute is {'' if reached else 'not '}reached: "
        f"{told['sentence']}."
    ]
    lines += [controls(results)]
    lines += [
        f"In time on one core: {results['by_seconds']['masked']['sentence']}. "
        + compared.slower(results, "masked", "unmasked")
    ]
    return [*lines, reason(pairs(results))]


def controls(results: dict[str, Any]) -> str:
    """Whether masks do more than other first steps as cheap as theirs."""
    apart = compared.apart(results, "masked", HALF)
    apart.pop(results["baseline"])
    told = "; ".join(f"{arm} {compared.in_words(found)}" for arm, found in apart.items())
    if all(found.low > 0 for found in apart.values()):
        answer = "the masks do more than make the first steps cheap"
    else:
        answer = "it is not shown that the masks do more than make the first steps cheap"
    return (
        f"At half the compute, error of other cheap first steps minus that of masked: {told}. "
        f"So {answer}."
    )


def reason(found: list[Pair]) -> str:
    """By how much the masked arm is ahead: at most, and where the unmasked one is at its best."""
    most = max(found, key=lambda pair: 1 - pair.masked / pair.unmasked)
    best = min(found, key=lambda pair: pair.unmasked)

    def gain(pair: Pair) -> str:
        value = 1 - pair.masked / pair.unmasked
        return f"{100 * abs(value):.1f} % {'less' if value >= 0 else 'more'} error"

    return (
        f"Why not four times: with one batch for both arms, masked training has {gain(most)} in "
        f"batches of {most.batch} at a learning rate of {most.rate:g}, and {gain(best)} in "
        f"batches of {best.batch} at {best.rate:g}, where the unmasked arm is at its best. "
        "Masked steps are cheap, so that there are more of them; small batches give the unmasked "
        "arm as many, and a baseline whose batch and learning rate were not tuned makes masks look "
        "better than they are."
    )


def plot(found: list[Pair], path: Path) -> None:
    """Error of both arms by batch, each at its best of the learning rates that both tried."""
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import NullLocator

    canvas = Canvas(figsize=(5.6, 3.6), layout="constrained")
    axes = canvas.subplots()
    batches = sorted({pair.batch for pair in found})
    for colour, arm in (("C0", "unmasked"), ("C1", "masked")):
        best = [min(getattr(p, arm) for p in found if p.batch == batch) for batch in batches]
        axes.plot(batches, best, "o-", color=colour, lw=1.6, ms=5, label=arm)
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel="images a step, both arms", ylabel="error of x0, half A")
    axes.legend(frameon=False, fontsize=9)
    canvas.savefig(path, dpi=120)


QUESTION = [
    "Are they the masks, or is it enough that the first steps are cheap? `small batches` begins "
    "with whole images in batches of two, `half resolution` with images of half the size; both "
    "spend as many FLOPs on it as `masked` does on its masked stage."
]


def page(results: dict[str, Any]) -> Page:
    """All that was found."""
    found = pairs(results)
    rows = [
        [
            f"{p.rate:g}, {p.batch}",
            f"{p.unmasked:.4f}",
            f"{p.masked:.4f}",
            f"{100 * (p.masked / p.unmasked - 1):+.1f} %",
        ]
        for p in found
    ]
    table = Table(["learning rate, batch", "unmasked", "masked", "difference"], rows)
    alt = "Error against images a step: both arms fall with smaller batches, unmasked more"
    caption = (
        "At 1.8e13 training FLOPs, seed 0, each arm at its best of the learning rates that both "
        "tried with that batch."
    )
    tested = [
        "Trials with the same settings for both arms and stages, before the masked stage had a "
        "batch of its own. The masked arm of the study takes 16 images a step in its masked stage, "
        "where a step still costs less than one of 4 whole images, and so gets back some of its "
        "lead.",
    ]
    done = [
        "Settings: `studies/acceleration/study.yaml`. Every trial and every run: `results.json`, "
        "and `comparison.html`, which `make pages` writes. The masked first stage is the best of "
        "ten (`studies/masks`). Drawn heads of 64×64, one network, one score, the error of x0: "
        "what holds here need not hold for larger networks, longer training or pictures.",
        "To repeat: `python -m studies.lib.draw`, then `underpaint compare "
        "studies/acceleration/study.yaml --out FOLDER`.",
        compared.cost(results),
    ]
    figure = Figure(functools.partial(plot, found), alt, caption)
    return Page(
        "Does training on parts reach the same error sooner?",
        answer(results),
        [
            Section("At half the compute", QUESTION, [compared.beside(results, "masked", HALF)]),
            Section("Why not four times?", tested, [table], figure),
            Section("What was done", done),
        ],
    )


def main() -> int:
    """The page."""
    print(page(record.read(HERE / "results.json")).write(HERE / "results.html"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
