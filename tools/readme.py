"""Write the figures of README.md from the committed JSON: `python tools/readme.py`.

The table of step ratios stands between two comments; `benchmarks/step.py` measures it.
"""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- step ratios -->", "<!-- end of step ratios -->"


def table() -> str:
    """Speed of a training step by share of hidden patches, as Markdown."""
    path = ROOT / "benchmarks" / "results" / "step-cpu-own.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        f"| {row['realised']:.1%} | {row['visible']} | {row['images_per_s']:.0f} | "
        f"{row['ratio']:.2f} | {row['ideal']:.2f} |"
        for row in result["rows"]
    ]
    threads = "one thread" if result["threads"] == 1 else f"{result['threads']} threads"
    return "\n".join(
        [
            BEGIN,
            f"A training step of the network of `own` ({result['parameters']:,} parameters, "
            f"{result['patches']} patches",
            f"an image, batch {result['rows'][0]['batch']}) on {threads} "
            f"of a {result['device'].upper()}, by `python benchmarks/step.py`:",
            "",
            "| hidden | patches seen | images/s | times faster | by its FLOPs |",
            "| --- | --- | --- | --- | --- |",
            *rows,
            END,
        ]
    )


def written(text: str) -> str:
    """`text` with the table of the committed JSON in its place."""
    before, rest = text.split(BEGIN)
    return before + table() + rest.rpartition(END)[2]


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(written(readme.read_text(encoding="utf-8")), encoding="utf-8")
