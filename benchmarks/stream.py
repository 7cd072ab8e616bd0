"""Streaming from tar shards beside the cache of decoded images, and a million images in shards.

    python benchmarks/stream.py speed [--rounds 3]
    python benchmarks/stream.py million [--shards 1000] [--each 1000] [--steps 400]

`speed` reads batches of 64 images of 64×64 from the cache and from shards, here and by worker
processes, and trains a small network on one core with one worker on another: paired rounds, in an
order that alternates. `million` writes shards of tiny PNGs, indexes them in two processes
(`prepare --part`), joins and trains, and records the peak memory of every process.
Writes benchmarks/results/stream.json, a key each. Goals: training from shards is at least 90 % as
fast as from the cache, and no process takes more than 1 GiB.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import re
import resource
import statistics
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
RESULTS = Path(__file__).parent / "results" / "stream.json"
BATCH, GOAL = 64, 0.9
KINDS = {"png": ("PNG", 64), "jpeg": ("JPEG", 256)}  # format, and side before it is resized to 64
NETWORKS = (1_000, 5_000, 20_000)  # images/s that a network may take


def cpu() -> tuple[float, float]:
    """CPU seconds of this process, and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return used[0].ru_utime + used[0].ru_stime, used[1].ru_utime + used[1].ru_stime


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    about = tarfile.TarInfo(name)
    about.size = len(data)
    archive.addfile(about, io.BytesIO(data))


# --- speed ---------------------------------------------------------------------------------------


def write_set(folder: Path, kind: str, n: int, each: int) -> None:
    """Shards of n images, smooth and with some grain as photos are; and all of them in one tar."""
    import numpy as np
    from PIL import Image

    form, side = KINDS[kind]
    draws = np.random.default_rng(0)
    folder.mkdir()
    with tarfile.open(folder.with_suffix(".tar"), "w") as whole:
        for start in range(0, n, each):
            with tarfile.open(folder / f"set-{start // each:04}.tar", "w") as shard:
                for i in range(start, start + each):
                    rough = Image.fromarray(draws.integers(0, 256, (8, 8, 3), dtype=np.uint8))
                    pixels = np.asarray(rough.resize((side, side), Image.Resampling.BICUBIC))
                    grain = draws.integers(-8, 9, pixels.shape)
                    image = Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8))
                    image.save(file := io.BytesIO(), form)
                    add(shard, f"{i:06}.{kind}", file.getvalue())
                    add(whole, f"{i:06}.{kind}", file.getvalue())


def timed(read: Callable[[int], Any], batches: int) -> dict[str, float]:
    """Images a second, and CPU milliseconds an image, of this process."""
    read(0)
    began, used = time.perf_counter(), time.process_time()
    for k in range(1, batches + 1):
        read(k)
    seconds, used = time.perf_counter() - began, time.process_time() - used
    n = batches * BATCH
    return {"images_per_s": n / seconds, "cpu_ms_per_image": 1000 * used / n}


def reading(folder: Path, kind: str, rounds: int) -> dict[str, Any]:
    """Batches alone, from the cache and from shards; medians of paired rounds."""
    from underpaint import config, data
    from underpaint.data.ahead import Ahead

    cached = data.prepare(config.Data(source=f"{folder / kind}.tar", size=(64,)))
    streamed = data.prepare(config.Data(source=str(folder / kind), size=(64,)))
    assert isinstance(streamed.images, data.Streamed)
    images, ids = streamed.images, streamed.train_ids
    order = data.Order(ids, 0, images.shard[ids], window=1024)
    batches = len(ids) // BATCH
    waits = {k: Ahead(images, order, workers=k) for k in (1, 2)}

    def ahead(workers: int) -> Callable[[int], Any]:
        return lambda k: waits[workers].take(k * BATCH, BATCH, BATCH)

    ways: dict[str, Callable[[int], Any]] = {
        "cache": lambda k: cached.batch(order.at(k * BATCH, BATCH)),
        "shards, no worker": lambda k: streamed.batch(order.at(k * BATCH, BATCH)),
        "shards, 1 worker": ahead(1),
        "shards, 2 workers": ahead(2),
    }
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for number in range(rounds):
        for way in [*ways][:: 1 if number % 2 == 0 else -1]:
            found[way].append(timed(ways[way], batches - 1))
            for wait in waits.values():
                wait.close()
    result: dict[str, Any] = {
        way: {name: statistics.median(f[name] for f in all_) for name in all_[0]}
        for way, all_ in found.items()
    }
    cost = result["shards, no worker"]["cpu_ms_per_image"]
    result["cores_for_a_network_of_images_per_s"] = {n: n * cost / 1000 for n in NETWORKS}
    result["bytes_per_image"] = int(images.length.mean())
    return result


