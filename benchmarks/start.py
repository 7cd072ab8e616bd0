"""From the command to the first step of training: seconds and memory.

    python benchmarks/start.py [--images 100000] [--folders 1000] [--place FOLDER] [--against SRC]
                               [--steps 300]

Writes so many PNGs of 8×8 pixels (below `--place`, deleted afterwards), prepares them once with an
empty cache, then runs `underpaint train` to the end of its first step, in a process of its own each
time: with everything in the cache, and on 60 images. Seconds are of the processor (user and system,
of the process and all its threads), with one thread; `wall` is beside them and says
little where the machine does other work. Memory in MiB is the largest resident set (`mib`), and
what of it at the end was pages of files (`mib_files`: code and the cache, which the system may
drop) and what was not (`mib_anonymous`).

Preparing is measured in pairs with the package in `--against` (the folder that holds `underpaint`),
each first in every other pair. With `--steps` a run of so many is made, to the end of its report.
Bytecode is compiled before anything is timed, as an installation does. Adds to
benchmarks/results/start.json, by the number of images.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "start.json"
SIDE, SMALL, BATCH = 8, 60, 16
CHILD = """
import json, os, resource, sys, time
began = time.perf_counter()

def end(**more):
    used = resource.getrusage(resource.RUSAGE_SELF)
    facts = {"cpu": used.ru_utime + used.ru_stime, "wall": time.perf_counter() - began}
    heavy = ("torch._dynamo", "scipy", "matplotlib", "jinja2", "pandas")
    facts |= {"mib": used.ru_maxrss / 1024, "heavy": [m for m in heavy if m in sys.modules]}
    status = dict(line.split(":") for line in open("/proc/self/status"))
    for name, line in (("anonymous", "RssAnon"), ("files", "RssFile")):
        facts["mib_" + name] = int(status[line].split()[0]) / 1024
    print(json.dumps(facts), flush=True)
    os._exit(0)

task, source, *command = sys.argv[1:]
if task == "prepare":
    from underpaint import config, data
    data.prepare(config.Data(source=source, size=(8,)), workers=1)
    end()
from underpaint.cli import main
from underpaint.training.trainer import Trainer
if task == "train":
    end(code=main(command))
step = Trainer._step

def first(self):
    step(self)
    end()

Trainer._step = first
sys.exit(main(command))
"""


def png(number: int) -> bytes:
    """A PNG of noise, another for each number."""
    noise = random.Random(number)
    rows = b"".join(b"\0" + noise.randbytes(3 * SIDE) for _ in range(SIDE))

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 0)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def write(place: Path, images: int, folders: int) -> Path:
    """So many images below `place`, which is returned; what is there already stays."""
    for number in range(images):
        folder = place / f"{number % folders:04d}"
        if number < folders:
            folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{number // folders:06d}.png"
        if not file.exists():
            file.write_bytes(png(number))
    return place


def command(source: Path, out: Path, steps: int = 0) -> list[str]:
    """What is typed to train on these images, as the default recipe does or for so many steps."""
    words = f"train --data {source} --size 8 --space.patch 2 --out {out} --overwrite --quiet"
    words += " --train.precision fp32 --train.threads 1"
    if steps:
        words += f" --stages.whole.minutes 0 --stages.whole.images {BATCH * steps}"
        words += f" --stages.whole.batch {BATCH}"
    return words.split()


def run(
    task: str, source: Path, cache: Path, src: Path = ROOT / "src", steps: int = 0
) -> dict[str, Any]:
    """What a process of its own took for it."""
    environment = dict(os.environ) | {"PYTHONPATH": str(src), "OMP_NUM_THREADS": "1"}
    environment |= {"UNDERPAINT_CACHE": str(cache / "cache")}
    words = [sys.executable, "-c", CHILD, task, str(source), *command(source, cache / "run", steps)]
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {k: round(v, 2) if isinstance(v, float) else v for k, v in found.items()}


def measure(
    images: Path, place: Path, against: Path | None, rounds: int, steps: int
) -> dict[str, Any]:
    """All figures; caches are below `place`."""
    small = write(place / "small", SMALL, 3)
    ours, theirs = place / "ours", place / "theirs"
    for cache, src in ((ours, ROOT / "src"), (theirs, against)):
        if src is not None:  # bytecode, and what is counted once
            run("prepare", small, cache, src)
    first: dict[str, list[dict[str, Any]]] = {"ours": [], "theirs": []}
    pair = {"ours": (ours, ROOT / "src")} | ({"theirs": (theirs, against)} if against else {})
    for i in range(rounds if against else 1):
        for name in sorted(pair, reverse=i % 2 == 1):
            cache, src = pair[name]
            shutil.rmtree(cache / "cache", ignore_errors=True)
            first[name].append(run("prepare", images, cache, src))
    found: dict[str, Any] = {"first_prepare": first["ours"]}
    if against:
        found["first_prepare_before"] = first["theirs"]
        each = zip(first["theirs"], first["ours"], strict=True)
        found["times_faster"] = round(median(b["cpu"] / a["cpu"] for b, a in each), 2)
    for name, source in (("step_of_60", small), ("step", images)):
        run("step", source, ours)  # counts the network's FLOPs, once for each cache
        found[name] = [run("step", source, ours) for _ in range(rounds)]
    least = {k: min(r["cpu"] for r in found[k]) for k in ("step_of_60", "step")}
    found["seconds_to_first_step"] = least["step"]
    found["seconds_to_first_step_of_60"] = least["step_of_60"]
    memory = [median(r["mib"] for r in found[k]) for k in ("step_of_60", "step")]
    found["mib"], found["mib_above_60"] = round(memory[1]), round(memory[1] - memory[0])
    if steps:
        found["train"] = {"steps": steps} | run("train", images, ours, steps=steps)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000, help="how many")
    parser.add_argument("--folders", type=int, default=1000, help="in how many folders")
    parser.add_argument("--place", type=Path, help="folder for images and caches (default: /tmp)")
    parser.add_argument("--against", type=Path, help="folder of another version of the package")
    parser.add_argument("--rounds", type=int, default=3, help="processes for each figure")
    parser.add_argument("--steps", type=int, default=0, help="of a whole run (default: none)")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory(dir=given.place) as folder:
        os.environ["PYTHONPYCACHEPREFIX"] = os.environ.get("PYTHONPYCACHEPREFIX") or folder
        images = (given.place or Path(folder)) / f"images-{given.images}"
        write(images, given.images, given.folders)
        try:
            found = measure(images, Path(folder), given.against, given.rounds, given.steps)
        finally:
            shutil.rmtree(images)
    found["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, Python {sys.version[:6]}"
    known = json.loads(given.out.read_text()) if given.out.exists() else {}
    given.out.write_text(json.dumps(known | {str(given.images): found}, indent=1) + "\n")
    print(json.dumps({k: v for k, v in found.items() if not isinstance(v, list)}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
