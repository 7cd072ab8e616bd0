"""In how much of the compute, and of the time, one recipe of the ladder has the scores of another.

    python -m studies.ladder.verdicts          verdicts.json, from results.json and speed.json

Where both recipes are among the ends, the scores of each seed s of the one are a curve over its
budgets, linear in log score against log FLOPs. It is asked where it reaches the score that the
other has with that seed after B FLOPs (as in underpaint.compare.verdict: shifted by what its
seed's baseline is off the geometric mean of all seeds, and asked for that mean):

    r_s = log(C_s / B)        ratio = exp(mean r), from exp(mean r ± t(0.975, S − 1) sd(r) / √S)

Beyond its budgets a curve goes on with the slope from its first to its last; `below` and `above`
count the seeds of which that is so. A recipe with a `-tenth` and a `-quarter` is such a curve of
one seed. Where ends are missing, and for what has one seed:

    ratio = FLOPs / FLOPs of the other · (error / error of the other)^(1 / slope)

with the slope of the tuned DiT (evidence.slope), which is not known of distances, nor of errors
that are more than FAR times apart: there is no ratio then. In time: the
ratio times seconds a FLOP over those of the other (speed.py), whose error is not in the interval.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from studies.ladder import evidence, speed
from studies.ladder import run as ladder
from studies.lib import units
from underpaint.compare import record
from underpaint.evaluation.intervals import of_mean

ADAMW, BEST, SEEDS = ladder.ADAMW, ladder.BEST, (1, 2, 3)
PUBLISHED = ("ddpm", "maskdm")  # recipes with their published batches and rates
SCORES = {
    "error": "error",
    "frechet": "FD-MobileNetV2",
    "frechet_converged": "FD-MobileNetV2 of a converged sampler",
}

FAR = 2.0  # times the error: beyond it nothing is extrapolated
NEAR = 3.0  # times: how far beyond its budgets a curve's number is still shown

Units = dict[str, dict[str, Any]]
Curve = Sequence[tuple[float, float]]  # FLOPs, score; ascending


def crossing(curve: Curve, score: float) -> tuple[float, int] | None:
    """FLOPs at which `curve` reaches `score`; −1, 1: below its first, above its last budget.

    None where it lies outside a curve that does not fall.
    """
    for (c1, s1), (c2, s2) in itertools.pairwise(curve):
        if s1 >= score >= s2 and s1 > s2:
            return c1 * (c2 / c1) ** (math.log(s1 / score) / math.log(s1 / s2)), 0
    (c1, s1), (c2, s2) = curve[0], curve[-1]
    if s1 <= s2:
        return None
    near, side = ((c1, s1), -1) if score > s1 else ((c2, s2), 1)
    fall = math.log(s1 / s2) / math.log(c2 / c1)
    return near[0] * (near[1] / score) ** (1 / fall), side


def reached(curves: Mapping[int, Curve], base: Mapping[int, tuple[float, float]]) -> dict[str, Any]:
    """Ratio of compute with its interval, over the seeds; nothing where a curve does not fall."""
    found = {seed: crossing(curve, base[seed][1]) for seed, curve in curves.items()}
    met = {seed: one for seed, one in found.items() if one}
    if len(met) < len(found):
        return {}
    logs = [math.log(C / base[seed][0]) for seed, (C, _) in met.items()]
    spread = of_mean(logs)
    shares = [[C / base[seed][0] for C, _ in curve] for seed, curve in curves.items()]
    return {
        "ratio": math.exp(sum(logs) / len(logs)),
        "low": math.exp(spread.low) if spread else None,
        "high": math.exp(spread.high) if spread else None,
        "below": sum(side < 0 for _, side in met.values()),
        "above": sum(side > 0 for _, side in met.values()),
        "first": max(own[0] for own in shares),
        "last": min(own[-1] for own in shares),
    }


def by_slope(one: dict[str, Any], two: dict[str, Any], slope: float) -> float:
    """Ratio of compute at equal error of two runs."""
    return float(one["flops"] / two["flops"] * (one["error"] / two["error"]) ** (1 / slope))


def _curve(arm: str, done: Units) -> list[str]:
    """The units of a recipe of one seed, at budgets that ascend."""
    return [name for name in (f"{arm}-tenth", f"{arm}-quarter", arm) if name in done]


def compared(arm: str, against: str, done: Units, slope: float) -> dict[str, Any]:
    """Ratios by score, what they rest on, and the units that are missing."""
    asked = {
        of: [f"end-{n}" for n, (parent, _) in ladder.ENDS.items() if parent == of]
        for of in (arm, against)
    }
    if not all(asked.values()):
        asked = {}
    ends = [f"{name}-{seed}" for names in asked.values() for name in names for seed in SEEDS]
    told: dict[str, Any] = {"arm": arm, "against": against}
    told["missing"] = [name for name in ends or (arm, against) if name not in done]
    runs = {
        (of, seed): sorted(
            (done[unit] for name in names if (unit := f"{name}-{seed}") in done),
            key=lambda run: float(run["flops"]),
        )
        for of, names in asked.items()
        for seed in SEEDS
    }
    if seeds := [s for s in SEEDS if asked and len(runs[arm, s]) > 1 and runs[against, s]]:
        told |= {"seeds": len(seeds), "budget": runs[against, seeds[0]][-1]["flops"]}
        for score in SCORES:
            curves, bases = (
                {s: [(run["flops"], run[score]) for run in runs[of, s]] for s in seeds}
                for of in (arm, against)
            )
            told[score] = reached(curves, {s: base[-1] for s, base in bases.items()})
    elif against in done and len(shorter := _curve(arm, done)) > 1:
        base = done[against]
        told |= {"seeds": 1, "budget": base["flops"]}
        for score in ("error", "frechet"):
            curve = [(done[name]["flops"], done[name][score]) for name in shorter]
            told[score] = reached({1: curve}, {1: (base["flops"], base[score])})
    elif {arm, against} <= done.keys():
        told |= {"seeds": 0, "budget": done[against]["flops"]}
        errors = [done[unit]["error"] for unit in (arm, against)]
        near = 1 / FAR < errors[0] / errors[1] < FAR
        told["error"] = {"ratio": by_slope(done[arm], done[against], slope)} if near else {}
        told["errors"] = errors
        told["distances"] = [done[unit]["frechet"] for unit in (arm, against)]
    return told


def number(found: dict[str, Any], seeds: int, times: float = 1.0, sure: bool = True) -> str:
    """A ratio, with its interval if `sure`; first the bound, if all seeds are extrapolated."""

    def shown(value: float) -> str:
        return f"{value * times:.{2 if value * times >= 0.1 else 3}f}"

    text, notes = shown(found["ratio"]), []
    if found.get("low") is not None:
        notes.append(f"{shown(found['low'])} to {shown(found['high'])}")
    for side, bound, than in (("below", "first", "less"), ("above", "last", "more")):
        if seeds and found[side] == seeds:
            far = max(found["ratio"] / found[bound], found[bound] / found["ratio"]) > NEAR
            notes = [] if far else [f"extrapolated: {', '.join([text, *notes])}"]
            text = f"{than} than {shown(found[bound])}"
        elif found.get(side):
            notes.append(f"extrapolated with {found[side]} of {seeds} seeds")
    return text + f" ({'; '.join(notes)})" * bool(sure and notes)


def words(told: dict[str, Any]) -> str:
    """A verdict as in README's table; empty where nothing is measured."""
    apart = (
        "{:.3g} and {:.3g} are too far apart".format(*told["errors"]) if "errors" in told else ""
    )
    by = {score: name for score, name in SCORES.items() if score in told}
    ratios = [f"{number(told[s], told['seeds'])} by {name}" for s, name in by.items() if told[s]]
    parts = [f"compute: {', '.join(ratios)}"] if ratios else []
    parts += [
        f"no ratio by {name}: {apart or 'a curve does not fall'}"
        for score, name in by.items()
        if not told[score]
    ]
    if "distances" in told:
        parts.append("FD-MobileNetV2 {:.0f} against {:.0f}".format(*told["distances"]))
    if told["pace"] and told.get("error"):
        text, auto = (number(told["error"], told["seeds"], pace) for pace in told["pace"])
        parts.append(f"time on one core: {text}, {auto} with bf16 where it is faster")
    return "; ".join(parts).replace("less than", "<").replace("more than", ">")


