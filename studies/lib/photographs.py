"""Cut photographs into pictures of 64×64: 20,000 to train on, 2,500 of other photographs held out.

    python -m studies.lib.photographs [--out runs/data] [--size 128]
    underpaint train --data runs/data/photographs-64.zip \\
        --held-out runs/data/photographs-64-held-out.zip ...

Needs a Debian 12 whose apt reaches its mirror, and dpkg-deb; nothing is installed. The 139
photographs are in packages that Debian holds to be free: wallpapers of KDE Plasma, MATE and Lomiri,
and the animals and buildings of GCompris, since few wallpapers are photographs. photographs.csv
lists them: name, side, package, file (GCompris has its files in Qt resource archives), author and
licence, and the first digits of the file's sha256. Author and licence are what the package's
copyright file says. That of GCompris names the authors of ten of its animals; for the others it is
what it says of their folder or of all of its files. Left out were drawings, photographs with next
to nothing in them or with a frame, and people making music. Each photograph is there once, whatever
other sizes and crops its package has. The sides were drawn for each package and folder by the
sha256 of the names.

A crop is a square whose side is between 1/8 and all of its photograph's shorter side, its logarithm
being uniform, at a uniform place, and reduced with a Lanczos filter; nothing is enlarged or
mirrored. Crops with next to nothing in them, of clear sky or of what is out of focus, are drawn
again: those that deviate little from what their 8×8 averages show.
The same pictures come out each time.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import os
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from studies.lib import qt_resources
from underpaint.errors import UserError
from underpaint.io import replacing, writing

__all__ = ["Photo", "crops", "listed", "opened", "unpack", "write"]

LIST = Path(__file__).with_suffix(".csv")
COUNTS = {"train": 20_000, "held-out": 2_500}
SMALLEST = 8  # the smallest crop's side is the photograph's shorter side divided by this
AVERAGES, PLAIN = 8, 6.0  # of a crop a side; its least deviation from them, of 255
TRIES = 50  # draws for each crop that is wanted
SEED = 0


class Photo(NamedTuple):
    """A line of the list. `side`: train or held-out; `file`: as in the package, or within an .rcc
    of it; `sha256`: its first digits."""

    name: str
    side: str
    package: str
    file: str
    author: str
    licence: str
    sha256: str


def main() -> int:
    """Make both files, unless they are there."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("runs/data"), help="folder")
    parser.add_argument("--size", type=int, default=64, help="pixels a side")
    given = parser.parse_args()
    if not 8 <= given.size <= 256:
        parser.error(f"--size {given.size}: give 8 to 256; the photographs hold no more")
    places = {
        "train": given.out / f"photographs-{given.size}.zip",
        "held-out": given.out / f"photographs-{given.size}-held-out.zip",
    }
    try:
        make({side: place for side, place in places.items() if not place.is_file()}, given.size)
    except UserError as error:
        parser.error(str(error))
    print(f"{places['train']} and {places['held-out']} are there")
    return 0


def make(places: dict[str, Path], size: int) -> None:
    """Fetch the photographs of these sides and write the files, of which none is there yet."""
    photos = {side: [photo for photo in listed() if photo.side == side] for side in places}
    for place in places.values():
        with writing(place):
            place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for package in sorted({photo.package for found in photos.values() for photo in found}):
            print(f"fetching {package}", flush=True)
            unpack(package, Path(folder))
        for side, place in places.items():
            write(photos[side], Path(folder), place, size, COUNTS[side])


def listed() -> list[Photo]:
    """All photographs of the list."""
    with LIST.open(encoding="utf-8", newline="") as file:
        return [Photo(**row) for row in csv.DictReader(file)]


