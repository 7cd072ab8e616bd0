"""What README's tables say of papers and of other software, from the committed JSON.

`tables.py` writes them.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def read(name: str) -> Any:
    """A committed JSON file."""
    return json.loads((ROOT / name).read_text(encoding="utf-8"))


def study(name: str) -> Any:
    """The results of a study."""
    return read(f"studies/{name}/results.json")


def claims() -> str:
    """What the papers claim, and what our studies have measured of it."""
    rows = [
        (
            "training 4 times faster at equal quality, in pixels (MaskDM)",
            "0.25 of the compute",
            *_compute("acceleration", "masked"),
        ),
        (
            "the quality of DiT in 31 % of its training time (MaskDiT)",
            "0.31 of the time",
            *_compute("maskdit", "with the loss on hidden patches"),
        ),
        (
            "46 % better on a small set after masked pre-training (MaskDM)",
            "0.54 of the FID",
            *_transfer(),
        ),
        ("the same by the best recipe, from the packaged weights", "aim: 0.54", *_starts()),
        (
            "any diffusion model of pixels can be trained so (MaskDM)",
            "–",
            "lower error in {} of {} systems".format(*lower()),
            "[`systems`](studies/systems/README.md): two stages against whole images, equal FLOPs, "
            "one seed, untuned",
        ),
        ("training on parts protects privacy (MaskDM)", "not measured", *_privacy()),
        ("asked by us: how many patches per image it takes for masks to pay", "–", *_where()),
    ]
    ladder = read("studies/ladder/verdicts.json")
    rows += [
        (row["title"], row["wanted"], row["told"], _LADDER + row["conditions"])
        for row in ladder["verdicts"]
        if row["told"]
    ]
    return "\n".join(
        [
            "| claim | published | measured here (95 %) | conditions |",
            "| --- | --- | --- | --- |",
            *("| " + " | ".join(row) + " |" for row in rows),
            "",
            ladder["gain"],
        ]
    )


def _starts() -> tuple[str, str]:
    """Distance from the packaged weights over that from scratch, and the conditions."""
    found = study("starts")["units"]
    told = []
    for count in ("1000", "100"):
        one, other = (found[f"{count}-{arm}"] for arm in ("packaged", "scratch"))
        first, other_first = (curve["curve"][0] for curve in (one, other))
        told.append(
            f"{int(count):,} images: {one['frechet'] / other['frechet']:.2f} of the FD-MobileNetV2 "
            f"({first['frechet_B'] / other_first['frechet_B']:.2f} after {first['images']:,}; real "
            f"images {first['floor'] / other['frechet']:.2f})"
        )
    return (
        "; ".join(told),
        "[`starts`](studies/starts/README.md): another style, one seed, each run at its best",
    )


_LADDER = "[`ladder`](studies/ladder/README.md): "


def _compute(study: str, arm: str) -> tuple[str, str]:
    """Share of the baseline's compute that an arm of a study needed, and the conditions."""
    path = f"studies/{study}/results.json"
    if not (ROOT / path).is_file():
        return NOT_YET
    results = read(path)
    found, asked = results["verdicts"][arm], results["study"]
    if found["ratio"] is None:
        return found["answer"], f"[`{study}`](studies/{study}/README.md)"
    seconds = results["by_seconds"][arm]
    time = "" if seconds["ratio"] is None else f"; time on one core: {_ratio(seconds)}"
    return (
        f"compute: {_ratio(found)}, {found['answer']}{time}",
        f"[`{study}`](studies/{study}/README.md): {asked['budget']:g} training FLOPs, "
        f"{len(found['seeds'])} seeds, {asked['tuning']['trials']} tuning trials an arm, "
        f"{results['score']}",
    )


def _ratio(found: dict[str, Any]) -> str:
    """A ratio with its side and its interval, where it has them."""
    told = f"{found['relation']} {found['ratio']:.2f}".removeprefix("= ")
    if found["low"] is not None:
        told += f" ({found['low']:.2f} to {found['high']:.2f})"
    return told


NOT_YET = ("not measured yet", "–")


def _transfer() -> tuple[str, str]:
    """Distance on the small set after masked pre-training, over that from scratch."""
    path = ROOT / "studies" / "transfer" / "results.json"
    effects = study("transfer")["effects"] if path.is_file() else []
    wanted = {"size": 1000, "arm": "masked", "against": "scratch"}
    found = next((f for f in effects if wanted.items() <= f.items()), None)
    if found is None:
        return NOT_YET
    ratio = found["frechet_B"]
    sure = ratio["high"] < 1 or ratio["low"] > 1
    return (
        f"{ratio['ratio']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f}) of the FD-MobileNetV2"
        + ("" if sure else ": undecided"),
        "[`transfer`](studies/transfer/README.md): 1,000 images of another style, "
        f"{len(found['seeds'])} seeds, each run at its best",
    )


