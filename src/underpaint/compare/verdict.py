"""Does an arm reach the baseline's final score in less compute, and how sure is that?

A curve is the score (lower is better) of finished runs of one arm and seed at several computes C.
With b_s the baseline's score at its largest compute C_b, seed s of S:

    target       T = mean of b_s
    pairing      seed s's curve is shifted by T − b_s before it is asked for T
    crossing     C_s, where the shifted curve first reaches T, linear in log C between its points
    log ratio    r_s = log(C_s / C_b)
    interval     mean(r) ± t(0.975, S − 1) · sd(r) / √S

The shift is the pairing by seed: what a seed does to both arms cancels, and the baseline's own
noise is in the spread of r. Asked for one T without it, all seeds would share the error of T, and
no spread would show it: the interval would be too short.

A curve that lies below the target from its first point on, or never reaches it, is censored: its
ratio is ≤ its first or > its last. Then there is no interval of the ratio; the scores at the
baseline's compute, paired by seed in the same way, decide the direction.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

from underpaint.errors import UserError
from underpaint.evaluation import intervals
from underpaint.evaluation.intervals import Interval

LEVEL = 0.95
MARGIN = 0.95  # a ratio above this is no gain worth a second stage
MOST_SEEDS = 100  # beyond this many a difference is too small to matter

Relation = Literal["=", "≤", ">"]
Answer = Literal["pays", "does not pay", "undecided"]


class Point(NamedTuple):
    """A finished run: its compute (FLOPs or seconds) and its score, lower is better."""

    compute: float
    score: float


Curve = Sequence[Point]


class Crossing(NamedTuple):
    """The compute at which a curve reaches a score; `≤` and `>`: it lies outside the curve."""

    compute: float
    relation: Relation


@dataclass(frozen=True)
class Verdict:
    """What is known of an arm against the baseline."""

    answer: Answer
    sentence: str
    target: float
    seeds: tuple[int, ...]
    ratios: tuple[tuple[Relation, float], ...]  # of compute, by seed
    ratio: float | None  # geometric mean; None where seeds are censored on both sides
    relation: Relation
    low: float | None  # of the 95 % interval; None where seeds are censored, or there is one
    high: float | None
    freedom: int
    difference: Interval | None  # of the scores at the baseline's compute, arm − baseline
    more_seeds: int | None  # that would decide it; None: decided, or none would


def verdict(
    arm: str,
    curves: Mapping[int, Curve],
    baseline: Mapping[int, Curve],
    *,
    score: str = "score",
    against: str = "the baseline",
    cost: str = "compute",
) -> Verdict:
    """Compare `curves` of `arm` with those of the baseline, by seed; seeds of both are used.

    `score`: the score's name, `against`: the baseline's, `cost`: what is spent, for the sentence.
    Raises UserError if no seed is common, a curve is empty or the baseline's computes differ.
    """
    seeds = tuple(sorted(set(curves) & set(baseline)))
    if not seeds:
        raise UserError(f"{arm} and {against} have no seed in common; run both with the same seeds")
    chosen = {seed: _ordered(curves[seed], arm) for seed in seeds}
    ends = {seed: _ordered(baseline[seed], against)[-1] for seed in seeds}
    budget = ends[seeds[0]].compute
    for seed, end in ends.items():
        if abs(end.compute / budget - 1) > 0.01:
            raise UserError(
                f"{against} spent {end.compute:.4g} with seed {seed} and {budget:.4g} with seed "
                f"{seeds[0]}; compare runs of one budget"
            )
    T = target([end.score for end in ends.values()])
    met = [
        crossing([Point(p.compute, p.score + (T - ends[s].score)) for p in chosen[s]], T)
        for s in seeds
    ]
    ratios = tuple((c.relation, c.compute / budget) for c in met)
    outside = {relation for relation, _ in ratios} - {"="}
    relation: Relation = "=" if not outside else "≤" if "≤" in outside else ">"
    logs = [math.log(ratio) for _, ratio in ratios]
    differences = [_at(chosen[s], budget) - ends[s].score for s in seeds]
    known = not any(map(math.isnan, differences))
    difference = intervals.of_mean(differences, LEVEL) if known else None
    found = intervals.of_mean(logs, LEVEL) if relation == "=" else None
    answer = _by_ratio(found) if relation == "=" else _by_difference(difference, ratios)
    needed = None
    if answer == "undecided":
        needed = more_seeds(logs if relation == "=" else differences, ratio=relation == "=")
    result = Verdict(
        answer=answer,
        sentence="",
        target=T,
        seeds=seeds,
        ratios=ratios,
        ratio=None if len(outside) == 2 else math.exp(float(np.mean(logs))),
        relation=relation,
        low=math.exp(found.low) if found else None,
        high=math.exp(found.high) if found else None,
        freedom=len(seeds) - 1,
        difference=difference,
        more_seeds=needed,
    )
    return replace(result, sentence=_sentence(result, arm, score, against, cost))


def target(ends: Sequence[float]) -> float:
    """The score to reach: the mean of the baseline's end scores."""
    return float(np.mean(ends))


