"""Write the tables of README.md and docs/ from the committed JSON: `python tools/tables.py`.

A table stands between two comments, `<!-- name -->` and `<!-- end of name -->`, and is written by
the function of `TABLES`; the JSON it reads says which script measured it.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from studies.paint import page as paint
from underpaint.compare import record

ROOT = Path(__file__).parent.parent


def _read(name: str) -> Any:
    return json.loads((ROOT / name).read_text(encoding="utf-8"))


def _study(name: str) -> Any:
    return _read(f"studies/{name}/results.json")


def step_ratios() -> str:
    """Speed of a training step by share of hidden patches, in both precisions."""
    measured = _read("benchmarks/results/step.json")
    full, half = (measured[f"cpu-masked-{x}"] for x in ("fp32", "bf16"))
    assert (full["precision"], half["precision"]) == ("fp32", "bf16")
    assert all(
        full[key] == half[key] for key in ("threads", "parameters", "patches", "device", "amx")
    )
    rows = [
        f"| {one['realised']:.1%} | {one['visible']} | {one['images_per_s']:.0f} / "
        f"{two['images_per_s']:.0f} | {one['ratio']:.1f} / {two['ratio']:.1f} | "
        f"{one['ideal']:.1f} |"
        for one, two in zip(full["rows"], half["rows"], strict=True)
    ]
    threads = "one thread" if full["threads"] == 1 else f"{full['threads']} threads"
    return "\n".join(
        [
            f"A training step of the preset `{full['preset']}`, a DiT "
            f"({full['parameters']:,} parameters, {full['patches']} patches",
            f"an image, batch {full['rows'][0]['batch']}) on {threads} of a "
            f"{full['device'].upper()}{' with AMX' * full['amx']}, by `python benchmarks/step.py`:",
            "",
            "| hidden | patches seen | images/s, float32 / bf16 | times faster | by its FLOPs |",
            "| --- | --- | --- | --- | --- |",
            *rows,
            "",
            _compiled(measured),
        ]
    )


def _compiled(measured: dict[str, Any]) -> str:
    """What torch.compile saves of the steps of `masked`, whole and masked."""
    told = []
    for batch, rate in ((4, 0.0), (16, 0.9)):
        name = f"cpu-masked-bf16-batch{batch}"
        files = (measured[f"{name}{compiled}"] for compiled in ("", "-compiled"))
        eager, compiled = (
            next(row for row in file["rows"] if row["rate"] == rate) for file in files
        )
        assert eager["batch"] == compiled["batch"] == batch
        less = 1 - eager["images_per_s"] / compiled["images_per_s"]
        told.append(f"{batch} {'masked' if rate else 'whole'} images takes {less:.0%} less")
    return (
        "`--compile` needs a C++ compiler on a CPU and some time before each stage. A step on "
        f"{told[0]}\ntime with it, one on {told[1]} (in bf16)."
    )


def start() -> str:
    """What preparing takes once, and each later run until its first step."""
    measured = sorted(_read("benchmarks/results/start.json").items(), key=lambda item: int(item[0]))
    last = measured[-1][1]
    few = last["step_of_60"]
    rows = [f"| 60 | – | {last['seconds_to_first_step_of_60']:.1f} s | {few[0]['mib']:.0f} MiB |"]
    rows += [
        f"| {int(count):,} | {found['first_prepare'][0]['cpu']:.0f} s | "
        f"{found['seconds_to_first_step']:.1f} s | {found['mib']} MiB |"
        for count, found in measured
    ]
    return "\n".join(
        [
            "| images of 8×8 pixels | preparing, once | later runs: to the first step | memory |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
            "Seconds of one core, by `python benchmarks/start.py`.",
        ]
    )


def precision() -> str:
    """What bf16 saves and changes in drawing and in attacks: for docs/your-images.md."""
    told = _read("benchmarks/results/precision.json")
    drawing, audit = told["drawing"], told["audit"]
    one, two = (audit["auc"][name] for name in ("fp32", "bf16"))
    apart = max(abs(one[name] - two[name]) for name in one)
    apart = math.ceil(1000 * apart) / 1000
    distance = drawing["FD-MobileNetV2"]
    return (
        f"On one thread of a CPU{' with AMX' * told['amx']}, {drawing['samples']} samples of an "
        f"earlier DiT of heads took {drawing['seconds']['fp32']:.0f} s in float32 and "
        f"{drawing['seconds']['bf16']:.0f} s in bf16.\n"
        f"The median image differs by {drawing['mean_levels_apart']['median']:.1f} of 255 levels a "
        f"pixel, the one that differs most by {drawing['mean_levels_apart']['most']:.0f}; the "
        f"Fréchet distance\n(FD-MobileNetV2) is {distance['fp32']:.1f} and "
        f"{distance['bf16']:.1f}. {len(one)} attacks on {audit['members']} members took "
        f"{audit['seconds']['fp32']:.0f} and {audit['seconds']['bf16']:.0f} s, with AUCs of "
        f"{min(one.values()):.2f} to {max(one.values()):.2f}\nthat differ by {apart:.3f} at most "
        "(`python benchmarks/precision.py`)."
    )


def effort() -> str:
    """What an audit's attacks lose against those of `--thorough`: for docs/audit.md."""
    found = _read("benchmarks/results/audit_effort.json")
    rows = [
        f"| {row['steps']} | {name} | "
        + " | ".join(f"{row[effort]['auc'][name]:.2f}" for effort in ("quick", "thorough"))
        + " |"
        for row in found["rows"]
        for name in row["quick"]["auc"]
    ]
    lost = [
        row["thorough"]["auc"][name] - auc
        for row in found["rows"]
        for name, auc in row["quick"]["auc"].items()
    ]
    seconds = [
        sum(row[effort]["cpu_seconds"] for row in found["rows"]) for effort in ("quick", "thorough")
    ]
    return "\n".join(
        [
            "What fewer noises and masks cost: a copy of a network was trained on "
            f"{found['planted']} of its non-members,",
            f"and these were attacked beside {found['others']} others "
            "(`python benchmarks/audit_effort.py`; one network, one draw).",
            f"By default AUCs were at most {max(lost):.2f} below and {-min(lost):.2f} above those "
            "of `--thorough`, whose attacks",
            f"took {seconds[1] / seconds[0]:.1f} times the CPU time for as many images:",
            "",
            "| steps on them | attack | AUC | AUC, `--thorough` |",
            "| --- | --- | --- | --- |",
            *rows,
        ]
    )


