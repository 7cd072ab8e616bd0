"""Decoding all images of a source in parallel, in order, with a count of sizes and failures.

Threads suffice: Pillow and hashlib release Python's lock. Small images are faster without.
"""

import hashlib
import math
import re
import time
import warnings
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from underpaint.core.alpha import premultiplied
from underpaint.data import digests
from underpaint.data.cache import Write
from underpaint.data.decode import Options, Unreadable, decode, fit, from_array, is_transparent
from underpaint.data.readers.base import Contents, Item, text_label
from underpaint.errors import UserError
from underpaint.progress import doing

CONSTANT = 2.0  # of 255: below this standard deviation an image is nearly constant
CHUNK = 16  # images a task of the pool
QUICK = 1e-3  # seconds an image; below it threads only wait for each other


TOGETHER = 1 << 20  # values of the images that are measured at once


class Decoded(NamedTuple):
    """What became of one image."""

    pixels: NDArray[np.uint8] | None  # None: unreadable
    original_size: tuple[int, int] = (0, 0)
    file_sha: bytes = b""
    pixel_sha: bytes = b""
    transparent: bool = False
    reason: str = ""
    constant: bool = False
    brightest: int = 0  # value of 255, but for the background


def decode_all(
    parts: list[tuple[str, Contents]],
    options: Options,
    max_bad: float,
    workers: int,
    write: Write,
    fewest: int = 2,
) -> dict[str, Any]:
    """Decode the data (first part) and a source of held-out images (second, if any).

    parts: origin and contents. Returns the arguments of `cache.save`. Raises UserError if more than
    `max_bad` of a part is unreadable, for fewer than `fewest` images, or for several sizes if none
    is asked.
    """
    started = time.monotonic()
    total = sum(contents.total for _, contents in parts)
    names: list[str] = []
    part_of = bytearray()
    labels: list[int] = []
    file_shas, pixel_shas = bytearray(), bytearray()
    label_names: tuple[str, ...] = ()
    done, constant, transparent, brightest = 0, 0, 0, 0
    sizes: Counter[str] = Counter()
    bad: list[dict[str, Any]] = []
    with warnings.catch_warnings(), doing("decoding images", total) as at:
        warnings.simplefilter("ignore")  # of decoders; what fails is in the report
        for part, (origin, contents) in enumerate(parts):
            texts: list[str | None] = []
            bad_here: list[dict[str, Any]] = []
            images = in_order(origin, contents.items, options, workers)
            for item, image in images:
                done += 1
                if image.pixels is None:
                    bad_here.append({"path": item.name, "reason": image.reason, "part": part})
                else:
                    if options.size is None:  # the first image's; all others must agree
                        options = options._replace(size=image.original_size)
                    check_size(origin, item.name, image.pixels, options)
                    write(image.pixels.data)
                    texts.append(item.label)
                    part_of.append(part)
                    file_shas += image.file_sha
                    pixel_shas += image.pixel_sha
                    names.append(item.name)
                    sizes["{}×{}".format(*image.original_size)] += 1
                    constant += image.constant
                    transparent += image.transparent and part == 0
                    brightest = max(brightest, image.brightest)
                if done % CHUNK == 0 or done == total:
                    at(done)
            check_bad(origin, bad_here, len(texts), max_bad)
            if part == 0:
                check_several(origin, len(texts), fewest)
                label_names = contents.label_names or natural_order(texts)
            labels += label_ids(origin, texts, label_names, part)
            bad += bad_here
    about: dict[str, Any] = {
        "shape": [len(names), *(options.size or ()), options.channels],
        "label_names": list(label_names),
        "sizes": dict(sizes.most_common()),
        "near_constant": constant,
        "transparent": transparent,  # of the data
        "brightest": brightest,
        "unreadable": bad,
        "unread": parts[0][1].unread,
        "outside": parts[0][1].outside,
        "seconds": time.monotonic() - started,
    }
    file_sha = np.frombuffer(file_shas, np.uint8).reshape(-1, 32)
    pixel_sha = np.frombuffer(pixel_shas, np.uint8).reshape(-1, 32)
    of_data = pixel_sha[: part_of.count(0)]
    about["duplicates"] = len(of_data) - len(digests.distinct(of_data)[0])
    return {
        "about": about,
        "names": names,
        "label": np.array(labels, np.int64),
        "part": np.frombuffer(part_of, np.uint8),
        "file_sha": file_sha,
        "pixel_sha": pixel_sha,
    }


