"""Write the READMEs of the studies from their results: `python -m studies.lib.index`.

studies/README.md has the answers and the cost of all, studies/NAME/README.md what one has found.
With `--pages`, also write their pages and figures (HTML and PNG, which git ignores).
"""

from __future__ import annotations

import argparse
import ast
import json
from pathlib import Path
from typing import Any

from studies.acceleration import page as acceleration
from studies.ladder import page as ladder
from studies.lib.page import Page, Table
from studies.maskdit import page as maskdit
from studies.paint import page as paint
from studies.privacy import page as privacy
from studies.stability import run as stability
from studies.systems import page as systems
from studies.transfer import page as transfer
from studies.where import run as where

STUDIES = Path(__file__).parent.parent

HEAD = """\
# Studies

What the claims table of [the README](../README.md) rests on. A study is a folder: a script, or a
YAML for `underpaint compare`, whose first lines say what is asked and how to repeat it; one
`results.json` with a line for every run, its settings and what was measured; and a README of what
it found. `make pages` writes their pages and figures. Networks are small, pictures are drawn heads
of 28 to 64 pixels, most scores are errors of x0 on held-out images: what holds here need not hold
for large networks, long training or photographs.

The studies train on one thread a process and may be started in as many processes as there are
cores; stopped ones go on. `studies/gpu.sh` runs them on a GPU in parts of ten minutes.
"""

TAIL = """\
Core-minutes are those of training as it ran, on one thread of a CPU with AMX, two processes beside
each other; a dash: not recorded. Drawing the pictures takes minutes more, scoring samples up to
half as much again.
"""

QUESTIONS = {
    "ladder": "What makes training cheaper, one ingredient after the other?",
    "acceleration": "Does training on parts reach the same error sooner?",
    "maskdit": "Does an encoder of visible patches reach the error of DiT sooner?",
    "where": "How many patches per image, and which masks, does it take?",
    "transfer": "Do weights learned on hidden images help to learn another style from few images?",
    "privacy": "Does training on parts protect?",
    "paint": "Does a model that learned from parts complete pictures better?",
    "systems": "Does every system learn in two stages?",
    "masks": "Which masked stage is best at 256 patches? (for `acceleration` and `default`)",
    "batches": "How many images per step? (for `quickstart`)",
    "times": "How should training times be drawn? (for all presets)",
    "small": "Which batch and learning rate for a DiT and few images?",
    "plan": "Does `plan` write a better recipe than `default`? (for `plan`)",
    "starts": "Do the packaged weights help with few images? (for `small-*` and `finetune`)",
    "samplers": "Which sampler, in how many steps? (for `sampling` in all presets)",
    "minutes": "Which recipe in four and a half minutes of one core? (for `quickstart`)",
    "augment": "Does augmentation show in samples, and does it pay? (for `small-*` and `plan`)",
    "stability": "What keeps training whole at rates that are too high? (docs/systems.md)",
}


PAGES = {
    "ladder": ladder.page,
    "acceleration": acceleration.page,
    "maskdit": maskdit.page,
    "where": where.page,
    "transfer": transfer.page,
    "privacy": privacy.page,
    "paint": paint.page,
}


def page(name: str) -> Page:
    """What a study found, with its figure."""
    return PAGES[name](results(name))


def results(name: str) -> dict[str, Any]:
    """What stands in a study's results.json."""
    text = (STUDIES / name / "results.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def runs(name: str) -> dict[str, dict[str, Any]]:
    """Everything that a study trained, trials among it, by name."""
    found = results(name)
    if name == "systems":
        return {
            f"{system}_{arm}": unit
            for system, about in found["systems"].items()
            for arm, unit in about["units"].items()
        }
    if "units" in found:
        return dict(found["units"])
    return {run["run"]: run for part in ("runs", "trials", "earlier") for run in found[part]}


def text() -> str:
    """studies/README.md."""
    parts = []
    for name in PAGES:
        parts += [f"## {QUESTIONS[name]}", *page(name).answer, f"More: [{name}]({name}/README.md)."]
    return "\n".join([HEAD, "\n\n".join(parts), "", "## All of them", "", costs(), "", TAIL])


def costs() -> str:
    """Question, files and cost of every study."""
    rows = []
    for name, question in QUESTIONS.items():
        found = runs(name).values()
        flops = sum(run["flops"] for run in found if "flops" in run)
        seconds = [run["seconds"] for run in found if "seconds" in run]
        rows.append(
            [
                f"[{name}]({name}/README.md)",
                question,
                f"[{script(name).name}]({name}/{script(name).name})",
                f"[JSON]({name}/results.json)",
                str(len(found)),
                f"{flops:.1e}" if flops else "–",
                f"{sum(seconds) / 60:,.0f}" if len(seconds) == len(found) else "–",
            ]
        )
    columns = ["study", "question", "how", "results", "runs", "training FLOPs", "core-minutes"]
    return Table(columns, rows).markdown()


def script(name: str) -> Path:
    """What runs the study."""
    yaml = STUDIES / name / "study.yaml"
    return yaml if yaml.is_file() else yaml.with_name("run.py")


def readme(name: str) -> str:
    """studies/NAME/README.md."""
    if name in PAGES:
        return page(name).markdown() + f"\nHow: [{script(name).name}]({script(name).name}).\n"
    about = ast.get_docstring(ast.parse(script(name).read_text(encoding="utf-8"))) or ""
    title, _, body = about.partition("\n\n")
    found = [results(name).get("answer", ""), table(runs(name)).markdown()]
    return "\n\n".join([f"# {title}", body, "## Results", *filter(None, found)]) + "\n"


def table(found: dict[str, dict[str, Any]]) -> Table:
    """The numbers and words of each run; its curves and what is nested stand in the JSON."""
    plain = (int, float, str)
    names = list(dict.fromkeys(k for run in found.values() for k in run if k != "images"))
    kept = [n for n in names if any(isinstance(run.get(n), plain) for run in found.values())]

    def cell(value: Any) -> str:
        if not isinstance(value, plain):
            return "–"
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    rows = [[name, *(cell(run.get(n)) for n in kept)] for name, run in found.items()]
    return Table(["run", *kept], rows)


def write_pages() -> None:
    """The HTML and the figures of all studies that have some."""
    from underpaint.report import comparison

    for name in PAGES:
        print(page(name).write(STUDIES / name / "results.html"))
    for name in ("acceleration", "maskdit"):
        print(comparison.write(results(name), STUDIES / name))
    print(systems.page(STUDIES / "systems" / "results.json"))
    stability.plot(results("stability")["units"], STUDIES / "stability" / "results.png")
    print(STUDIES / "stability" / "results.png")


def main() -> None:
    """All READMEs, and the pages."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pages", action="store_true", help="write the pages and figures, too")
    if parser.parse_args().pages:
        write_pages()
    (STUDIES / "README.md").write_text(text(), encoding="utf-8")
    for name in QUESTIONS:
        (STUDIES / name / "README.md").write_text(readme(name), encoding="utf-8")


if __name__ == "__main__":
    main()