def crossing(curve: Curve, score: float) -> Crossing:
    """Where `curve`, ascending in compute, first reaches `score`."""
    first, last = curve[0], curve[-1]
    if first.score <= score:
        return Crossing(first.compute, "≤")
    for a, b in itertools.pairwise(curve):
        if a.score > score >= b.score:
            share = (a.score - score) / (a.score - b.score)
            return Crossing(a.compute * (b.compute / a.compute) ** share, "=")
    return Crossing(last.compute, ">")


def more_seeds(values: Sequence[float], *, ratio: bool = True) -> int | None:
    """Further seeds after which values with this mean and spread would decide.

    `ratio`: the values are log ratios, for which a mean above log MARGIN decides, too.
    None where not even MOST_SEEDS would, or a value is not known.
    """
    n = len(values)
    if n < 2:
        return 3 - n  # a spread needs two seeds, and two tell little of it
    mean, spread = float(np.mean(values)), float(np.std(values, ddof=1))
    if math.isnan(mean):
        return None
    for count in range(n + 1, MOST_SEEDS + 1):
        half = float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) * spread / math.sqrt(count)
        if abs(mean) > half or (ratio and mean - half > math.log(MARGIN)):
            return count - n
    return None


# --- the answer --------------------------------------------------------------------------------


def _by_ratio(found: Interval | None) -> Answer:
    if found is None:
        return "undecided"
    if found.high < 0:
        return "pays"
    return "does not pay" if found.low > math.log(MARGIN) else "undecided"


def _by_difference(difference: Interval | None, ratios: Sequence[tuple[Relation, float]]) -> Answer:
    """The direction, from scores at equal compute; for seeds outside the ladder."""
    if difference is None:
        return "undecided"
    if difference.high < 0 and all(rel != ">" and ratio < 1 for rel, ratio in ratios):
        return "pays"
    return "does not pay" if difference.low > 0 else "undecided"


def _ordered(curve: Curve, name: str) -> list[Point]:
    if not curve:
        raise UserError(f"{name}: has no finished run to compare; let it run first")
    if not all(p.compute > 0 and math.isfinite(p.score) for p in curve):
        raise UserError(f"{name}: has a score that is not a number; look at its runs")
    return sorted(curve)


def _at(curve: Curve, compute: float) -> float:
    """The score at `compute`, linear in log compute; nan outside the curve."""
    x = np.log([p.compute for p in curve])
    at = math.log(compute)
    if not x[0] - 0.01 <= at <= x[-1] + 0.01:  # budgets are met to a batch
        return math.nan
    return float(np.interp(at, x, [p.score for p in curve]))


def _sentence(v: Verdict, arm: str, score: str, against: str, cost: str) -> str:
    many = f"{len(v.seeds)} seed{'s' if len(v.seeds) > 1 else ''}"
    owner = f"{against}'" if against.endswith("s") else f"{against}'s"
    reaches = f"{arm} reaches {owner} final {score}"
    freedom = f"{v.freedom} degree{'s' if v.freedom != 1 else ''} of freedom"
    if v.ratio is None:
        text = f"{reaches} sooner than measured with some of {many} and not at all with others"
    elif v.relation == ">":
        never = [ratio for relation, ratio in v.ratios if relation == ">"]
        text = (
            f"{arm} does not reach {owner} final {score} within {min(never):.3g}× its {cost} "
            f"with {len(never)} of {many}"
        )
    elif v.relation == "≤":
        text = f"{reaches} in at most {v.ratio:.2f} of its {cost} ({many})"
    else:
        interval = f"95 %: {v.low:.2f}–{v.high:.2f}, {many}, {freedom}" if v.low is not None else ""
        text = f"{reaches} in {v.ratio:.2f} of its {cost} ({interval or f'{many}, no interval'})"
    if v.relation != "=" and v.difference is not None:
        d = v.difference
        text += (
            f", and at equal {cost} scores {d.value:+.4g} (95 %: {d.low:+.4g} to {d.high:+.4g}, "
            f"{freedom})"
        )
    if v.answer != "undecided":
        return f"{text}: it {v.answer}"
    if v.more_seeds:
        advice = f"run {v.more_seeds} more seed{'s' if v.more_seeds != 1 else ''}"
    elif v.relation == "=":
        advice = f"not even {MOST_SEEDS} seeds would show a difference this small"
    else:
        advice = "add ladder points beyond those there are"
    return f"undecided: {text}; {advice}"
