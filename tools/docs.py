"""Write docs/recipes.md: every setting of a recipe, from the dataclasses. Run by `make docs`.

A test compares the file with what this writes, so that it cannot go stale.
"""

from __future__ import annotations

from pathlib import Path

from underpaint import config
from underpaint.cli.settings import sections
from underpaint.config import presets

__all__ = ["page"]

PATH = Path(__file__).parent.parent / "docs" / "recipes.md"

INTRO = """\
<!-- Written by tools/docs.py from src/underpaint/config/: edit there, then `make docs`. -->

# Recipes

A recipe is a YAML file: which images, which network, and the stages in their order. Take one that
is there and change it:

```
underpaint presets                       # what there is
underpaint presets default > my.yaml         # copy one
underpaint train --config my.yaml --data photos --size 64
```

Every setting can also be given as a flag: `train.seed` is `--train.seed 1`, and the batch of the
stage called `whole` is `--stages.whole.batch 64`. Flags win over the file, the file wins over
`--preset`, and what is given nowhere has the default below. The settings that a run really used are
in its `config.yaml`, which is itself a recipe.

`underpaint train --dry-run` with the same flags says what a recipe would cost before it is trained.

## Presets
"""

STAGES = """\
Stages run in the order in which they are written; each has a name of your choice. Switching keeps
the weights and their average. Lengths are counted in images, never in steps, so that a batch can be
changed without changing how much is learned; `images: 64_000` and `images: 2_000_000` are fine.
A stage of a preset is left out with `NAME: null`.
"""


def page() -> str:
    """The whole file."""
    lines = [INTRO, "| preset | what it is |", "| --- | --- |"]
    lines += [
        f"| [`{n}`](../src/underpaint/presets/{n}.yaml) | {s} |" for n, s in presets().items()
    ]
    lines += [
        "",
        "An example, `default`:",
        "",
        "```yaml",
        config.preset_text("default").rstrip(),
        "```",
    ]
    for section in sections():
        lines += ["", f"## {section.name}", "", section.summary, ""]
        if section.name == "stages.NAME":
            lines += [STAGES]
        lines += ["| setting | type | default | what it does |", "| --- | --- | --- | --- |"]
        for row in section.rows:
            kind = row.kind.replace("|", r" \| ")
            default = f"`{row.default}`" if row.default else ""
            lines.append(f"| `{row.name}` | {kind} | {default} | {row.help} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(page(), encoding="utf-8")
    print(PATH)
