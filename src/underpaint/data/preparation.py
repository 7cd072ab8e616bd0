"""`prepare(config.Data(source="photos", size=(64,)))`: a data set ready for training.

Images are decoded once (`cache`), have identities (`digests`) and a side (`split`); what is read
afterwards is a file mapped into memory (`dataset`).
"""

import time
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from underpaint import config as settings
from underpaint import cores
from underpaint.data import cache, digests, duplicates, shard_index, split
from underpaint.data.build import check_bad, decode_all
from underpaint.data.dataset import Dataset
from underpaint.data.decode import BITS, RESAMPLING, Options, parse_colour
from underpaint.data.readers.base import Contents, Source
from underpaint.data.source import find, is_there
from underpaint.data.streamed import Streamed
from underpaint.errors import UserError
from underpaint.handing_on import kept


def prepare(
    config: settings.Data,
    *,
    force: bool = False,
    verify: bool = False,
    workers: int = 0,
) -> Dataset:
    """Decode `config.source` into the cache, unless it is there, and return it.

    force: decode again. verify: hash the pixels of all images in the cache, not only of a few, and
    decode again if they are damaged. workers: threads; 0: one for each core. Raises UserError for
    data that cannot be used.
    """
    config = settings.checked(config)
    known, name = kept(), repr(config)
    if known is not None and name in known and not (force or verify):
        found: Dataset = known[name]
        return found
    settings.check_data(config)
    started = time.monotonic()
    workers = workers or cores.available()
    options = decoding(config)
    sources = [find(config.source)]
    held_out = held_out_source(config.held_out)
    sources += [held_out] if isinstance(held_out, Source) else []
    if any(source.shards for source in sources):
        _check_streamed(config, sources, verify)
        entry, report = shard_index.prepared(sources, options, workers, force)
        key = entry.about["content"]
    else:
        entry, report = _decoded(sources, options, config.max_bad, workers, force, verify)
        key = Path(report["cache"]).name
    data, *others = sources
    held_out = others[0] if others else held_out
    for part, source in enumerate(sources):
        bad = [b for b in entry.about["unreadable"] if b["part"] == part]
        check_bad(source.origin, bad, int((entry.part == part).sum()), config.max_bad)

    if config.only:
        side = _listed(config.only, entry)
    else:
        side = _sides(data, held_out, entry, config.audit_split)
    train_ids = np.flatnonzero(side == split.TRAIN)
    if len(train_ids) == 0:
        raise UserError(
            f"data '{data.origin}': all its images are held out too; give other images to train on"
        )
    if config.limit:
        by_hash = digests.order(entry.file_sha[train_ids])
        train_ids = np.sort(train_ids[by_hash[: config.limit]])
    held_out_ids = np.flatnonzero(side == split.HELD_OUT)
    stored = None if isinstance(entry.pixels, Streamed) else entry.pixels
    images = entry.pixels if isinstance(entry.pixels, Streamed) else entry.pixels.array
    if config.remove_duplicates:
        first = duplicates.first_of_each(np.asarray(images), key)
        train_ids = duplicates.kept(train_ids, held_out_ids, first)
        if len(train_ids) == 0:
            raise UserError(
                f"data '{data.origin}': every image is nearly equal to one that is held out; leave "
                "remove_duplicates out"
            )
    report |= {"seconds": time.monotonic() - started}
    report = _report(data, entry, options, side, train_ids) | report
    dataset = Dataset(
        images=images,
        labels=entry.label,
        label_names=tuple(entry.about["label_names"]),
        names=entry.names,
        train_ids=train_ids,
        held_out_ids=held_out_ids,
        key=key,
        report=report,
        file_digests=entry.file_sha,
        pixel_digests=entry.pixel_sha,
        stored=stored,
    )
    if known is not None:
        known[name] = dataset
    return dataset


