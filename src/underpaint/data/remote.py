"""Files behind URLs, read through fsspec (extra `stream`), which is imported for a URL alone.

What fails is tried again after a while, since networks do; a file that is not there is not. Each
failure is one OSError with a sentence: fsspec's file systems have no common class for theirs.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from underpaint.errors import UserError

TRIES, WAIT = 4, 1.0  # times; seconds before the second, twice as many before each that follows
VERSION = (  # what file systems say of a file's content
    *("ETag", "etag", "checksum", "md5Hash", "blob_id", "sha256", "generation", "VersionId"),
    *("mtime", "LastModified", "Last-Modified", "last_modified", "updated", "created"),
)

T = TypeVar("T")


def is_url(text: str) -> bool:
    """Whether it has a scheme, as s3://bucket/set."""
    return "://" in text


def filesystem(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it. Raises UserError if it cannot be had."""
    try:
        from fsspec.core import url_to_fs

        found: tuple[Any, str] = url_to_fs(url)
    except ImportError as error:
        raise UserError(
            f"data '{url}': {_sentence(error)}; pip install 'underpaint[stream]' for https:// and "
            "hf://, s3fs for s3://, gcsfs for gs://"
        ) from None
    except Exception as error:  # of any file system's making: credentials, unknown schemes
        raise UserError(f"data '{url}' cannot be opened ({_sentence(error)})") from None
    return found


def describe(url: str) -> tuple[int, str]:
    """Bytes of a file, and what changes with its content, as far as is said. Raises OSError."""
    fs, path = filesystem(url)
    found = _tried(lambda: fs.info(path))
    if found.get("size") is None:
        raise OSError("the server does not say how large it is")
    return int(found["size"]), repr([(k, str(found[k])) for k in VERSION if k in found])


def copy(url: str, file: Path) -> None:
    """Copy a whole file to `file`. Raises OSError."""
    fs, path = filesystem(url)
    _tried(lambda: fs.get_file(path, str(file)))


def read(url: str, start: int, length: int) -> bytes:
    """`length` bytes from `start` on, by a range request. Raises OSError; may be called by threads.

    A server that does not know such requests sends all: that is an error, too.
    """
    fs, path = filesystem(url)
    found: bytes = _tried(lambda: fs.cat_file(path, start=start, end=start + length))
    if len(found) != length:
        raise OSError(
            f"{len(found):,} bytes came where {length:,} from {start:,} on were asked for: it was "
            "cut off, or the server knows no range requests"
        )
    return found


def glob(url: str) -> list[str]:
    """The URLs that match a pattern. Raises OSError."""
    fs, path = filesystem(url)
    return sorted(fs.unstrip_protocol(name) for name in _tried(lambda: fs.glob(path)))


def _tried(action: Callable[[], T]) -> T:
    for attempt in range(TRIES):
        try:
            return action()
        except (FileNotFoundError, PermissionError) as error:
            raise type(error)(f"{'not found' if _is_missing(error) else 'no access'}") from None
        except Exception as error:  # aiohttp's, botocore's and others
            if attempt == TRIES - 1:
                raise OSError(f"{_sentence(error)}, {TRIES} times") from None
            time.sleep(WAIT * 2**attempt)
    raise AssertionError("the last try returns or raises")


def _is_missing(error: OSError) -> bool:
    return isinstance(error, FileNotFoundError)


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
