"""Damaged and hostile files: each gives its content or one `UserError`, soon, and writes nothing.

    python -m tests.fuzz.mutants --mutants 10000 --out tests/fuzz/results.json

Seeds are whole files of every kind that is read. A mutant has some of its bytes changed, cut out,
doubled or replaced by numbers that parsers dislike. What is raised besides UserError, takes more
than FUSE seconds, or leaves a file outside the cache is a failure; its number makes it again.
"""

import argparse
import gzip
import io
import json
import os
import resource
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from underpaint import config, data, model, model_folder
from underpaint.cli import main
from underpaint.errors import UserError
from underpaint.evaluation import records
from underpaint.sealed import format as sealed
from underpaint.training.checkpointing import read_optimizer, read_progress
from underpaint.training.provenance import recorded

FUSE = 60  # seconds
MEMORY = 8 << 30  # bytes of address space that a mutant may ask for
NASTY = (b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"[" * 3000, b"-1", b"1e999", b"NaN", b"null")
NASTY += (b"../../../x", b"/dev/zero", b"\0", b"99999999999999999999", b"&a *a", b"\xed\xa0\x80")

Target = Callable[[Path], Any]


def pictures(count: int = 3) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(count)]


def saved(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def prepared(path: Path) -> None:
    source = str(path)
    data.prepare(config.Data(source=source, size=(8,), held_out="none", max_bad=0.9), workers=1)


def image(path: Path) -> None:
    """Beside a whole one, so that the set is not empty."""
    pictures(1)[0].save(path.parent / "whole.png")
    prepared(path.parent)


def seeds(place: Path) -> dict[str, tuple[Path, Target]]:
    """Whole files of each kind below `place`, and what reads them."""
    found: dict[str, tuple[Path, Target]] = {}
    images = pictures()
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"):
        folder = place / kind.lower()
        folder.mkdir()
        (folder / "a.png").write_bytes(saved(images[0], kind))
        found[kind.lower()] = folder / "a.png", image
    members = {f"{'ab'[i % 2]}/{i}.png": saved(one, "PNG") for i, one in enumerate(images)}
    members |= {f"{'ab'[i % 2]}/{i}.cls": str(i).encode() for i in range(2)}
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name, content in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    with zipfile.ZipFile(place / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive_:
        for name, content in members.items():
            archive_.writestr(name, content)
    (place / "a.tar").write_bytes(tar.getvalue())
    (place / "b.tar.gz").write_bytes(gzip.compress(tar.getvalue()))
    arrays = np.stack([np.asarray(one) for one in images])
    np.save(place / "a.npy", arrays)
    np.savez_compressed(place / "a.npz", images=arrays, labels=np.arange(3))
    idx = (
        b"\0\0\x08\x03"
        + b"".join(n.to_bytes(4, "big") for n in (3, 8, 8))
        + arrays[..., 0].tobytes()
    )
    (place / "a-idx3-ubyte").write_bytes(idx)
    (place / "b-idx3-ubyte.gz").write_bytes(gzip.compress(idx))
    (place / "a.csv").write_text("path,label\npng/a.png,a\njpeg/a.png,b\n")
    for name in (
        "a.zip",
        "a.tar",
        "b.tar.gz",
        "a.npy",
        "a.npz",
        "a-idx3-ubyte",
        "b-idx3-ubyte.gz",
        "a.csv",
    ):
        found[name] = place / name, prepared
    (place / "a.yaml").write_text(config.preset_text("default"))
    found["yaml"] = place / "a.yaml", config.load
    with zipfile.ZipFile(place / "many.zip", "w") as archive_:
        for i in range(24):
            pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            archive_.writestr(f"{'ab'[i % 2]}/{i}.png", saved(Image.fromarray(pixels), "PNG"))
    _quiet("seal", place / "many.zip", "--out", place / "a.up", "--patch", 2, "--labels")
    found["sealed"] = place / "a.up", sealed.verify
    (place / "small.yaml").write_text(
        "network: {width: 48, depth: 1, heads: 2}\nstages: {whole: {images: 16, batch: 8}}\n"
        "train: {threads: 1, precision: fp32, check_every: -1, sample_every: -1}\n"
    )
    flags = ("--config", place / "small.yaml", "--data", place / "many.zip", "--out", place / "run")
    _quiet("train", *flags, "--quiet")
    checkpoint = model_folder.find(place / "run")

    def read_model(path: Path) -> None:
        model.load(path.parent, device="cpu")

    card = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(card))

    def read_signed(path: Path) -> None:
        """A stranger's weights have a checksum that holds."""
        sums = card["sha256"] | {path.name: model_folder.sha256(path)}
        (path.parent / "config.json").write_text(json.dumps(card | {"sha256": sums}))
        try:
            model.load(path.parent, device="cpu")
        finally:
            (path.parent / "config.json").write_text(json.dumps(card))

    for name, target in {
        "config.json": read_model,
        "ema.safetensors": read_signed,
        "state.json": lambda path: read_progress(path.parent),
        "optimizer.pt": lambda path: read_optimizer(path.parent),
    }.items():
        found[name] = checkpoint / name, target
    found["metrics.jsonl"] = place / "run" / "metrics.jsonl", records.read
    found["env.json"] = place / "run" / "env.json", lambda path: recorded(path.parent)
    return found


def _quiet(*arguments: object) -> None:
    out, sys.stdout = sys.stdout, io.StringIO()
    try:
        assert main([str(argument) for argument in arguments]) == 0
    finally:
        sys.stdout = out


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """`content` with one to eight changes."""
    result = bytearray(content)
    for _ in range(int(rng.integers(1, 9))):
        at = int(rng.integers(0, max(1, len(result))))
        length = int(rng.integers(1, 1 + max(1, min(64, len(result) - at))))
        what = rng.integers(0, 6)
        if what == 0 and result:
            result[at % len(result)] ^= 1 << int(rng.integers(0, 8))
        elif what == 1:
            result[at : at + length] = rng.bytes(length)
        elif what == 2:
            del result[at : at + length * int(rng.integers(1, 50))]
        elif what == 3:
            result[at:at] = result[at : at + length] * int(rng.integers(1, 20))
        elif what == 4:
            text = NASTY[int(rng.integers(0, len(NASTY)))]
            result[at : at + len(text)] = text
        else:
            text = NASTY[int(rng.integers(0, len(NASTY)))]
            result[at:at] = text
    return bytes(result)


@contextmanager
def fuse() -> Iterator[None]:
    """Raises TimeoutError in what takes longer than FUSE seconds."""

    def burn(*_: object) -> None:
        raise TimeoutError(f"more than {FUSE} s")

    before = signal.signal(signal.SIGALRM, burn)
    signal.alarm(FUSE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Fuzz:
    """Seeds in a folder of their own; `try_one` mutates one and says what came of it."""

    def __init__(self, place: Path) -> None:
        self.place = place
        os.environ["UNDERPAINT_CACHE"] = str(place / "cache")
        (place / "seeds").mkdir()
        self.seeds = seeds(place / "seeds")
        self.whole = {name: path.read_bytes() for name, (path, _) in self.seeds.items()}
        self.before = self._files()

    def _files(self) -> set[str]:
        return {str(path) for path in (self.place / "seeds").rglob("*")} | {
            str(path) for path in self.place.glob("*")
        }

    def try_one(self, name: str, content: bytes) -> str:
        """`read`, `refused`, or what went wrong."""
        path, target = self.seeds[name]
        path.write_bytes(content)
        try:
            with fuse():
                target(path)
                result = "read"
        except UserError as error:
            result = "refused" if "\n" not in str(error) else f"several lines: {error}"
        except BaseException as error:
            result = f"{type(error).__name__}: {error}"[:300]
        path.write_bytes(self.whole[name])
        if more := self._files() - self.before - {str(self.place / "cache")}:
            more -= {str(self.place / "seeds" / kind / "whole.png") for kind in self.seeds}
        if more:
            result = f"wrote {sorted(more)[0]}"
            self.before |= more
        return result


def run(mutants: int, first: int = 0) -> dict[str, Any]:
    """Try so many mutants, all kinds in turn; what came of them."""
    counts: dict[str, Counter[str]] = {}
    failures = []
    began = time.process_time()
    with tempfile.TemporaryDirectory() as place:
        fuzz = Fuzz(Path(place))
        names = sorted(fuzz.seeds)
        for name in names:
            if (said := fuzz.try_one(name, fuzz.whole[name])) != "read":
                raise SystemExit(f"the seed {name} itself: {said}")
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.RLIM_INFINITY))
        for number in range(first, first + mutants):
            name = names[number % len(names)]
            content = mutated(fuzz.whole[name], np.random.default_rng(number))
            result = fuzz.try_one(name, content)
            kind = result if result in ("read", "refused") else "failed"
            counts.setdefault(name, Counter())[kind] += 1
            if kind == "failed":
                failures.append({"number": number, "kind": name, "what": result})
                print(failures[-1], flush=True)
            if number % 200 == 0:
                shutil.rmtree(Path(place) / "cache", ignore_errors=True)
    return {
        "mutants": mutants,
        "first": first,
        "kinds": {name: dict(sorted(counts[name].items())) for name in sorted(counts)},
        "failures": failures,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        "cpu_seconds": round(time.process_time() - began),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--mutants", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    found = run(arguments.mutants, arguments.first)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{found['mutants']:,} mutants, {len(found['failures'])} failures")
    sys.exit(bool(found["failures"]))