def training(folder: Path, kind: str, rounds: int, out: Path) -> dict[str, Any]:
    """Whole runs on one core, of shards with one worker.

    Images a second of their steps, and CPU seconds of the process that trains and of its worker. On
    a machine that other work shares, `cpu_ratio` says what `ratio` would be with a core for each.
    """
    from underpaint import config
    from underpaint.training import train

    found: dict[str, list[dict[str, float]]] = {"cache": [], "shards": []}
    sources = {"cache": f"{folder / kind}.tar", "shards": str(folder / kind)}
    for number in range(rounds):
        for way in [*sources][:: 1 if number % 2 == 0 else -1]:
            stage = {"images": 960, "batch": BATCH, "mask": "patch", "rate": 0.75}
            how: dict[str, Any] = {"threads": 1, "precision": "fp32", "workers": 1}
            how |= {"log_every": 64, "checkpoint_every": 960}
            run = config.from_dict(
                config.Run,
                {
                    "data": {"source": sources[way], "size": 64, "window": 1024},
                    "stages": {"masked": stage},
                    "train": how | {"check_every": -1, "sample_every": -1},
                },
                "benchmark: ",
            )
            began = cpu()
            path = train(run, out, quiet=True, overwrite=True)
            lines = [json.loads(line) for line in (path / "metrics.jsonl").open()]
            steps = [line["images_per_s"] for line in lines if line["kind"] == "step"]
            here, workers = (now - before for now, before in zip(cpu(), began, strict=True))
            each = {"images_per_s": statistics.median(steps[1:]), "cpu_seconds": here}
            found[way].append(each | {"workers_cpu_seconds": workers})
    pairs = [*zip(found["shards"], found["cache"], strict=True)]
    ratios = [s["images_per_s"] / c["images_per_s"] for s, c in pairs]
    of_cpu = [c["cpu_seconds"] / s["cpu_seconds"] for s, c in pairs]
    result: dict[str, Any] = {"ratio": statistics.median(ratios), "ratios": ratios}
    return found | result | {"cpu_ratio": statistics.median(of_cpu), "cpu_ratios": of_cpu}


