"""Reading the tensors of a PyTorch checkpoint without executing anything that it holds.

A checkpoint is a zip of a pickle and of raw storages. A pickle is a program: here every name that it asks for becomes
either one of five known records or an inert stand-in that accepts anything and does nothing, so that a trainer's own
classes are ignored rather than imported. Names that exist to run things are refused outright.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

MAX_PICKLE_BYTES = 2**27
"""Of the pickle alone: the storages lie beside it."""

STORAGES: dict[str, torch.dtype] = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
REFUSED_MODULES = frozenset([
    "os", "posix", "nt", "subprocess", "sys", "shutil", "socket", "importlib", "runpy", "ctypes", "pty", "code",
    "codeop", "webbrowser", "multiprocessing", "asyncio", "signal", "threading", "builtins", "__builtin__", "imp",
    "pkgutil", "pickle", "_pickle", "marshal", "types", "operator", "commands", "concurrent", "http", "urllib",
    "ftplib", "smtplib", "platform", "pip", "site", "timeit", "pdb", "bdb", "cProfile", "profile", "trace",
])  # fmt: skip
HARMLESS_BUILTINS = frozenset([
    "set", "frozenset", "dict", "list", "tuple", "int", "float", "bool", "str", "bytes", "bytearray", "complex",
    "slice", "range", "object",
])  # fmt: skip


class RefusedError(ValueError):
    """The file asks for something that exists to run things."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies; read when it is wanted."""

    key: str
    dtype: torch.dtype
    num_stored: int
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Table(dict[Any, Any]):
    """A plain dictionary for every mapping of the file: attributes that a pickle sets on it are dropped."""

    def __setstate__(self, state: object) -> None:
        """Ignore it."""


class _Inert:
    """Stands for a class or function of the file: takes whatever it is given."""

    def __new__(cls, *_args: object, **_kwargs: object) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        pass

    def _ignore(self, *_: object) -> None:
        pass

    __setstate__ = __setitem__ = append = extend = add = _ignore


class _TensorUnpickler(pickle._Unpickler):
    """The reader in Python: the one in C reserves memory for whatever number a file names."""

    dispatch: ClassVar[dict[int, Any]] = {
        code: load for code, load in pickle._Unpickler.dispatch.items() if code != pickle.BYTEARRAY8[0]
    }

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        known = _RECORDS.get((module, name))
        if known is not None:
            return known
        is_harmless = module in ("builtins", "__builtin__") and name in HARMLESS_BUILTINS
        if module.split(".", maxsplit=1)[0] in REFUSED_MODULES and not is_harmless:
            raise RefusedError(f"{module}.{name}")
        # A class of its own each time: nothing that the file sets on it reaches another.
        return type("Ignored", (_Inert,), {})

    def persistent_load(self, pid: Any) -> Any:
        kind, dtype, key, _location, num_stored = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise ValueError("something other than a storage of numbers")
        return str(key), dtype, int(num_stored)


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: object) -> StoredTensor:
    key, dtype, num_stored = storage
    sizes, strides = tuple(int(n) for n in size), tuple(int(n) for n in stride)
    last = int(offset) + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))
    if min((*sizes, *strides, int(offset)), default=0) < 0 or (0 not in sizes and last >= num_stored):
        raise ValueError("a tensor outside its storage")
    if math.prod(sizes) > num_stored:  # it would be as large as it says when it is copied
        raise ValueError("a tensor larger than its storage")
    return StoredTensor(key, dtype, num_stored, int(offset), sizes, strides)


_RECORDS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _Table,
    ("collections", "defaultdict"): lambda *_: _Table(),
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
}


def read_state_dict(path: Path, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    """Return the tensors of the checkpoint's `state_dict`, or of one that was saved bare, whose names are wanted.

    Raises:
        ValueError: The file is missing, broken, no checkpoint, or asks for something that runs things.
    """
    subject = f"checkpoint {path.name}"
    if not path.is_file():
        raise ValueError(f"{subject}: got no file {path}, expected a .ckpt; check the path")
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive, wanted)
    except RefusedError as error:
        raise ValueError(
            f"{subject}: got a call of {error}, expected tensors and plain data; nothing of it was executed, "
            "do not trust its source"
        ) from error
    except Exception as error:  # whatever a broken or a hostile file makes its reader raise
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise ValueError(
            f"{subject}: got a file that cannot be read ({reason}), expected a complete checkpoint with a state_dict; "
            "download it again"
        ) from error


def _read(archive: zipfile.ZipFile, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    pickles = [name for name in archive.namelist() if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError(f"{len(pickles)} pickles where one is expected")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
        raise ValueError("numbers that are not little-endian")
    if archive.getinfo(pickles[0]).file_size > MAX_PICKLE_BYTES:
        raise ValueError("a pickle too large for a list of tensors")
    with archive.open(pickles[0]) as file:
        content = _TensorUnpickler(file).load()
    state = content.get("state_dict", _bare(content)) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping):
        raise ValueError("no state_dict")
    storages: dict[str, Tensor] = {}
    tensors: dict[str, Tensor] = {}
    for name, stored in state.items():
        if not isinstance(name, str) or not wanted(name):
            continue
        if not isinstance(stored, StoredTensor):
            raise ValueError(f"something other than a tensor as {name}")
        if stored.key not in storages:
            storages[stored.key] = _storage(archive, f"{folder}data/{stored.key}", stored)
        flat = storages[stored.key]
        if flat.dtype != stored.dtype:
            raise ValueError(f"two types of number in storage {stored.key}")
        tensors[name] = flat.as_strided(stored.size, stored.stride, stored.offset).clone()
    return tensors


def _bare(content: Mapping[Any, Any]) -> Mapping[Any, Any] | None:
    """Return the file's content itself where it is nothing but named tensors."""
    return content if content and all(isinstance(stored, StoredTensor) for stored in content.values()) else None


def _storage(archive: zipfile.ZipFile, name: str, stored: StoredTensor) -> Tensor:
    expected = stored.num_stored * stored.dtype.itemsize
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:  # a few bytes could become as many as they like
        raise ValueError(f"a compressed storage {name}")
    got = info.file_size
    if got != expected:
        raise ValueError(f"{got} bytes in {name} where {expected} are announced")
    return torch.frombuffer(bytearray(archive.read(name)), dtype=stored.dtype)
