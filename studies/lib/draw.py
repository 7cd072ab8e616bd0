"""Draw the pictures of the studies at 64×64: 25,000 heads, of which a study holds 5,000 out.

    python -m studies.lib.draw [--out runs/data]
    python -m studies.lib.draw --size 32 --count 40000         those of studies/privacy/run.py

Needs node 20.11 or later and its npm, which fetches the drawing packages (tools/avatars). The same
pictures come out each time. A minute or two of one core for every 10,000; done once.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

TOOL = Path(__file__).parents[2] / "tools" / "avatars"
COUNT, SIZE, STYLE = 25_000, 64, "lorelei"


def main() -> int:
    """Draw them, unless they are there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/data"), help="folder")
    parser.add_argument("--count", type=int, default=COUNT, help="pictures")
    parser.add_argument("--size", type=int, default=SIZE, help="pixels a side")
    given = parser.parse_args()
    made = given.out / f"{STYLE}-{given.size}.zip"
    if made.is_file():
        print(f"{made} is there")
        return 0
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            parser.error(f"{program} is not installed; it draws the pictures")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for name in ("make.mjs", "png.mjs", "styles.mjs", "package.json"):
            shutil.copyfile(TOOL / name, place / name)
        subprocess.run(["npm", "install", "--no-package-lock", "--silent"], cwd=place, check=True)
        flags = ["--size", str(given.size), "--style", STYLE, "--count", str(given.count)]
        drawn = place / "drawn"
        drawn.mkdir()
        subprocess.run(["node", "make.mjs", *flags, "--out", str(drawn)], cwd=place, check=True)
        given.out.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(drawn / made.name, made.with_suffix(".part"))
        made.with_suffix(".part").replace(made)
    print(made)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
