"""What the pages of studies that `underpaint compare` ran have in common."""

from __future__ import annotations

from typing import Any

from studies.lib.page import Table

__all__ = ["apart", "beside", "cost", "in_words", "slower"]

Results = dict[str, Any]  # results.json, see underpaint.compare.record


def _scores(results: Results, point: float) -> dict[str, dict[int, float]]:
    """Scores of every arm at a point, by seed."""
    scores: dict[str, dict[int, float]] = {}
    for run in results["runs"]:
        if run["point"] == point:
            scores.setdefault(run["arm"], {})[run["seed"]] = run["score"]
    return scores


def apart(results: Results, arm: str, point: float) -> dict[str, Any]:
    """What every other arm has more error than `arm` at a point, paired by seed."""
    from underpaint.evaluation.intervals import of_mean

    others = _scores(results, point)
    own = others.pop(arm)
    return {
        other: of_mean([scores[seed] - own[seed] for seed in sorted(scores.keys() & own)])
        for other, scores in others.items()
    }


def beside(results: Results, arm: str, point: float) -> Table:
    """Errors of every arm at a point, and what it has more than `arm`."""
    more = apart(results, arm, point)
    rows = []
    for other, own in _scores(results, point).items():
        told = in_words(more[other]) if more.get(other) else "–"
        rows.append([other, f"{sum(own.values()) / len(own):.4f}", told, str(len(own))])
    return Table(["arm", "mean error", f"more than {arm} (95 %)", "seeds"], rows)


def in_words(found: Any) -> str:
    """A difference of errors with its interval."""
    return f"{found.value:+.4f} ({found.low:+.4f} to {found.high:+.4f})"


def slower(results: Results, arm: str, whole: str) -> str:
    """By how much less an image of the arm's masked stage costs, in FLOPs and in seconds.

    `whole`: an arm that has the same network, and whole images alone.
    """
    of = {run["arm"]: run for run in results["runs"]}  # an image costs the same in all of an arm
    speeds = results["seconds_an_image"]
    one = of[whole]["flops"] / of[whole]["images"]
    share = results["study"]["arms"][arm]["shares"]["masked"]
    images = of[arm]["images"] - (1 - share) * of[arm]["flops"] / one
    flops = one * images / (share * of[arm]["flops"])
    seconds = speeds[whole]["whole"] / speeds[arm]["masked"]
    return (
        f"A masked image costs {flops:.1f} times fewer FLOPs than a whole one, but only "
        f"{seconds:.1f} times less time: a step of few patches does not fill a core. The error "
        "of these speeds is not in the interval."
    )


def cost(results: Results) -> str:
    """What the runs and the trials took, those of earlier grids among them."""
    trials = [
        run["seconds"]
        for run in (*results["trials"], *results["earlier"])
        if run["run"].startswith("tuning/")
    ]
    runs = [run["seconds"] for run in results["runs"]]
    return (
        f"The training of {len(runs)} runs took {sum(runs) / 60:,.0f} core-minutes and that of "
        f"{len(trials)} trials {sum(trials) / 60:,.0f}, one thread each, as they ran."
    )
