"""What is known of the images in shards, found once; their pixels are not kept (`streamed`).

    ROOT/shards/…/KEY.safetensors       of each shard its images: label, hashes, name, offset, bytes
    ROOT/streams/KEY/index.safetensors  the same of all shards of a source, joined, and mapped

A shard is read and decoded whole for its index. So an interrupted `prepare` goes on where it was,
shards that are added are read alone, and several machines may each index a part of the shards into
a shared cache. KEY hashes where a shard is, what is said of its content, options and FORMAT.
"""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from underpaint.bounded import DAMAGE, checked
from underpaint.data import cache, digests, index, remote
from underpaint.data.build import check_several, decode_all, label_ids, natural_order
from underpaint.data.decode import Options
from underpaint.data.readers import tables, tar
from underpaint.data.readers.base import Item, Source, folder_labels, head_of, kind_of
from underpaint.data.readers.shards import check_plain, is_table
from underpaint.data.streamed import AT_ONCE, Streamed
from underpaint.errors import UserError
from underpaint.progress import doing, following

FORMAT = "1"  # raise it when the same shards would give another index
JOINED = "2"  # the same of several indices that are joined


def prepared(
    sources: list[Source], options: Options, workers: int, force: bool
) -> tuple[cache.Entry, dict[str, Any]]:
    """What is known of all images of `sources` (the data, perhaps held-out ones), and of that.

    Each shard that has no index yet gets one. Raises UserError, which names the shard, for one that
    cannot be read.
    """
    shards = [(part, place) for part, source in enumerate(sources) for place in source.shards]
    keys = _keys([place for _, place in shards], options)
    parts = [f"{part} {key}" for (part, _), key in zip(shards, keys, strict=True)]
    folder = cache.root() / "streams" / digests.of_texts([JOINED, FORMAT, *parts])
    load = partial(_load, options=options, places=[place for _, place in shards])
    there = (folder / cache.INDEX).is_file() and not force

    def build(out: Path) -> None:
        places = [place for _, place in shards]
        _index_each(places, keys, options, workers, force)
        with doing("joining the shards' indices"):
            _join(out, sources, shards, keys)

    entry, reused = cache.built(folder, load, build, force)
    damaged = [f"the index in {folder} was damaged: built again"] * (there and not reused)
    return entry, {"cache": str(folder), "reused": reused, "damaged": damaged}


def prepare_part(source: Source, options: Options, workers: int, k: int, n: int) -> tuple[int, int]:
    """Index the k-th of n shares of the shards, from 1 on; how many shards, and images."""
    places = source.shards[k - 1 :: n]
    return len(places), _index_each(places, _keys(places, options), options, workers, False)


def _keys(places: list[str], options: Options) -> list[str]:
    """What names the index of each shard: where it is, what is said of its content, and options."""

    def key(place: str) -> str:
        try:
            if remote.is_url(place):
                size, version = remote.describe(place)
                said = f"{size} {version}"
            elif (stamp := digests.stamp(place)) == (0, 0, 0):
                raise OSError("not found")
            else:
                said = repr(stamp)
        except OSError as error:
            raise UserError(
                f"shard '{place}' cannot be read ({error}); bring it there, or name only shards "
                "that are there"
            ) from None
        return digests.of_text(FORMAT, cache.FORMAT, place, said, repr(tuple(options)))

    found = []
    with doing("looking at the shards", len(places)) as at, ThreadPoolExecutor(AT_ONCE) as pool:
        for name in pool.map(key, places):
            found.append(name)
            at(len(found))
    return found


def _index_each(
    places: list[str], keys: list[str], options: Options, workers: int, force: bool
) -> int:
    """Index each shard that has no index yet; how many images they all hold."""
    images = 0
    with doing("indexing shards", len(places)) as at:
        for done, (place, key) in enumerate(zip(places, keys, strict=True), 1):
            path = _path(key)
            try:
                if force:
                    raise FileNotFoundError
                about = index.read(path).about
            except DAMAGE:  # or not there
                with following(None):  # of each shard nothing is shown
                    about = _index(path, place, key, options, workers)
            images += about["shape"][0]
            at(done)
    return images


def _path(key: str) -> Path:
    return cache.root() / "shards" / key[:2] / f"{key}.safetensors"


