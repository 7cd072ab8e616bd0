"""Write studies/README.md, the answers and the cost of all studies: `python studies/index.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import acceleration_page
import maskdit_page
import privacy_page
import transfer_page
import where

HERE = Path(__file__).parent

HEAD = """\
# Studies

What the claims table of [the README](../README.md) rests on. A study is a script, or a YAML for
`underpaint compare`, whose first lines say what is asked and how to repeat it; a JSON with every
run and its protocol; and, for the larger ones, a page (HTML, one file). Networks are small,
pictures are drawn heads of 28 to 64 pixels, most scores are errors of x0 on held-out images: what
holds here need not hold for large networks, long training or photographs.

The studies train on one thread a process and may be started in as many processes as there are
cores; stopped ones go on. `studies/gpu.sh` runs them on a GPU in parts of ten minutes.
"""

TAIL = """\
Core-minutes are those of training as it ran, on one thread of a CPU with AMX, two processes beside
each other; a dash: not recorded. Drawing the pictures takes minutes more, scoring samples up to
half as much again.
"""

QUESTIONS = {
    "acceleration": "Does training on parts reach the same error sooner?",
    "maskdit": "Does an encoder of visible patches reach the error of DiT sooner?",
    "where": "How many patches an image, and which masks, does it take?",
    "transfer": "Do weights learned on hidden images help to learn another style from few images?",
    "privacy": "Does training on parts protect?",
    "systems": "Does every system learn in two stages?",
    "masks": "Which masked stage is best at 256 patches? (for `acceleration.yaml` and `own`)",
    "batches": "How many images a step? (for `quickstart`)",
    "times": "How should training times be drawn? (for all presets)",
    "small": "Which batch and learning rate for few images? (for `small-*`)",
    "stability": "What keeps training whole at rates that are too high? (docs/systems.md)",
}


def answers() -> str:
    """The answers of the studies that have one, as their pages tell them."""
    told = {
        "acceleration": acceleration_page.answer(
            _read("acceleration/results.json"), acceleration_page.pairs(HERE / "acceleration")
        ),
        "maskdit": maskdit_page.answer(_read("maskdit/results.json")),
        "where": where.told(_read("where.json")["cells"]),
        "transfer": transfer_page.answer(_read("transfer.json")),
        "privacy": privacy_page.answer(_read("privacy.json")),
    }
    parts = []
    for name, lines in told.items():
        parts += [f"## {QUESTIONS[name]}", *lines, f"Page: [`{name}.html`]({name}.html)."]
    return "\n\n".join(parts)


def costs() -> str:
    """Question, files and cost of every study."""
    rows = []
    for name, question in QUESTIONS.items():
        script = f"{name}.py"
        result = f"{name}.json"
        if not (HERE / script).is_file():
            script, result = f"{name}.yaml", f"{name}/results.json"
        runs = _runs(name)
        flops = sum(run["flops"] for run in runs if "flops" in run)
        seconds = [run["seconds"] for run in runs if "seconds" in run]
        rows.append(
            f"| [`{script}`]({script}) | {question} | [JSON]({result}) | {len(runs)} | "
            f"{f'{flops:.1e}' if flops else '–'} | "
            f"{f'{sum(seconds) / 60:,.0f}' if len(seconds) == len(runs) else '–'} |"
        )
    return "\n".join(
        [
            "| study | question | results | runs | training FLOPs | core-minutes |",
            "| --- | --- | --- | --- | --- | --- |",
            *rows,
        ]
    )


def _runs(name: str) -> list[dict[str, Any]]:
    """Everything that a study trained, trials among it."""
    folder = HERE / name
    if (folder / "results.json").is_file():
        trials = [_read(path) for path in sorted(folder.glob("*/*/*/study.json"))]
        return [*_read(folder / "results.json")["runs"], *trials]
    told = _read(f"{name}.json")
    if name == "systems":
        return [unit for about in told["systems"].values() for unit in about["units"].values()]
    return list(told["units"].values())


def _read(name: str | Path) -> Any:
    return json.loads((HERE / name).read_text(encoding="utf-8"))


def text() -> str:
    """The whole file."""
    return "\n".join([HEAD, answers(), "", "## All of them", "", costs(), "", TAIL])


if __name__ == "__main__":
    (HERE / "README.md").write_text(text(), encoding="utf-8")