def _steps(unit: str) -> str:
    """How many steps a recipe as published makes in the budget of a rung."""
    run = ladder.recipe(unit, 1.0)
    steps = sum(stage.images // stage.batch for stage in run.stages.values())
    batches = " and ".join(str(stage.batch) for stage in run.stages.values())
    return f"the batch of {batches} that `{unit}` was published with makes {steps} steps here"


def conditions(told: dict[str, Any], cpu: str) -> str:
    """Budget, seeds and what timed them."""
    seeds = f"{told['seeds']} seed{'s' if told['seeds'] > 1 else ''}"
    sure = seeds if told["seeds"] else "one seed" + ", by the slope of a DiT" * bool(told["error"])
    steps = [_steps(unit) for unit in (told["arm"], told["against"]) if unit in PUBLISHED]
    sure += "".join(f"; {said}" for said in dict.fromkeys(steps))
    timed = f", timed on {cpu}" if told["pace"] else ""
    return f"{told['budget']:.2g} training FLOPs, {sure}{timed}"


def plain(done: Units) -> str:
    """The best plain DiT by AdamW: that of the ends, or the rung with the lowest error."""
    for parent, _ in ladder.ENDS.values():
        if parent != BEST and not parent.startswith(("ddpm", "dit")):
            return parent
    rungs = [unit for unit in done if unit.startswith(("dit", "patch-")) and "muon" not in unit]
    return min(rungs, key=lambda unit: float(done[unit]["error"]), default="dit")


def lineage() -> list[tuple[str, str]]:
    """Each recipe from the tuned plain DiT to the best one, and the one before it."""
    found, name = [], BEST
    while parent := ladder.UNITS[name][0]:
        found.append((name, parent))
        name = parent
    return [("dit", "ddpm"), *found[::-1]]


def gain(rows: list[dict[str, Any]], parts: list[dict[str, Any]]) -> str:
    """What a user gains, and which part does it."""
    whole = [
        " and ".join(
            f"{number(row['error'], row['seeds'], times, sure=False)} of the {what}"
            for what, times in (("compute", 1.0), ("time", (row["pace"] or [0.0])[0]))
            if times
        )
        + f" of `{row['against']}`"
        for row in rows
        if row.get("error")
    ]
    each = [f"`{part['arm']}` {part['ratio']:.2f} of `{part['against']}`" for part in parts]
    return (
        f"The best recipe, `{BEST}`, has the error of another recipe after "
        f"{', '.join(whole) or 'a share that is not measured yet'}. Which part does it, in compute "
        "at equal error (one seed, by the slope of a DiT): "
        f"{', '.join(each) or 'not measured yet'}."
    )


def found(results: dict[str, Any], speeds: dict[str, Any]) -> dict[str, Any]:
    """verdicts.json."""
    done: Units = results["units"]
    slope = evidence.slope(record.read(evidence.STUDIES / "acceleration" / "results.json"))
    slope = round(slope, 9)  # beyond that machines differ
    dit, tuned = "the tuned plain DiT", plain(done)
    rows = [
        {"title": title, "wanted": wanted, **compared(arm, against, done, slope)}
        for title, wanted, arm, against in (
            ("the best recipe against the published DDPM recipe", "aim: 0.1", BEST, "ddpm"),
            (
                "the best recipe against the published DDPM recipe, its batch 4",
                "aim: 0.1",
                BEST,
                "ddpm-batch-4",
            ),
            (f"the best recipe against {dit} of `acceleration`", "aim: 0.25", BEST, "dit"),
            (f"the best recipe against the best plain DiT, `{tuned}`", "–", BEST, tuned),
            ("masks in the hourglass, 64×64", "–", f"{ADAMW}-masked", ADAMW),
            ("masks in the hourglass, 128×128", "aim: 0.6", f"128-{ADAMW}-masked", f"128-{ADAMW}"),
            (
                "MaskDM as published against its own baseline",
                "0.25 of the compute",
                "maskdm",
                "ddpm",
            ),
            (
                "MaskDM against its own baseline, their batches 16 and 4",
                "0.25 of the compute",
                "maskdm-batch-4",
                "ddpm-batch-4",
            ),
            (
                f"the best recipe against {dit}, photographs",
                "–",
                f"photographs-{BEST}",
                "photographs-dit",
            ),
            (
                f"the best recipe against {dit}, Fashion-MNIST",
                "–",
                f"fashion-{BEST}",
                "fashion-dit",
            ),
        )
    ]
    for row in rows:
        paces = [speed.by_flops(speeds, row["arm"], row["against"], p) for p in ("fp32", "bf16")]
        row["pace"] = paces if all(paces) else None
        row["told"] = words(row)
        row["conditions"] = conditions(row, speeds.get("cpu", "")) if row["told"] else ""
    parts = [
        {"arm": arm, "against": of, "ratio": by_slope(done[arm], done[of], slope)}
        for arm, of in lineage()
        if {arm, of} <= done.keys() and done[of]["error"] < FAR * done[arm]["error"]
    ]
    told = {"slope": slope, "verdicts": rows, "parts": parts, "gain": gain(rows[:4], parts)}
    # nine digits: the last of a float differ from processor to processor
    return json.loads(json.dumps(told), parse_float=lambda digits: float(f"{float(digits):.9g}"))


def main() -> None:
    """Write them."""
    results, speeds = (record.read(ladder.HERE / f"{name}.json") for name in ("results", "speed"))
    units.write_json(ladder.HERE / "verdicts.json", found(results, speeds))


if __name__ == "__main__":
    main()