def _index(path: Path, place: str, key: str, options: Options, workers: int) -> dict[str, Any]:
    """Read and decode a shard, and write what is known of its images to `path`."""
    places: dict[str, tuple[int, int]] = {}

    def noted(items: Iterator[Item]) -> Iterator[Item]:
        for item in items:
            places[item.name] = item.place
            yield item

    column, size = "", 0  # of images in parquet
    with _local(place) as file:
        if is_table(place):
            contents, column, size = tables.shard(file, place)
        else:
            check_plain(place, kind_of(head_of(file)) in tar.OPENERS)
            contents = tar.contents(file, place, folders=False)
        items = [(place, contents._replace(items=noted(contents.items)))]
        found = decode_all(items, options, 1.0, workers, lambda _: None, fewest=1)
    if _keys([place], options) != [key]:
        raise UserError(f"shard '{place}' changed while it was read; run again when it is whole")
    members = found["names"]
    texts = index.Texts.of([f"{place.rpartition('/')[2]}/{name}" for name in members])
    arrays = {name: found[name] for name in ("label", "file_sha", "pixel_sha")}
    where = np.array([places[name] for name in members], np.int64)
    arrays |= {"offset": where[:, 0].copy(), "length": where[:, 1].copy()}
    about: dict[str, Any] = found["about"]
    about["folders"] = not column and any("/" in name for name in members)
    about |= {"column": column, "bytes": size, "classes": contents.label_names is not None}
    with cache.writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        index.write(path, arrays | {"names": texts.text, "ends": texts.ends}, about)
    return about


@contextmanager
def _local(place: str) -> Iterator[Path]:
    """A shard as a file on this machine: one behind a URL is copied for the while."""
    if not remote.is_url(place):
        yield Path(place)
        return
    with tempfile.TemporaryDirectory(prefix="underpaint-") as folder:
        file = Path(folder, "shard")
        try:
            remote.copy(place, file)
        except OSError as error:
            raise UserError(
                f"shard '{place}' cannot be copied ({error}); run again, and it goes on there"
            ) from None
        yield file


def _join(out: Path, sources: list[Source], shards: list[tuple[int, str]], keys: list[str]) -> None:
    """Write the index of all shards into the folder `out`."""
    columns: dict[str, list[NDArray[Any]]] = {}
    abouts: list[dict[str, Any]] = []
    ends = 0
    for number, ((part, _), key) in enumerate(zip(shards, keys, strict=True)):
        arrays, about = index.read(_path(key))
        n = about["shape"][0]
        abouts.append(about)
        more = {"part": np.full(n, part, np.uint8), "shard": np.full(n, number, np.int32)}
        for name, array in (arrays | more | {"ends": arrays["ends"] + ends}).items():
            columns.setdefault(name, []).append(np.array(array))  # a copy: no thousand files open
        ends += len(arrays["names"])
    label_names = _labels(sources, shards, abouts, columns)
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    del columns
    of_data = joined["part"] == 0
    for part, source in enumerate(sources):
        check_several(source.origin, int((joined["part"] == part).sum()), 1 if part else 2)
    about = _about(shards, abouts)
    distinct = len(np.unique(digests.keys(joined["pixel_sha"][of_data])))
    content = hashlib.sha256(f"{cache.FORMAT} {about['shape'][1:]}".encode())
    for name in ("part", "shard", "file_sha", "pixel_sha"):  # the order follows from shards, too
        content.update(joined[name].data)
    tables = np.array([bool(column) for column in about["columns"]])[joined["shard"]]
    content.update(np.where(tables, joined["offset"], 0).data)  # row groups
    about |= {
        "shape": [len(of_data), *about["shape"][1:]],
        "label_names": list(label_names),
        "duplicates": int(of_data.sum()) - distinct,
        "content": content.hexdigest(),
    }
    index.write(out / cache.INDEX, joined, about)


