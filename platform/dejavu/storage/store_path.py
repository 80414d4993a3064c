"""Where files lie: a local path, or an address in an object store such as s3://bucket/prefix.

Both are used alike (`/`, `open`, `read_text`, `stat`); a local one is a plain `pathlib.Path`, so that what needs a
real file asks for a `Path` and the type checker sees who does not have one. `dejavu.storage.store` copies between the
two. Credentials and endpoints come from the environment alone, as boto and gcsfs read it, never from an address.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

import fsspec
from upath import UPath

StorePath = Path | UPath
"""A local path, or an address in an object store."""

REQUESTS_AT_ONCE = 32
"""An object store answers each after tens of milliseconds, however many there are."""
PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
"""What reads an address; extras of this project are called `s3` and `gcs`."""
FOREIGN_ERRORS = {
    "botocore.exceptions": "BotoCoreError",
    "gcsfs.retry": "HttpError",
    "google.auth.exceptions": "GoogleAuthError",
}
"""What clients of object stores raise beside OSError: nobody answers, no credentials."""

_Item = TypeVar("_Item")
_Made = TypeVar("_Made")


def store_path(text: str | StorePath) -> StorePath:
    """Return where a text points to.

    Raises:
        ValueError: An address of an unknown kind, with a password in it, or whose package is not installed.
    """
    if not isinstance(text, str):
        return text
    address = re.match(r"([a-z][a-z0-9+.-]+):/(/?)", text)
    if address is None:
        return Path(text)
    kind, second_slash = address.groups()
    shown = re.sub(r"//[^/@]*@", "//", text)
    parts = urlsplit(text)
    if not second_slash or "@" in parts.netloc or not (parts.netloc + parts.path).strip("/"):
        raise ValueError(
            f"address: got {shown}, expected {kind}://bucket/prefix; credentials come from the environment alone"
        )
    try:
        fsspec.get_filesystem_class(kind)
    except ImportError as error:
        package = PACKAGES.get(kind, kind)
        raise ValueError(
            f"address: got {shown}, which {package} reads, expected it to be installed; pip install {package}"
        ) from error
    except ValueError as error:
        raise ValueError(f"address: got {shown}, expected a path, s3:// or gs://; correct it") from error
    # What one process writes another one must see at once: listings are not remembered.
    return UPath(text, use_listings_cache=False)


# An object store that answers with an error is neither empty nor without a file. fsspec says that it is, in `isfile`,
# `isdir` and `glob`; so these are asked in ways that raise.
def is_file(path: StorePath) -> bool:
    """Whether there is such a file.

    Raises:
        OSError: Storage cannot tell.
    """
    return path.is_file() if isinstance(path, Path) else _kind(path) == "file"


def is_folder(path: StorePath) -> bool:
    """Whether there is such a folder; in an object store, anything below it.

    Raises:
        OSError: Storage cannot tell.
    """
    return path.is_dir() if isinstance(path, Path) else _kind(path) == "directory"


def _kind(path: UPath) -> str:
    try:
        return str(path.fs.info(path.path)["type"])
    except FileNotFoundError:
        return ""


def listed(folder: StorePath, pattern: str) -> list[StorePath]:
    """Return the files that match, such as `*/setting.json`, in the order of names; none where there is no folder."""
    if isinstance(folder, Path):
        return sorted(folder.glob(pattern))
    depth = pattern.count("/")
    names = sorted(name for name in names_below(folder) if name.count("/") == depth)
    return [folder / name for name in names if PurePosixPath(name).match(pattern)]


def names_below(folder: UPath) -> list[str]:
    """Return the name of each file at any depth relative to the folder: one request for a thousand files."""
    start = folder.path.rstrip("/") + "/"
    return [name.removeprefix(start) for name in folder.fs.find(folder.path) if name.startswith(start)]


def side_by_side(at: StorePath, function: Callable[[_Item], _Made], items: Iterable[_Item]) -> list[_Made]:
    """Map over items; where each costs a request to an object store, many at once."""
    if isinstance(at, Path):
        return [function(item) for item in items]
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as threads:
        return list(threads.map(function, items))


def storage_errors() -> tuple[type[BaseException], ...]:
    """Return what storage raises, for an `except`; a client that was never imported raises nothing."""
    loaded = [(sys.modules[name], error) for name, error in FOREIGN_ERRORS.items() if name in sys.modules]
    return (OSError, *(getattr(module, error) for module, error in loaded))


def ray_storage(folder: StorePath) -> tuple[str, Any]:
    """Return a folder as Ray's run configurations take it: path and pyarrow filesystem, None for a local path.

    Ray reaches an object store by the same client, and so the same environment, as we.
    """
    if isinstance(folder, Path):
        return str(folder.resolve()), None
    from pyarrow.fs import FSSpecHandler, PyFileSystem  # noqa: PLC0415  needed here alone

    return folder.path, PyFileSystem(FSSpecHandler(folder.fs))
