"""What keeps training whole at 90 % masks, at learning rates that are too high.

    python -m studies.stability.run [--images 64000] [--only UNIT …] [--work runs/stability]

Each unit trains the quick start's network on embedded avatars with nine patches of ten hidden, at
one learning rate, with one option against divergence (`OPTIONS`) or none, and is a run of its own
below --work: a study that was stopped goes on where it was. A unit is meant to take at most five
CPU-minutes (`seconds` of training on one thread). After each unit --out is written anew as JSON,
with a plot beside it: the losses, and for each unit

- worst: the highest loss after the first tenth over the lowest before it (smoothed; 1: never rose),
- last: the mean loss of the last tenth,
- spikes: lines of metrics whose loss is above twice the median of the twenty before,
- skipped, returns: steps without a finite gradient, returns to a checkpoint,
- held_out: mean squared error of x0 on whole held-out images, at the end,
- outcome: failed (the run gave up), diverged (worst or last over lowest above 1.5), stuck (the last
  tenth is not below 0.7 of the first losses: it never learned), else learned.

One seed a unit: a difference between two units is a hint, more `--seeds` make it a measurement.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
from pathlib import Path
from typing import Any

from studies.lib.units import INDEPENDENT, base, write_json

HERE = Path(__file__).parent
RATES = (3e-3, 1e-2)  # the recipe's own is 1e-3
DIVERGED = 1.5
STUCK = 0.7
STAGE = {"mask": "patch", "rate": 0.9, "batch": 32, "clip": 0.0, "warmup": 0}

OPTIONS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "warm-up": {"stage": {"warmup": 6400}},
    "clip at 1": {"stage": {"clip": 1.0}},
    "percentile clip": {"stage": {"clip_percentile": 50.0}},
    "qk-norm": {"network": {"qk_norm": True}},
    "learned weights": {"noise": {"learned_weights": True}},
    "all": {
        "stage": {"warmup": 6400, "clip": 1.0, "clip_percentile": 50.0},
        "network": {"qk_norm": True},
        "noise": {"learned_weights": True},
    },
}


def cases(seeds: int) -> dict[str, tuple[str, float, int]]:
    """Option, learning rate and seed of each unit, by its name."""
    return {
        f"{option.replace(' ', '-')}_{rate:g}_{seed}": (option, rate, seed)
        for seed in range(seeds)
        for rate in RATES
        for option in OPTIONS
    }


def recipe(option: str, rate: float, seed: int, images: int, limit: int) -> Any:
    """The run of one unit."""
    from underpaint import config

    changes = OPTIONS[option]
    stage = STAGE | {"images": images, "learning_rate": rate} | changes.get("stage", {})
    stage["warmup"] = min(stage["warmup"], images // 5)
    return config.from_dict(
        config.Run,
        {
            "data": {"limit": limit},
            "network": {"kind": "uvit"} | changes.get("network", {}),
            "noise": INDEPENDENT | changes.get("noise", {}),
            "stages": {"masked": stage, "whole": None},
            "train": {
                "seed": seed,
                "threads": 1,
                "precision": "fp32",
                "sample_every": -1,
                "check_every": images // 2,
                "log_every": images // 200,
            },
        },
        "stability: ",
        base("quickstart"),
    )


def train(folder: Path, run: Any) -> dict[str, Any]:
    """One unit, begun or gone on with; its result."""
    from underpaint import api
    from underpaint.errors import RunFailed

    failed = None
    try:
        resume = (folder / "checkpoints" / "LATEST").is_file()
        if resume:
            api.resume(folder, quiet=True, write_report=False)
        else:
            api.train(run, folder, overwrite=True, quiet=True, write_report=False)
    except RunFailed as error:
        failed = str(error)
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return judged([json.loads(line) for line in lines], failed)


def judged(metrics: list[dict[str, Any]], failed: str | None) -> dict[str, Any]:
    """What became of a run, from its metrics."""
    steps = [m for m in metrics if m["kind"] == "step"]
    losses = [m["loss"] for m in steps]
    factors = [m["learning_rate_factor"] for m in metrics if m["kind"] == "rollback"]
    checks = [m for m in metrics if m["kind"] == "check" and m["mask"] == "whole"]
    smooth = [statistics.fmean(losses[max(0, i - 4) : i + 1]) for i in range(len(losses))]
    tenth = max(1, len(losses) // 10)
    worst = last = spikes = None
    if len(losses) > tenth:
        lowest = [min(smooth[:i]) for i in range(tenth, len(smooth))]
        worst = max(now / low for now, low in zip(smooth[tenth:], lowest, strict=True))
        last = statistics.fmean(losses[-tenth:])
        spikes = sum(
            loss > 2 * statistics.median(losses[max(0, i - 20) : i])
            for i, loss in enumerate(losses)
            if i >= 5
        )
    return {
        "outcome": outcome(losses, worst, last, failed),
        "reason": failed,
        "worst": worst,
        "last": last,
        "spikes": spikes,
        "skipped": steps[-1]["skipped"] if steps else None,
        # each halves the rate; a return cuts the lines of those since its checkpoint
        "returns": round(-math.log2(min([1.0, *factors]))),
        "held_out": checks[-1].get("held_out_mean") if checks else None,
        "seconds": round(steps[-1]["seconds"], 1) if steps else None,
        "images": [m["images"] for m in steps],
        "loss": losses,
        "grad_norm": [m["grad_norm"] for m in steps],
    }


def outcome(
    losses: list[float], worst: float | None, last: float | None, failed: str | None
) -> str:
    """What became of a run, in a word."""
    if failed or worst is None or last is None:
        return "failed"
    if max(worst, last / min(losses)) > DIVERGED:
        return "diverged"
    return "stuck" if last > STUCK * statistics.fmean(losses[:5]) else "learned"


def plot(results: dict[str, Any], path: Path) -> None:
    """Losses over images, one panel a learning rate, one line a unit; dashed: it did not learn."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(RATES), 3.8), layout="constrained")
    for i, (axes, rate) in enumerate(
        zip(figure.subplots(1, len(RATES), sharey=True, squeeze=False)[0], RATES, strict=True)
    ):
        for number, option in enumerate(OPTIONS):
            for unit in results.values():
                if unit["option"] == option and unit["learning_rate"] == rate:
                    style = "-" if unit["outcome"] == "learned" else "--"
                    name = option if unit["seed"] == 0 else None
                    axes.plot(
                        unit["images"], unit["loss"], style, color=f"C{number}", label=name, lw=1.2
                    )
        axes.set(title=f"learning rate {rate:g}", xlabel="images", yscale="log")
        if i == 0:
            axes.set_ylabel("loss at 90 % masks")
        if axes.lines:
            axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def write(study: dict[str, Any], results: dict[str, Any], out: Path) -> None:
    """The JSON and the plot."""
    import torch

    from underpaint import __version__

    made = {"underpaint": __version__, "torch": torch.__version__, "cpu": platform.machine()}
    write_json(out, {**study, **made, "units": results})
    plot(results, out.with_suffix(".png"))