def streaming() -> str:
    """Images from shards beside those from the cache: for docs/streaming.md."""
    measured = _read("benchmarks/results/stream.json")
    speed, million = measured["speed"], measured["million"]
    names = {"png": "PNG, 64×64", "jpeg": "JPEG, 256×256, resized to 64×64"}
    ways = {"cache": "cache", **{f"shards, {n}": n for n in ("no worker", "1 worker", "2 workers")}}
    rows = []
    for kind, name in names.items():
        read, trained = speed[kind]["reading"], speed[kind]["training"]
        each = " | ".join(f"{read[way]['images_per_s']:,.0f}" for way in ways)
        cost = read["shards, no worker"]["cpu_ms_per_image"]
        ratios = f"{trained['ratio']:.0%} | {trained['cpu_ratio']:.0%}"
        rows.append(f"| {name} | {each} | {cost:.2f} | {ratios} |")
    cores = {
        name: speed[kind]["reading"]["cores_for_a_network_of_images_per_s"]
        for kind, name in names.items()
    }
    fast = statistics.median(
        one["images_per_s"] for kind in names for one in speed[kind]["training"]["cache"]
    )
    needed = "; ".join(
        f"{name}: {each['1000']:.1f}, {each['5000']:.1f} and {each['20000']:.1f}"
        for name, each in cores.items()
    )
    main, worker = million["train"]["main_mib"], million["train"]["largest_child_mib"]
    return "\n".join(
        [
            f"Images/s in batches of {speed['batch']}, and a run's from shards beside the same "
            "from the cache: one core",
            "computes, another decodes (`python benchmarks/stream.py speed`; medians of "
            f"{speed['rounds']} paired rounds on 2 cores",
            "that other work shared). *Its CPU* compares CPU time of the process that computes:",
            "what the ratio would be with a core that is free for decoding; above 100 % is noise.",
            "",
            f"| image files | {' | '.join(ways.values())} | CPU ms an image | run | its CPU |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
            f"The network of these runs took {fast:,.0f} images/s. *Computed* from the CPU time of "
            "an image, not measured, are",
            f"the cores that decode for a network of 1,000, 5,000 and 20,000 images/s: {needed}.",
            "Larger JPEGs cost more; shards of images that are resized already cost least.",
            "",
            f"A million images of 16×16 in {million['shards']:,} shards "
            "(`python benchmarks/stream.py million`): at most",
            f"{million['largest_rss_mib']:,} MiB resident in any process, mapped files included. "
            f"The process that trained had {main['rss']:,} MiB",
            f"({main['anonymous']:,} not of files), a worker {worker['rss']:,} MiB, in which "
            "what it shares with that process is counted. Two",
            f"processes indexed them in {million['both_parts_seconds'] / 60:.0f} minutes, and "
            f"joining took {million['join']['seconds']:.0f} s, on 2 cores that other work shared.",
        ]
    )


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
            "lower error in {} of {} systems".format(*_lower()),
            "[`systems`](studies/systems/README.md): two stages against whole images, equal FLOPs, "
            "one seed, untuned",
        ),
        ("training on parts protects privacy (MaskDM)", "not measured", *_privacy()),
        ("asked by us: how many patches per image it takes for masks to pay", "–", *_where()),
    ]
    ladder = _read("studies/ladder/verdicts.json")
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
    found = _study("starts")["units"]
    told = []
    for count in ("1000", "100"):
        one, other = (found[f"{count}-{arm}"] for arm in ("packaged", "scratch"))
        first, other_first = (curve["curve"][0] for curve in (one, other))
        told.append(
            f"{int(count):,} images: {one['frechet'] / other['frechet']:.2f} of the FD-MobileNetV2 "
            f"({first['frechet_B'] / other_first['frechet_B']:.2f} after {first['images']:,})"
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
    results = _read(path)
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
    effects = _study("transfer")["effects"] if path.is_file() else []
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
    cells = _study("where")["cells"]
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
    told = _study("privacy")
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


def _lower() -> tuple[int, int]:
    """In how many systems two stages had the lower error, and of how many."""
    units = [about["units"] for about in _study("systems")["systems"].values()]
    both = [own for own in units if {"two-stage", "whole"} <= own.keys()]
    return sum(own["two-stage"]["held_out"] < own["whole"]["held_out"] for own in both), len(both)


def peers() -> str:
    """underpaint beside other libraries, in the same CPU seconds: for README."""
    told = _read("benchmarks/peers/results.json")
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


def systems() -> str:
    """System, preset, and what was measured: for README."""
    rows = []
    for about in _study("systems")["systems"].values():
        units = [about["units"].get(arm, {}) for arm in ("two-stage", "whole")]
        distances = [
            f"{unit['scores']['held_out']['frechet']:.0f}" if "scores" in unit else "–"
            for unit in units
        ]
        errors = [f"{unit['held_out']:.4f}" if unit else "–" for unit in units]
        rows.append(
            f"| {about['title']} | `{about['preset']}` | {' / '.join(distances)} | "
            f"{' / '.join(errors)} |"
        )
    return "\n".join(
        [
            "| system | preset | FD-MobileNetV2, two stages / whole | held-out error, the same |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
            _of_both_arms(),
        ]
    )


def _of_both_arms() -> str:
    """How often two stages came out ahead of whole images."""
    systems = [about["units"] for about in _study("systems")["systems"].values()]
    both = [units for units in systems if {"two-stage", "whole"} <= units.keys()]
    better, count = _lower()
    drawn = [
        [units[arm]["scores"]["held_out"]["frechet_interval"] for arm in ("two-stage", "whole")]
        for units in both
        if "scores" in units["whole"]
    ]
    nearer = sum(two[1] < whole[0] for two, whole in drawn)
    further = sum(two[0] > whole[1] for two, whole in drawn)
    return (
        f"Two stages had the lower error in {better} of {count} systems; their samples were "
        f"nearer to\nheld-out images in {nearer} of {len(drawn)}, further in {further}, and the "
        f"95 % intervals overlap in {len(drawn) - nearer - further}."
    )


def systems_in_full() -> str:
    """Every unit of studies/systems: for docs/systems.md."""
    rows = []
    for about in _study("systems")["systems"].values():
        for arm, unit in about["units"].items():
            seen = " + ".join(
                f"{facts['images']:,}"
                + ("" if facts["mask"] == "none" else f" ({facts['mask']}, {facts['rate']:.0%})")
                for facts in unit["stages"].values()
            )
            if "scores" in unit:
                scores = unit["scores"]["held_out"]
                low, high = scores["frechet_interval"]
                distances = (
                    f"{scores['frechet']:.1f} ({low:.1f} to {high:.1f}) | {scores['kernel']:.4f}"
                )
            else:
                distances = "– | –"
            speed = ", ".join(f"{rate:.0f}" for rate in unit.get("images_per_s", {}).values())
            rows.append(
                f"| {about['title']} | {arm.replace('-', ' ')} | "
                f"{unit['parameters']:,} | {unit['flops']:.2g} | {seen} | "
                f"{unit['held_out']:.4f} | {distances} | {speed or '–'} |"
            )
    return "\n".join(
        [
            "| system | trained | parameters | FLOPs | images (hidden) | held-out error | "
            "FD-MobileNetV2 (95 %) | KD-MobileNetV2 | images/s per stage |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
            *rows,
        ]
    )


def stability() -> str:
    """Outcome of every unit of studies/stability: for docs/systems.md."""
    units = list(_study("stability")["units"].values())
    rates = sorted({unit["learning_rate"] for unit in units})
    options = list(dict.fromkeys(unit["option"] for unit in units))

    def cell(option: str, rate: float) -> str:
        found = [u for u in units if u["option"] == option and u["learning_rate"] == rate]
        return ", ".join(
            u["outcome"] + (f" ({u['held_out']:.3f})" if u["held_out"] else "") for u in found
        )

    return "\n".join(
        [
            "What became of each unit, and its error on whole held-out images at the end:",
            "",
            "| against divergence | " + " | ".join(f"learning rate {r:g}" for r in rates) + " |",
            "| --- |" + " --- |" * len(rates),
            *(
                f"| {option} | " + " | ".join(cell(option, rate) for rate in rates) + " |"
                for option in options
            ),
        ]
    )


def completion() -> str:
    """Errors of repainted parts by models of whole images and of parts first."""
    found = paint.effects(record.read(ROOT / "studies" / "paint" / "results.json")["units"])
    rows = [
        "| images | erased | whole images | parts first | ratio (95 %) |",
        "| --- | --- | --- | --- | --- |",
    ]
    for which in paint.SETS:
        for mask, erased in paint.MASKS.items():
            one = found[f"{which}, {mask}, error"]
            rows.append(
                f"| {which} | {erased} | {one['whole']:.3f} | {one['parts']:.3f} | "
                f"{one['ratio']:.2f} ({one['low']:.2f} to {one['high']:.2f}) |"
            )
    return "\n".join(rows)


TABLES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"peers": peers, "claims": claims, "step ratios": step_ratios, "systems": systems},
    "docs/audit.md": {"effort": effort},
    "docs/your-images.md": {"precision": precision, "start": start},
    "docs/use-your-model.md": {"completion": completion},
    "docs/streaming.md": {"streaming": streaming},
    "docs/systems.md": {"systems in full": systems_in_full, "stability": stability},
}


def written(text: str, name: str, table: str) -> str:
    """`text` with `table` between the comments of `name`."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, rest = text.split(begin)
    return f"{before}{begin}\n{table}\n{end}{rest.rpartition(end)[2]}"


def main() -> None:
    """Write all tables into their files."""
    for name, tables in TABLES.items():
        path = ROOT / name
        text = path.read_text(encoding="utf-8")
        for title, table in tables.items():
            text = written(text, title, table())
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