def in_order(
    origin: str, items: Iterator[Item], options: Options, workers: int
) -> Iterator[tuple[Item, Decoded]]:
    """Decode and yield in order; in parallel if the first chunk shows that it pays."""

    def decoded(chunk: list[Item]) -> list[tuple[Item, Decoded]]:
        items = [item._replace(label=text_label(item.label)) for item in chunk]
        images = [_decode_one(item, options) for item in chunk]
        return [*zip(items, _measured(images, options), strict=True)]

    chunks = _chunks(origin, items)
    first = next(chunks, [])
    started = time.perf_counter()
    yield from decoded(first)
    if workers == 1 or time.perf_counter() - started < QUICK * len(first):
        for chunk in chunks:
            yield from decoded(chunk)
        return
    waiting: deque[Future[list[tuple[Item, Decoded]]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for chunk in chunks:
                waiting.append(pool.submit(decoded, chunk))
                if len(waiting) > 4 * workers:  # so many are in memory at a time
                    yield from waiting.popleft().result()
            for future in waiting:
                yield from future.result()
        finally:
            for future in waiting:
                future.cancel()


def _chunks(origin: str, items: Iterator[Item]) -> Iterator[list[Item]]:
    while True:
        try:
            chunk = list(islice(items, CHUNK))
        except OSError as error:  # not to be taken for an error in writing the cache
            raise UserError(f"data '{origin}' cannot be read ({error})") from None
        if not chunk:
            return
        yield chunk


def _decode_one(item: Item, options: Options) -> Decoded:
    """Never raises: a file that cannot be read is a result."""
    try:
        data = item.read()
        if isinstance(data, bytes):
            file_sha = hashlib.sha256(data).digest()
            pixels, original_size, transparent = decode(data, options)
        else:
            file_sha, original_size = digests.of_array(data), (data.shape[0], data.shape[1])
            image = from_array(data)
            pixels, transparent = fit(image, options), is_transparent(image)
    except Exception as error:  # archives raise RuntimeError, zlib.error, NotImplementedError, ...
        said = getattr(error, "strerror", None) or error
        known = isinstance(error, Unreadable)
        return Decoded(None, reason=str(error) if known else f"cannot be read ({said})")
    return Decoded(pixels, original_size, file_sha, digests.of_array(pixels), transparent)


def _measured(images: list[Decoded], options: Options) -> list[Decoded]:
    """The images with what is measured of their pixels: of small ones of one size together."""
    there = [i for i, image in enumerate(images) if image.pixels is not None]
    arrays = [pixels for image in images if (pixels := image.pixels) is not None]
    alike = len({pixels.shape for pixels in arrays}) == 1
    step = max(1, TOGETHER // arrays[0].size) if alike else 1
    for start in range(0, len(arrays), step):
        stack = np.stack(arrays[start : start + step])  # [k, H, W, C]
        spread = premultiplied(stack).std((1, 2), dtype=np.float32)  # of each channel
        constant = spread.max(1) < CONSTANT
        colours = stack[..., :3]
        seen = (colours != options.background[: colours.shape[3]]).any(3, keepdims=True)
        brightest = np.where(seen, colours, 0).max((1, 2, 3))
        for k, i in enumerate(there[start : start + step]):
            found = images[i]
            images[i] = found._replace(constant=bool(constant[k]), brightest=int(brightest[k]))
    return images


def check_size(origin: str, name: str, pixels: NDArray[np.uint8], options: Options) -> None:
    """Raise UserError for an image of another size than `options` say."""
    if pixels.shape[:2] != options.size:
        first = "{}×{}".format(*(options.size or ()))
        raise UserError(
            f"data '{origin}' has images of several sizes: {first}, but '{name}' has "
            "{}×{}; add the size that all shall get, for example --size 64".format(*pixels.shape)
        )


def check_bad(origin: str, bad: list[dict[str, Any]], good: int, max_bad: float) -> None:
    """Raise UserError if more than the share `max_bad` of the files could not be read."""
    total = good + len(bad)
    if not bad or (good and len(bad) <= max_bad * total):
        return
    first = f"'{bad[0]['path']}' {bad[0]['reason']}"
    if not good:
        raise UserError(
            f"data '{origin}': none of the {total} images could be read (the first: {first}); "
            "check that they are whole PNG, JPEG, WebP, BMP, GIF or TIFF files"
        )
    share = math.ceil(1000 * len(bad) / total) / 1000
    raise UserError(
        f"data '{origin}': {len(bad)} of {total} files could not be read (the first: {first}); "
        f"mend or remove them, or allow more with --max-bad {share}"
    )


def check_several(origin: str, images: int, fewest: int = 2) -> None:
    """Raise UserError for too few images to train on."""
    if images < fewest:
        raise UserError(f"data '{origin}' is one image; at least 2 are needed")


def natural_order(texts: list[str | None]) -> tuple[str, ...]:
    """Distinct labels, numbers inside them ordered by value: 2 before 10."""

    def key(text: str) -> tuple[list[str | int], str]:
        parts = re.split(r"([0-9]+)", text)  # text, number, text, ...
        return [int(p) if i % 2 else p for i, p in enumerate(parts)], text

    return tuple(sorted({t for t in texts if t is not None}, key=key))


def label_ids(origin: str, texts: list[str | None], names: tuple[str, ...], part: int) -> list[int]:
    """The number of each label, −1 for none. Raises UserError for held-out ones that are new."""
    ids = {name: i for i, name in enumerate(names)}
    if part == 1 and not names:
        return [-1] * len(texts)  # the data have no labels, so those of the held-out say nothing
    unknown = sorted({t for t in texts if t is not None} - set(ids))
    if unknown:
        shown = ", ".join(names[:8])
        raise UserError(
            f"held-out data '{origin}' has the label '{unknown[0]}', which the training data "
            f"lack; they have {shown}"
        )
    return [-1 if t is None else ids[t] for t in texts]
