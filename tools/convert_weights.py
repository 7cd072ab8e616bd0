"""Convert a model's folder of format 1 to format 2: `python tools/convert_weights.py FOLDER`.

Format 2 calls the defaults for sampling `sampling` (before, `preview`); the tensors are unchanged,
which their checksums show. Made once for the packaged weights.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from underpaint import config
from underpaint.io import replace_text
from underpaint.model_folder import FORMAT


def convert(folder: Path) -> None:
    """Rewrite `config.json`; nothing is done to a folder that has the format already."""
    card = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if card["format"] == FORMAT:
        return
    model = card["model"]
    if "preview" in model:
        model["sampling"] = model.pop("preview")
    spec = config.from_dict(config.ModelSpec, model, f"{folder.name}: ")
    card |= {"format": FORMAT, "model": config.to_dict(spec)}
    replace_text(folder / "config.json", json.dumps(card, indent=1) + "\n")


if __name__ == "__main__":
    convert(Path(sys.argv[1]))