def prepare_part(config: settings.Data, k: int, n: int, *, workers: int = 0) -> tuple[int, int]:
    """Index the k-th of n shares of the shards of `config.source`, from 1 on; `prepare` then joins.

    For several processes or machines, which share the cache. Returns how many shards and images
    these are. Raises UserError for data that are no shards.
    """
    config = settings.checked(config)
    settings.check_data(config)
    source = find(config.source)
    if not source.shards:
        raise UserError(
            f"data '{config.source}' is no list of shards, and only these are prepared in parts; "
            "give 'set-{0000..0999}.tar' or leave --part out"
        )
    workers = workers or cores.available()
    return shard_index.prepare_part(source, decoding(config), workers, k, n)


def _check_streamed(config: settings.Data, sources: list[Source], verify: bool) -> None:
    """Raise UserError for what shards that are streamed cannot do."""
    for source in sources:
        if not source.shards:
            raise UserError(
                f"data '{source.origin}' is not streamed, and '{config.source}' and held-out "
                f"'{config.held_out}' must both be shards or neither; pack it as .tar files"
            )
    if config.remove_duplicates:
        raise UserError(
            "data.remove_duplicates compares all images, and shards are not decoded at once; "
            "leave it out"
        )
    if verify:
        raise UserError("--verify hashes the pixels in the cache, and of shards none are kept")


def _decoded(
    sources: list[Source],
    options: Options,
    max_bad: float,
    workers: int,
    force: bool,
    verify: bool,
) -> tuple[cache.Entry, dict[str, Any]]:
    """The cache entry of all images, built unless it is there, and what to report of it.

    The names of files are forgotten: of a million they take much memory.
    """
    files = [_identify(source, workers) for source in sources]
    each = (chain(["source"], found.texts()) for found in files)
    key = digests.of_texts(chain([cache.FORMAT, repr(tuple(options))], *each))
    folder = cache.root() / "images" / key

    def build(part: Path) -> None:
        parts = [(source.origin, source.open()) for source in sources]
        with (part / "pixels.bin").open("wb") as pixels:
            decoded = decode_all(parts, options, max_bad, workers, pixels.write)
        for of in files:
            changed = (digests.stamps(of.base, of.names) != of.stamps).any(1)
            if changed.any():
                file = Path(of.base, of.names[int(changed.argmax())])
                raise UserError(
                    f"data: '{file}' changed while it was read; run again when it is whole"
                )
        cache.save(part, **decoded)

    load = partial(cache.load, every=True) if verify else cache.load
    there = (folder / cache.INDEX).is_file() and not force
    entry, reused = cache.built(folder, load, build, force)
    damaged = [
        f"what was remembered of {f.base} was damaged: hashed again" for f in files if f.damaged
    ]
    damaged += [f"the decoded images in {folder} were damaged: decoded again"] * (
        there and not reused
    )
    for place, source in enumerate(sources):
        sources[place] = source._replace(files=[], open=lambda: Contents(0, iter(())))
    return entry, {"cache": str(folder), "reused": reused, "damaged": damaged}


def decoding(config: settings.Data) -> Options:
    """How these settings decode an image. Raises UserError for a colour that is none."""
    background = parse_colour(config.background)
    size, channels = settings.image_size(config.size), settings.CHANNELS[config.channels]
    return Options(size, channels, config.fit, background, config.max_pixels, config.levels)


def held_out_source(text: str) -> str | int | Source:
    """What the setting `held_out` asks for: 'auto', a number (0: none) or a separate source."""
    if text == "auto":
        return text
    if text == "none":
        return 0
    if text.isascii() and text.isdigit():
        return int(text)
    if not is_there(text):
        raise UserError(
            f"held-out '{text}': give auto, none, a number of images, or images of their own "
            "(there is no such file or folder)"
        )
    return find(text)


def _identify(source: Source, workers: int) -> digests.Files:
    """All files of a source, with their sums: remembered, or hashed by one process at a time."""
    folder = cache.root() / "files"
    memory = folder / f"{digests.of_text(source.origin)[:32]}.safetensors"
    if (found := digests.remembered(source.base, source.files, memory)) is not None:
        return found
    with cache.locked(memory.with_suffix(".lock")), cache.writing(folder):
        return digests.of_files(source.base, source.files, memory, workers)