def _labels(
    sources: list[Source],
    shards: list[tuple[int, str]],
    abouts: list[dict[str, Any]],
    columns: dict[str, list[NDArray[Any]]],
) -> tuple[str, ...]:
    """The names of all labels, by which those in `columns` then count.

    Where no shard of the data has any, folders inside the shards are the labels.
    """

    def members(k: int) -> list[str]:
        ends = columns["ends"][k]
        before = int(columns["ends"][k - 1][-1]) if k else 0
        return [name.partition("/")[2] for name in index.Texts(columns["names"][k], ends - before)]

    texts: list[list[str]] = [about["label_names"] for about in abouts]
    data = [k for k, (part, _) in enumerate(shards) if part == 0]
    if not any(texts[k] for k in data) and any(abouts[k]["folders"] for k in data):
        for part in range(len(sources)):
            mine = [k for k, (of, _) in enumerate(shards) if of == part]
            found = iter(folder_labels([name for k in mine for name in members(k)]))
            for k in mine:
                of_shard = [next(found) for _ in columns["label"][k]]
                texts[k] = sorted({text for text in of_shard if text is not None})
                number = {text: i for i, text in enumerate(texts[k])} | {None: -1}
                columns["label"][k] = np.array([number[text] for text in of_shard], np.int64)
    names = natural_order([text for k in data for text in texts[k]])
    listed = {tuple(texts[k]) if abouts[k].get("classes") else () for k in data}
    if len(listed) == 1 and listed != {()}:  # a table's classes, which have an order
        names = listed.pop()
    for k, (part, _) in enumerate(shards):
        numbers = label_ids(sources[part].origin, [*texts[k]], names, part)
        columns["label"][k] = np.array([*numbers, -1], np.int64)[columns["label"][k]]
    return names


def _about(shards: list[tuple[int, str]], abouts: list[dict[str, Any]]) -> dict[str, Any]:
    """What is known of all shards together. Raises UserError where their images differ in size."""
    first = abouts[0]["shape"][1:]
    sizes: Counter[str] = Counter()
    unread: dict[str, list[str]] = {}
    bad: list[dict[str, Any]] = []
    for (part, place), about in zip(shards, abouts, strict=True):
        if about["shape"][1:] != first:
            raise UserError(
                f"shard '{place}' has images of {about['shape'][1]}×{about['shape'][2]}, and the "
                f"first one has {first[0]}×{first[1]}; add the size that all shall get, for "
                "example --size 64"
            )
        base = place.rpartition("/")[2]
        bad += [b | {"path": f"{base}/{b['path']}", "part": part} for b in about["unreadable"]]
        sizes.update(about["sizes"])
        for reason, names in about["unread"].items() if part == 0 else ():
            # of a million files one name is shown, and how many there are
            named = [] if reason in unread else [f"{base}/{names[0]}"]
            unread.setdefault(reason, []).extend([*named, *[""] * (len(names) - len(named))])
    of_data = [about for (part, _), about in zip(shards, abouts, strict=True) if part == 0]
    rows = sum(about["shape"][0] for about in abouts if about.get("column"))
    return {
        "shape": abouts[0]["shape"],
        "sizes": dict(sizes.most_common()),
        "near_constant": sum(about["near_constant"] for about in abouts),
        "transparent": sum(about["transparent"] for about in of_data),
        "brightest": max(about["brightest"] for about in abouts),
        "unreadable": bad,
        "unread": unread,
        "outside": [],
        "seconds": sum(about["seconds"] for about in abouts),
        "columns": [about.get("column", "") for about in abouts],
        "row_bytes": sum(about.get("bytes", 0) for about in abouts) / max(1, rows),
    }


def _load(folder: Path, options: Options, places: list[str]) -> cache.Entry | None:
    """The entry in `folder`, None if there is none or it is damaged."""
    try:
        arrays, about = index.read(folder / cache.INDEX)
        n, *_ = shape = tuple(checked(about, cache.ABOUT, more=True)["shape"])
        names = index.Texts(arrays.pop("names"), arrays.pop("ends"))
        if len(names) != n or any(len(array) != n for array in arrays.values()):
            return None
        shard, offset, length = (arrays.pop(name) for name in ("shard", "offset", "length"))
        columns = [str(column) for column in about.get("columns", [""] * len(places))]
        if len(columns) != len(places):
            return None
        pixels = Streamed(
            shape=shape,
            options=options._replace(size=(shape[1], shape[2])),
            places=places,
            names=names,
            shard=shard,
            offset=offset,
            length=length,
            file_sha=arrays["file_sha"],
            columns=columns,
            row_bytes=float(about.get("row_bytes", 0)),
        )
        return cache.Entry(pixels, names=names, about=about, **arrays)
    except DAMAGE:
        return None  # whatever is wrong with it, building it anew is the answer
