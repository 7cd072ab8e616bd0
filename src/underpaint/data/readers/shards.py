"""Lists of shards, tar or parquet, which are streamed: nothing is decoded into the cache.

    'set-{0000..0999}.tar'   'train-*.parquet'   @list.txt (a shard a line)   a folder of .tar files

each on this machine or behind URLs (`remote`), as is one `https://…/set.tar`. Braces count with as
many digits as they are written with. Lines of a list count from its folder; # begins a comment.
"""

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from underpaint.bounded import DAMAGE, read_regular
from underpaint.data import remote
from underpaint.errors import UserError

BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
MOST = 10_000_000  # shards
TABLE = ".parquet"
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


class Shards(NamedTuple):
    """`origin` names them all, the same tomorrow; `places` are their paths or URLs."""

    origin: str
    places: list[str]


def is_list(text: str) -> bool:
    """Whether this names shards by its form: a list, a pattern of tars or tables, a URL."""
    if text.startswith("@") or remote.is_url(text):
        return True
    pattern = BRACES.search(text) or glob.has_magic(text)
    return bool(pattern) and text.lower().endswith((".tar", TABLE, *PACKED))


def find(text: str) -> Shards | None:
    """The shards that `text` names; None if it is something else. Raises UserError."""
    path = Path(text).expanduser()
    if path.exists():
        return _folder(path.resolve()) if path.is_dir() else None
    if not is_list(text):
        return None
    origin = absolute(text)
    if text.startswith("@"):
        places = [place for line in _lines(text[1:]) for place in _expanded(line)]
    else:
        places = [*_expanded(origin)]
    return _checked(Shards(origin, places))


def _folder(folder: Path) -> Shards | None:
    """The .tar files of a folder and its sub-folders, if there are any."""
    places = sorted(str(p) for p in folder.rglob("*.tar") if not p.name.startswith("."))
    return _checked(Shards(str(folder), places)) if places else None


def absolute(text: str) -> str:
    """Data by a name that does not hang on the folder in which one is."""
    if remote.is_url(text) or text.startswith("avatars:"):
        return text
    at = "@" if text.startswith("@") else ""
    return at + str(Path(text.removeprefix(at)).expanduser().absolute())


def _lines(path: str) -> Iterator[str]:
    """The shards in a list, which may itself lie behind a URL."""
    try:
        if remote.is_url(path):
            content = remote.read(path, 0, remote.describe(path)[0])
        else:
            content = read_regular(Path(path).expanduser())
        lines = content.decode().splitlines()
    except DAMAGE as error:
        said = getattr(error, "strerror", None) or error
        raise UserError(f"data '@{path}': the list of shards cannot be read ({said})") from None
    base = os.path.dirname(path if remote.is_url(path) else absolute(path))
    for line in (line.partition("#")[0].strip() for line in lines):
        if line:
            yield line if remote.is_url(line) else os.path.join(base, os.path.expanduser(line))


def _expanded(place: str) -> Iterator[str]:
    """The shards of a pattern; a place without one is itself, there or not."""
    found = BRACES.search(place)
    if found:
        first, last = (int(number) for number in found.groups())
        if not 0 <= last - first < MOST:
            raise UserError(f"data '{place}': {found[0]} is no range; give {{0000..0999}}")
        for number in range(first, last + 1):
            name = f"{number:0{len(found[1])}}"
            yield from _expanded(place[: found.start()] + name + place[found.end() :])
    elif not glob.has_magic(place):
        yield place
    elif remote.is_url(place):
        try:
            yield from remote.glob(place)
        except OSError as error:
            raise UserError(f"data '{place}': cannot be listed ({error})") from None
    else:
        yield from sorted(glob.glob(place))


def is_table(place: str) -> bool:
    """Whether a shard is a parquet file, by its name."""
    return place.lower().endswith(TABLE)


def check_plain(place: str, packed: bool) -> None:
    """Raise UserError for a shard that is packed."""
    if packed:
        raise UserError(
            f"data '{place}' is compressed, and shards are read at many places; unpack it "
            "(gunzip), since images are compressed as they are"
        )


def _checked(shards: Shards) -> Shards:
    """Raise UserError for no shards, one that is named twice, or one that is of another kind."""
    origin, places = shards
    if not places:
        raise UserError(f"data '{origin}': no shard matches; give 'set-{{0000..0999}}.tar'")
    if len(set(places)) < len(places):
        twice = next(place for place in places if places.count(place) > 1)
        raise UserError(f"data '{origin}': the shard '{twice}' is named twice")
    for place in places:
        check_plain(place, place.lower().endswith(PACKED))
        if not (place.lower().endswith(".tar") or is_table(place)):
            raise UserError(
                f"data '{place}' is neither .tar nor .parquet, and only these are streamed; what "
                "lies on this machine may be read by its path"
            )
    return shards
