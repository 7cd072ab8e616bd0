"""Train weights and put them into the package: `python tools/make_pretrained.py lorelei`.

Trains by tools/pretrained/NAME.yaml (an hour or two on one CPU core; run it again to go on after a
stop), then writes the averaged weights in float16, their config.json with the checksum, the recipe
and the model card to src/underpaint/pretrained/NAME.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from safetensors.torch import load_file

from underpaint import api, config
from underpaint.errors import Interrupted
from underpaint.model_folder import find, read_spec, write_model

ROOT = Path(__file__).parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    name = parser.parse_args().name
    run = ROOT / "runs" / f"pretrained-{name}"
    recipe = ROOT / "tools" / "pretrained" / f"{name}.yaml"
    resume = (run / "checkpoints" / "LATEST").exists()
    try:
        api.resume(run) if resume else api.train(config.load(recipe), run)
    except Interrupted:
        raise SystemExit(130) from None
    folder = ROOT / "src" / "underpaint" / "pretrained" / name
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = find(run)
    weights = load_file(checkpoint / "ema.safetensors")
    write_model(folder, read_spec(checkpoint), {"model": {k: v.half() for k, v in weights.items()}})
    shutil.copy(recipe, folder / "recipe.yaml")
    digest = json.loads((folder / "config.json").read_text())["sha256"]["model.safetensors"]
    print(f"{folder}: {sum(v.numel() for v in weights.values()):,} parameters, sha256 {digest}")


if __name__ == "__main__":
    main()
