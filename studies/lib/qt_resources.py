"""Read one file out of a Qt resource archive (.rcc), in which GCompris ships its pictures.

An archive is a header (`qres`, version, offsets of tree, data and names; all numbers are
big-endian), a tree of nodes, the files' bytes and the names. A folder's node says how many children
it has and which node is its first; node 0 is the root. Source: qresource.cpp of Qt.
"""

from __future__ import annotations

import struct

__all__ = ["read"]

HEADER = struct.Struct(">4s4i")
FOLDER = struct.Struct(">iH2i")  # name, flags, children, first child
FILE = struct.Struct(">iH2Hi")  # name, flags, country, language, data
COMPRESSED, IS_FOLDER = 0b101, 0b010


def read(archive: bytes, path: str) -> bytes:
    """The bytes of the file at `path` in `archive`.

    Raises KeyError where there is no such file, ValueError for what is no archive or compressed
    (pictures are not: they would not become smaller).
    """
    try:
        magic, version, tree, data, names = HEADER.unpack_from(archive)
        if magic != b"qres":
            raise ValueError("not a Qt resource archive")
        size = 14 if version == 1 else 22  # of a node: later versions add a time
        node = tree
        for name in path.split("/"):
            children = range(*_children(archive, node))
            node = _named(archive, name, [tree + size * child for child in children], names)
        _, flags, _, _, start = FILE.unpack_from(archive, node)
        if flags & IS_FOLDER:
            raise KeyError(path)
        if flags & COMPRESSED:
            raise ValueError(f"{path} is compressed")
        (length,) = struct.unpack_from(">I", archive, data + start)
    except struct.error:
        raise ValueError("not a whole Qt resource archive") from None
    start += data + 4
    return archive[start : start + length]


def _children(archive: bytes, node: int) -> tuple[int, int]:
    """The first child of a folder and the one behind its last; none for a file."""
    _, flags, count, first = FOLDER.unpack_from(archive, node)
    return (first, first + count) if flags & IS_FOLDER else (0, 0)


def _named(archive: bytes, name: str, nodes: list[int], names: int) -> int:
    """The one of `nodes` that has this name."""
    for node in nodes:
        at = names + FOLDER.unpack_from(archive, node)[0]
        (letters,) = struct.unpack_from(">H", archive, at)
        if archive[at + 6 : at + 6 + 2 * letters].decode("utf-16-be") == name:  # a hash between
            return node
    raise KeyError(name)