def unpack(package: str, folder: Path) -> None:
    """Fetch a package and lay its files into `folder`/`package`. Nothing is installed."""
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise UserError(f"{program} is not there: the photographs are in packages of Debian 12")
    asked = subprocess.run(
        ["apt-get", "download", package],
        cwd=folder,
        env=os.environ | {"LC_ALL": "C"},
        capture_output=True,
        text=True,
    )
    archives = list(folder.glob(f"{package}_*.deb"))
    if asked.returncode or not archives:
        said = [line[2:].strip() for line in asked.stderr.splitlines() if line.startswith("E:")]
        raise UserError(
            f"apt-get cannot fetch {package} of Debian 12 ({said[0] if said else 'no file came'}); "
            "see to the network and `apt-get update`, then run again"
        )
    laid = subprocess.run(
        ["dpkg-deb", "-x", archives[0], folder / package], capture_output=True, text=True
    )
    if laid.returncode:
        raise UserError(f"dpkg-deb cannot unpack {package} ({laid.stderr.strip()}); is disk left?")


def write(photos: list[Photo], folder: Path, place: Path, size: int, count: int) -> None:
    """Write `count` crops into a zip of PNG files, as many of each photograph; the same bytes for
    the same photographs. `folder`: where the packages are unpacked."""
    with writing(place), replacing(place) as part, zipfile.ZipFile(part, "w") as archive:
        for i, photo in enumerate(photos):
            wanted = len(range(i, count, len(photos)))
            for k, crop in enumerate(crops(opened(photo, folder), photo.name, size, wanted)):
                stored = zipfile.ZipInfo(f"{photo.name}-{k:04}.png")  # of 1980: no clock in it
                archive.writestr(stored, _png(crop))
            if (i + 1) % 20 == 0 or i + 1 == len(photos):
                print(f"{place}: {i + 1} of {len(photos)} photographs", flush=True)


def opened(photo: Photo, folder: Path) -> Image.Image:
    """The photograph, from the unpacked packages. Raises UserError if it is not the listed one."""
    archive, within, inside = photo.file.partition(".rcc/")
    try:
        found = (folder / photo.package / (archive + within.rstrip("/"))).read_bytes()
        data = qt_resources.read(found, inside) if within else found
    except (OSError, KeyError, ValueError) as error:
        raise UserError(
            f"{photo.package} has no {photo.file} ({error}); that of Debian 12 has it"
        ) from None
    if not hashlib.sha256(data).hexdigest().startswith(photo.sha256):
        raise UserError(
            f"{photo.file} of {photo.package} is not the listed one; that of Debian 12 is"
        )
    return Image.open(io.BytesIO(data)).convert("RGB")


def crops(image: Image.Image, name: str, size: int, count: int) -> Iterator[Image.Image]:
    """`count` crops of size×size; which ones depends on `name` and the photograph alone.

    Raises UserError for a photograph that is too small, or plain nearly everywhere.
    """
    image = _reduced(image, SMALLEST * size)
    shorter = min(image.size)
    if shorter < size:
        raise UserError(f"{name} is smaller than {size} pixels: a crop of it would be enlarged")
    digest = hashlib.sha256(name.encode()).digest()
    rng = np.random.default_rng([SEED, int.from_bytes(digest[:8], "big")])
    smallest = max(size, shorter / SMALLEST)
    found = 0
    for _ in range(TRIES * count):
        if found == count:
            return
        side = round(smallest * (shorter / smallest) ** rng.random())
        left, top = (int(rng.integers(length - side + 1)) for length in image.size)
        box = (left, top, left + side, top + side)
        crop = image.resize((size, size), Image.Resampling.LANCZOS, box=box)
        if not _is_plain(crop):
            found += 1
            yield crop
    if found < count:
        raise UserError(f"{name}: next to nothing is in it, leave it out of {LIST.name}")


def _reduced(image: Image.Image, shorter: int) -> Image.Image:
    """With a shorter side of so many pixels, if it has more."""
    scale = shorter / min(image.size)
    if scale >= 1:
        return image
    width, height = (max(shorter, round(length * scale)) for length in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _is_plain(crop: Image.Image) -> bool:
    """Whether next to nothing is in it but a gradient."""
    averages = crop.resize((AVERAGES, AVERAGES), Image.Resampling.BOX)
    gradient = averages.resize(crop.size, Image.Resampling.BICUBIC)
    difference = np.asarray(crop, np.float32) - np.asarray(gradient, np.float32)
    return float(difference.std()) < PLAIN


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


if __name__ == "__main__":
    raise SystemExit(main())