def speed(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["UNDERPAINT_CACHE"] = str(folder / "cache")
        for kind in KINDS:
            write_set(folder / kind, kind, args.images, 256)
            result[kind] = {"reading": reading(folder, kind, args.rounds)}
            result[kind]["training"] = training(folder, kind, args.rounds, folder / "run")
            print(kind, json.dumps(result[kind], indent=1))
    met = min(result[kind]["training"]["ratio"] for kind in KINDS) >= GOAL
    print(f"goal {GOAL:.0%} of the cache's images/s with a core for the worker: {met}")
    return result | {"images": args.images, "batch": BATCH, "rounds": args.rounds, "met": met}


# --- a million -----------------------------------------------------------------------------------


def png(pixels: bytes, side: int) -> bytes:
    """A PNG of side × side RGB pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        total = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", total)

    rows = b"".join(b"\0" + pixels[k : k + 3 * side] for k in range(0, len(pixels), 3 * side))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows, 1)) + END


END = b"\0\0\0\0IEND" + struct.pack(">I", zlib.crc32(b"IEND"))


def write_million(folder: Path, shards: int, each: int) -> None:
    """Shards of PNGs of 16×16: 4×4 blocks of colours, all different."""
    import numpy as np

    folder.mkdir()
    draws = np.random.default_rng(0)
    for number in range(shards):
        blocks = draws.integers(0, 256, (each, 4, 4, 3), dtype=np.uint8)
        pixels = blocks.repeat(4, 1).repeat(4, 2)
        with (folder / f"set-{number:05}.tar").open("wb") as file:
            for i, image in enumerate(pixels):
                data = png(image.tobytes(), 16)
                about = tarfile.TarInfo(f"{number * each + i:09}.png")
                about.size = len(data)
                file.write(about.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512))
            file.write(bytes(1024))


class Peak:
    """The largest memory of a process and of its children, in MiB, looked at now and then."""

    def __init__(self) -> None:
        self.most: dict[int, dict[str, int]] = {}
        self.main = 0
        self._end = threading.Event()

    @contextmanager
    def of(self, main: int) -> Iterator[None]:
        """Look until the block ends."""
        self.main = main
        thread = threading.Thread(target=self._look)
        thread.start()
        try:
            yield
        finally:
            self._end.set()
            thread.join()

    def _look(self) -> None:
        while not self._end.wait(0.1):
            for pid in [self.main, *_children(self.main)]:
                try:
                    said = Path(f"/proc/{pid}/status").read_text()
                except OSError:  # it has ended
                    continue
                known = self.most.setdefault(pid, {})
                for key, name in (("VmHWM", "rss"), ("RssAnon", "anonymous")):
                    if found := re.search(rf"{key}:\s+(\d+)", said):
                        known[name] = max(known.get(name, 0), int(found[1]) >> 10)

    def result(self) -> dict[str, Any]:
        """Of the process, and the largest of its children."""
        others = [most for pid, most in self.most.items() if pid != self.main]
        result: dict[str, Any] = {"main_mib": self.most[self.main]}
        if others:
            largest = {name: max(o.get(name, 0) for o in others) for name in ("rss", "anonymous")}
            result |= {"children": len(others), "largest_child_mib": largest}
        return result


def _children(pid: int) -> list[int]:
    try:
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def command(*words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "underpaint", *words], stdout=subprocess.PIPE)


def measured(*words: str) -> dict[str, Any]:
    """A command's wall seconds and peak memory."""
    began, peak, process = time.monotonic(), Peak(), command(*words)
    with peak.of(process.pid):
        process.communicate()
    if process.returncode:
        sys.exit(f"underpaint {' '.join(words)} failed")
    return {"seconds": time.monotonic() - began, **peak.result()}


def million(args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        os.environ["UNDERPAINT_CACHE"] = str(folder / "cache")
        began = time.monotonic()
        write_million(folder / "set", args.shards, args.each)
        result: dict[str, Any] = {"written_seconds": time.monotonic() - began}
        result |= {"shards": args.shards, "images": args.shards * args.each}
        shards = str(folder / "set" / f"set-{{00000..{args.shards - 1:05}}}.tar")
        began, other = time.monotonic(), command("prepare", shards, "--part", "1/2")
        result["part_2_of_2"] = measured("prepare", shards, "--part", "2/2")
        other.communicate()
        result["both_parts_seconds"] = time.monotonic() - began
        result["join"] = measured("prepare", shards)
        result["open_again"] = measured("prepare", shards)
        images = str(args.steps * BATCH)
        stage = ["--stages.whole.images", images, "--stages.whole.batch", str(BATCH)]
        small = ["--network.width", "64", "--network.depth", "2", "--network.heads", "2"]
        small += ["--preset", "masked", "--network.kind", "dit", "--stages.masked.images", images]
        run = ["train", "--data", shards, "--out", str(folder / "run"), "--train.workers", "2"]
        result["train"] = measured(*run, *small, *stage) | {"steps": 2 * args.steps}
        record = folder / "run" / "images.json"
        result["identities"] = {k: v for k, v in json.loads(record.read_text()).items() if v != ""}
    peaks = [
        part[who][kind]
        for part in result.values()
        if isinstance(part, dict)
        for who in ("main_mib", "largest_child_mib")
        if who in part
        for kind in ("rss",)
    ]
    result |= {"largest_rss_mib": max(peaks), "met": max(peaks) <= 1024}
    print(json.dumps(result, indent=1))
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("speed", "million"))
    parser.add_argument("--images", type=int, default=1024, help="speed: images of each kind")
    parser.add_argument("--rounds", type=int, default=3, help="speed: paired rounds")
    parser.add_argument("--shards", type=int, default=1000, help="million: shards")
    parser.add_argument("--each", type=int, default=1000, help="million: images a shard")
    parser.add_argument("--steps", type=int, default=200, help="million: steps of each stage")
    parser.add_argument("--folder", help="where a gigabyte or two may lie for the while")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    found = (speed if args.what == "speed" else million)(args)
    found["machine"] = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    found["load"] = os.getloadavg()[0]
    known = json.loads(args.out.read_text()) if args.out.exists() else {}
    args.out.write_text(json.dumps(known | {args.what: found}, indent=1) + "\n")
    return 0 if found["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