def _sides(
    data: Source, held_out: str | int | Source, entry: cache.Entry, share: float
) -> NDArray[np.int8]:
    """The side of each image, recorded when first decided; `share` > 0: held out for an audit."""
    if isinstance(held_out, Source):
        side = entry.part.astype(np.int8)  # TRAIN and HELD_OUT are the numbers of the parts
        held = entry.pixel_sha[side == split.HELD_OUT]
        also_held_out = digests.among(entry.pixel_sha, held)
        side[also_held_out & (side == split.TRAIN)] = split.ASIDE
        return side
    n = len(entry.label)
    if held_out == 0:
        return np.zeros(n, np.int8)
    if isinstance(held_out, int) and held_out >= n:
        raise UserError(f"held-out {held_out}: the data have {n} images; hold out fewer than that")

    wanted = held_out if isinstance(held_out, int) else None
    name = str(held_out)
    if share:
        wanted, name = round(share * n), f"audit {share:g}"
    path = cache.root() / "splits" / f"{digests.of_text(data.origin, name)[:32]}.npz"
    record = split.read_record(path)
    if record is None or (record.sides(entry.file_sha) < 0).any():
        with cache.locked(path.with_suffix(".lock")):
            record = split.read_record(path)
            side = split.assign(entry.file_sha, entry.pixel_sha, record, wanted)
            record = split.extended(record, entry.file_sha, side)
            with cache.writing(path.parent):
                split.write_record(path, record)
            return side
    return split.assign(entry.file_sha, entry.pixel_sha, record, wanted)


def _listed(path: str, entry: cache.Entry) -> NDArray[np.int8]:
    """TRAIN for the images whose files' sha256 are in `path`, ASIDE for all others."""
    try:
        sums = Path(path).expanduser().read_text(encoding="utf-8").split()
        listed = np.frombuffer(b"".join({bytes.fromhex(text) for text in sums}), np.uint8)
        listed = listed.reshape(-1, 32)
    except (OSError, ValueError) as error:
        raise UserError(
            f"data.only '{path}': expected a file of sha256 sums, one per line ({error})"
        ) from None
    missing = int((~digests.among(listed, entry.file_sha)).sum())
    if missing:
        raise UserError(
            f"data.only '{path}': {missing} of its {len(listed)} images are not in the "
            "data; give the data they were listed from"
        )
    chosen = digests.among(entry.file_sha, listed)
    return np.where(chosen, split.TRAIN, split.ASIDE).astype(np.int8)


def _hints(brightest: int, options: Options) -> list[str]:
    """What the person may have meant otherwise."""
    bits = next((b for b in (10, 12) if brightest <= 1 << (b - 8)), 0)
    if not bits or not brightest or options.levels < BITS:
        return []
    return [
        f"all images are nearly black (at most {brightest} of 255): where they hold values of "
        f"{bits} bits in files of 16, add --levels {bits}"
    ]


def _report(
    data: Source,
    entry: cache.Entry,
    options: Options,
    side: NDArray[np.int8],
    train_ids: NDArray[np.int64],
) -> dict[str, Any]:
    about = entry.about
    is_data = entry.part == 0
    n = int(is_data.sum())
    unlabelled, *counts = np.bincount(
        entry.label[is_data] + 1, minlength=len(about["label_names"]) + 1
    ).tolist()
    labels = dict(zip(about["label_names"], counts, strict=True))
    if labels and unlabelled:
        labels["(none)"] = unlabelled
    return {
        "source": data.origin,
        "images": n,
        "size": about["shape"][1:3],
        "channels": settings.named(options.channels),
        "sizes": about["sizes"],
        "labels": labels,
        "duplicates": about["duplicates"],
        "near_constant": about["near_constant"],
        "transparent": about["transparent"],
        "unreadable": [{"path": b["path"], "reason": b["reason"]} for b in about["unreadable"]],
        "unread": [
            {"files": len(names), "first": names[0], "reason": reason}
            for reason, names in {**data.unread, **about["unread"]}.items()
        ],
        "outside": [*data.outside, *about["outside"]],
        "hints": _hints(about["brightest"], options),
        "train": len(train_ids),
        "held_out": int((side == split.HELD_OUT).sum()),
        "set_aside": int((side == split.ASIDE).sum()),
        "resampling": RESAMPLING,
        "decode_seconds": about["seconds"],
    }