def main() -> int:
    """All units that are asked for and not done yet; the JSON and the plot after each."""
    from underpaint.errors import Interrupted

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=64_000, help="length of a unit")
    parser.add_argument("--limit", type=int, default=0, help="use this many avatars; 0: all")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each option and rate")
    parser.add_argument("--only", nargs="+", default=[], help="these units alone")
    parser.add_argument("--work", type=Path, default=Path("runs/stability"), help="runs")
    parser.add_argument("--out", type=Path, default=HERE / "results.json", help="results")
    given = parser.parse_args()
    known = cases(given.seeds)
    unknown = set(given.only) - set(known)
    if unknown:
        parser.error(f"no unit {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    study = {"images": given.images, "limit": given.limit}
    results: dict[str, Any] = {}
    if given.out.is_file():
        stored = json.loads(given.out.read_text(encoding="utf-8"))
        if {key: stored[key] for key in study} != study:
            parser.error(f"{given.out} is of other lengths; give another --out and --work")
        results = stored["units"]
        for unit in results.values():
            unit["outcome"] = outcome(unit["loss"], unit["worst"], unit["last"], unit["reason"])
    for name, (option, rate, seed) in known.items():
        if name in results or (given.only and name not in given.only):
            continue
        run = recipe(option, rate, seed, given.images, given.limit)
        try:
            result = train(given.work / name, run)
        except Interrupted:
            print(f"stopped in {name}; the same command goes on with it")
            return 130
        results[name] = {"option": option, "learning_rate": rate, "seed": seed, **result}
        write(study, results, given.out)
        shown = {key: result[key] for key in ("outcome", "worst", "last", "spikes", "held_out")}
        print(name, json.dumps(shown), f"{result['seconds']} s", flush=True)
    write(study, results, given.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