def _where() -> tuple[str, str]:
    """Ratios of compute by the number of patches, and in how many ways to hide masks paid."""
    cells = study("where")["cells"]
    told = []
    for patches in sorted({cell["patches"] for cell in cells}):
        own = sorted((c for c in cells if c["patches"] == patches), key=lambda c: c["ratio"])
        ends = [_ratio({**cell, "low": None}) for cell in (own[0], own[-1])]
        span = " to ".join(dict.fromkeys(ends))
        count = Counter(cell["verdict"] for cell in own)
        ways = ", ".join(f"{verdict} in {n}" for verdict, n in count.items())
        if len(count) == 1:
            ways = own[0]["verdict"]
        told.append(f"{patches}: {span} ({ways})")
    seeds = sum(cell["seeds"] > 1 for cell in cells)
    return (
        "compute with masks over without, by ways to hide, at " + "; ".join(told),
        "[`where`](studies/where/README.md): held-out loss, one learning rate, three seeds in "
        f"{seeds} of {len(cells)} cells",
    )


def _privacy() -> tuple[str, str]:
    """In how many comparisons of arms on parts with arms on whole images the claim holds."""
    told = study("privacy")
    own = [claim for claim in told["claims"] if claim["arm"] != "public-dp"]
    if not own:
        return NOT_YET
    count = {v: sum(c["verdict"] == v for c in own) for v in ("holds", "undecided", "fails")}
    return (
        f"of {len(own)} comparisons it holds in {count['holds']}, fails in {count['fails']}, "
        f"{count['undecided']} undecided",
        "[`privacy`](studies/privacy/README.md): best attack and quality against arms on whole "
        "images, "
        f"{told['data']['members']} members, {max(len(c['seeds']) for c in own)} seeds",
    )


def lower() -> tuple[int, int]:
    """In how many systems two stages had the lower error, and of how many."""
    units = [about["units"] for about in study("systems")["systems"].values()]
    both = [own for own in units if {"two-stage", "whole"} <= own.keys()]
    return sum(own["two-stage"]["held_out"] < own["whole"]["held_out"] for own in both), len(both)


def peers() -> str:
    """underpaint beside other libraries, in the same CPU seconds: for README."""
    told = read("benchmarks/peers/results.json")
    found = {name: unit for name, unit in told["units"].items() if name in told["reported"]}
    sets = [which for which in told["sets"] if f"{which}-real" in found]
    arms = [arm for arm in _PEERS if any(f"{which}-{arm}" in found for which in sets)]

    def cells(which: str, arm: str) -> list[str]:
        unit = found.get(f"{which}-{arm}")
        if unit is None or arm == "real":
            return ["–", "–", "–", f"{unit['frechet']:.0f}" if unit else "–"]
        low, high = unit["frechet_interval"]
        distance = f"{unit['frechet']:.0f} ({low:.0f} to {high:.0f})"
        seconds = f"{unit['cpu_seconds']:.0f}"
        return [seconds, f"{unit['images']:,}", f"{unit['learning_rate']:g}", distance]

    def called(name: str) -> str:
        which, _, arm = name.partition("-")
        return f"{_PEERS[arm]} on {which}"

    def highest(name: str) -> bool:
        rates = [
            unit["settings"]["learning_rate"]
            for unit in told["units"].values()
            if found[name]["settings"].items() < unit["settings"].items()
        ]
        return len(rates) > 1 and found[name]["learning_rate"] == max(rates)

    columns = "CPU s | images seen | learning rate | FD-MobileNetV2 (95 %)"
    rows = [[_PEERS[arm], *(cell for which in sets for cell in cells(which, arm))] for arm in arms]
    edge = [called(name) for name in found if highest(name)]
    left = [called(name) for name in told["reported"] if name not in found]
    notes = [
        f"At the highest of the three learning rates, so that a higher one may be better still: "
        f"{'; '.join(edge)}.\n"
        if edge
        else "",
        f"Not measured yet: {'; '.join(left)}.\n" if left else "",
    ]
    return "\n".join(
        [
            f"| trained with | {' | '.join(f'{which}: {columns}' for which in sets)} |",
            "| --- |" + " --- |" * 4 * len(sets),
            *(f"| {' | '.join(row)} |" for row in rows),
            "",
            *("\n".join(filter(None, notes)).splitlines()),
        ]
    )


_PEERS = {  # arm → what README calls it
    "quickstart": "underpaint, `quickstart`",
    "default": "underpaint, `default`",
    "maskdm": "MaskDM's recipe by underpaint (`maskdm-celeba64`, scaled down)",
    "diffusers": "diffusers, `UNet2DModel` and `DDPMScheduler`",
    "diffusers-longer": "the same in four times the minutes, at one rate",
    "real": "*other real images*",
}
