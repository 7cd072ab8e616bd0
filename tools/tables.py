"""Write the tables of README.md and docs/ from the committed JSON: `python -m tools.tables`.

A table stands between two comments, `<!-- name -->` and `<!-- end of name -->`, and is written by
the function of `TABLES`; the JSON it reads says which script measured it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

from studies.paint import page as paint
from tools.claims import ROOT, claims, lower, peers, read, study
from underpaint.compare import record


def step_ratios() -> str:
    """Speed of a training step by share of hidden patches, in both precisions."""
    measured = read("benchmarks/results/step.json")
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
    measured = sorted(read("benchmarks/results/start.json").items(), key=lambda item: int(item[0]))
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
    told = read("benchmarks/results/precision.json")
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
    found = read("benchmarks/results/audit_effort.json")
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
    measured = read("benchmarks/results/stream.json")
    speed, million = measured["speed"], measured["million"]
    names = {"png": "PNG, 64×64", "jpeg": "JPEG, 256×256, resized to 64×64"}
    ways = {"cache": "cache", **{f"shards, {n}": n for n in ("no worker", "1 worker", "2 workers")}}
    rows = []
    for kind, name in names.items():
        drawn, trained = speed[kind]["reading"], speed[kind]["training"]
        each = " | ".join(f"{drawn[way]['images_per_s']:,.0f}" for way in ways)
        cost = drawn["shards, no worker"]["cpu_ms_per_image"]
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


def systems() -> str:
    """System, preset, and what was measured: for README."""
    rows = []
    for about in study("systems")["systems"].values():
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
    systems = [about["units"] for about in study("systems")["systems"].values()]
    both = [units for units in systems if {"two-stage", "whole"} <= units.keys()]
    better, count = lower()
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
    for about in study("systems")["systems"].values():
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
    units = list(study("stability")["units"].values())
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
