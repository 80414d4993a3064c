"""Where artifacts lie: atomic writes, an index of what is done, and the manifest of failures.

    <root>/mp4/<content id>.mp4                     transcoded clips
    <root>/transcoded/<source key>.json             what is known of each, written after its mp4
    <root>/embeddings/<setting id>/<shard id>.parquet   one row per frame; the footer names the identities inside
    <root>/embeddings/<setting id>/setting.json         what the id stands for: method, config, backbone, cuts
    <root>/texts/<id>.parquet                       texts and their embeddings, one row each
    <root>/failures/<stage>/<part>.json             what could not be done, replaced whenever the stage runs again
    <root>/index/<setting id or transcoded>.parquet     what many shards or records say, so that they need not be opened

Stages keep more beside these under names of their own: add-ons and checkpoints of fits, schedules, timings, Ray Tune's
record, reuse maps. What a kill loses of each: docs/reliability.md.

Everything is written to a temporary file beside its target and renamed, so that a file is either absent or whole; in an
object store, it is put there whole from a temporary file here.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import logging
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from upath import UPath

from dejavu.records import Failure
from dejavu.storage.one_line import OneLineError
from dejavu.storage.store_path import StorePath, is_file, listed, names_below, storage_errors

IDENTITIES_KEY = b"dejavu.identities"
"""Parquet footer entry: JSON list of the identities that a shard holds completely."""


WAITS_S = (1, 2, 4, 8, 16, 32)
"""Between tries to write while storage answers with errors: a shared file system may be away for a minute."""
FULL = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of a disk without room."""

INDEX_AFTER = 256
"""Files opened because an index lacked them before it is written again."""
NUM_READERS = 16
"""Threads that open them: storage that is far away answers late, not seldom."""

_Written = TypeVar("_Written")


class StoreError(OneLineError):
    """The results folder cannot be used; one line says why and what to do."""


class StorageError(StoreError, OSError):
    """Storage answered with errors for more than a minute."""

    full = False
    """Whether for want of room, which no other item has either."""


def identity(parts: Mapping[str, Any]) -> str:
    """Return 24 hex digits that name a result by everything that made it (SHA-256 of its canonical JSON)."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def file_sha256(path: StorePath) -> str:
    """Return the SHA-256 of a file's bytes as hex."""
    with local_copy(path) as here, here.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic(target: StorePath) -> Iterator[Path]:
    """Yield a temporary path; on success what lies there is synced and moved to `target`, else nothing is left."""
    if not isinstance(target, Path):
        with tempfile.TemporaryDirectory(prefix="dejavu-") as folder:
            whole = Path(folder) / target.name
            yield whole
            target.fs.put_file(str(whole), target.path)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def retry_io(write: Callable[[], _Written]) -> _Written:
    """Do a write again while storage answers with errors; it must be one that may be done twice.

    Raises:
        StorageError: It still does after the last of WAITS_S.
    """
    for wait_s in WAITS_S:
        try:
            return write()
        except storage_errors() as error:
            logging.getLogger(__name__).warning("storage: %s; trying again in %g s", error, wait_s)
            time.sleep(wait_s)
    try:
        return write()
    except storage_errors() as error:
        line, _, _ = str(error).partition("\n")
        stays = StorageError(
            f"storage: got {line!r} for {sum(WAITS_S)} s, expected that it answers; "
            "mend or free it and run the same command again: what is done is kept"
        )
        stays.full = getattr(error, "errno", None) in FULL
        raise stays from error


@contextmanager
def local_copy(path: StorePath) -> Iterator[Path]:
    """Yield a local file of the same content and name: a local path itself, else a copy that is removed afterwards.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: Storage answers with errors for more than a minute.
    """
    if isinstance(path, Path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="dejavu-") as folder:
        copied = Path(folder) / path.name
        fetch(path, copied)
        yield copied


@contextmanager
def filled(folder: StorePath) -> Iterator[Path]:
    """Yield a local folder whose new files are in `folder` afterwards: a local one itself."""
    if isinstance(folder, Path):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="dejavu-") as here:
        yield Path(here)
        for path in Path(here).iterdir():
            folder.fs.put_file(str(path), (folder / path.name).path)


def fetch(path: UPath, target: Path) -> None:
    """Copy a file out of an object store, patiently.

    Raises:
        FileNotFoundError: There is no such file; that is not waited for.
        OSError: Storage answers with errors for more than a minute.
    """

    def get() -> bool:
        try:
            path.fs.get_file(path.path, str(target))
        except FileNotFoundError:
            return False
        return True

    if not retry_io(get):
        raise FileNotFoundError(errno.ENOENT, "No such file", str(path))


def write_text(target: StorePath, text: str) -> None:
    """Write a small text file atomically, UTF-8."""
    with atomic(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(target: StorePath, header: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Write a table atomically, UTF-8; an empty cell for None."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(target, text.getvalue())


def write_records(target: StorePath, record: type, rows: Iterable[Any]) -> None:
    """Write dataclasses of one kind as a table, a column for each field; numbers read back equal."""
    cells = ([str(value).lower() if isinstance(value, bool) else value for value in astuple(row)] for row in rows)
    write_csv(target, [field.name for field in fields(record)], cells)


def write_json(target: StorePath, value: Any) -> None:
    """Write JSON atomically, keys in the order given."""
    write_text(target, json.dumps(value, indent=2) + "\n")


@dataclass(frozen=True, slots=True)
class Store:
    """The artifacts of one results folder. Holds only a path, so that it travels to any worker."""

    root: StorePath

    @staticmethod
    def open(root: StorePath) -> Store:
        """Create the folder, or say in one line why it cannot be used.

        Raises:
            StoreError: The path lies below a file, is read-only, or the disk is full; or there is no such bucket, or
                nothing in the environment that lets us write there.
        """
        probe = root / f".writable-{uuid.uuid4().hex[:8]}"
        try:
            if isinstance(root, Path):
                root.mkdir(parents=True, exist_ok=True)
            probe.write_text("x", encoding="utf-8")
            probe.unlink()
        except storage_errors() as error:
            reason = getattr(error, "strerror", None) or error
            expected = "a folder" if isinstance(root, Path) else "a bucket, and credentials in the environment,"
            raise StoreError(
                f"results folder: got {root} ({reason}), expected {expected} that can be written; "
                "choose another with --results"
            ) from error
        return Store(root)

    # ------------------------------------------------------------------------------------------------ transcoded clips
    @property
    def mp4_dir(self) -> StorePath:
        """Transcoded clips."""
        return self.root / "mp4"

    def mp4_path(self, content_id: str) -> StorePath:
        """Where the transcoded clip of this content lies."""
        return self.mp4_dir / f"{content_id}.mp4"

    def transcoded_path(self, source_key: str) -> StorePath:
        """Where the record of a transcoded source lies; written after the mp4, so it exists only when both do."""
        return self.root / "transcoded" / f"{source_key}.json"

    def transcoded(self) -> dict[str, str]:
        """Index the records of transcoded sources: source key -> JSON. Whether their mp4s are there is not asked."""
        facts = self._facts("transcoded", self.root / "transcoded", ".json", _read_text)
        return {name.removesuffix(".json"): record for name, record in facts.items()}

    def forget_transcoded(self, source_keys: Iterable[str]) -> None:
        """Take records out of the index; call it before they are written again, since an index is not compared."""
        forgotten = {f"{key}.json" for key in source_keys}
        if not forgotten:
            return
        target = self._index_path("transcoded")
        facts = _read_index(target)
        if facts.keys() & forgotten:
            kept = {name: fact for name, fact in facts.items() if name not in forgotten}
            retry_io(lambda: _write_index(target, kept))

    # ------------------------------------------------------------------------------------------------------ embeddings
    def embeddings_dir(self, setting_id: str) -> StorePath:
        """Shards of one method setting."""
        return self.root / "embeddings" / setting_id

    def write_embeddings(self, setting_id: str, table: pa.Table, identities: Iterable[str]) -> StorePath:
        """Write one shard; its name follows from the identities inside, so writing it again replaces it."""
        names = sorted(identities)
        target = self.embeddings_dir(setting_id) / f"{identity({'shard': names})}.parquet"
        metadata = {**(table.schema.metadata or {}), IDENTITIES_KEY: json.dumps(names).encode()}
        retry_io(lambda: _write_parquet(target, table.replace_schema_metadata(metadata)))
        return target

    def done(self, setting_id: str) -> dict[str, StorePath]:
        """Index what is embedded under one setting: identity -> shard, from the footers of new shards alone."""
        folder = self.embeddings_dir(setting_id)
        index: dict[str, StorePath] = {}
        for name, held in sorted(self._facts(setting_id, folder, ".parquet", _read_identities).items()):
            index.update(dict.fromkeys(json.loads(held), folder / name))
        return index

    def describe(self, setting_id: str, note: Mapping[str, Any]) -> None:
        """Say what a setting's id, which is a hash, stands for, so that later versions of the code can find it."""
        retry_io(lambda: write_json(self.embeddings_dir(setting_id) / "setting.json", dict(note)))

    def described(self) -> dict[str, dict[str, Any]]:
        """List what `describe` wrote: setting id -> note."""
        notes = listed(self.root / "embeddings", "*/setting.json")
        return {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in notes}

    # ----------------------------------------------------------------------------------------------------------- texts
    def write_texts(self, name: str, texts: Sequence[str], embeddings_TE: NDArray[np.float32]) -> None:
        """Keep the embeddings of texts, under a name that says what made them."""
        flat = pa.array(embeddings_TE.astype(np.float32, copy=False).ravel())
        rows = {"text": list(texts), "embedding": pa.FixedSizeListArray.from_arrays(flat, embeddings_TE.shape[1])}
        retry_io(lambda: _write_parquet(self._texts_path(name), pa.table(rows)))

    def read_texts(self, name: str) -> NDArray[np.float32] | None:
        """Return what was kept, [T, E]; None where nothing was."""
        path = self._texts_path(name)
        if not is_file(path):
            return None
        column = read_parquet(path, ["embedding"])["embedding"].combine_chunks()
        return np.array(column.flatten()).reshape(len(column), -1)

    def _texts_path(self, name: str) -> StorePath:
        return self.root / "texts" / f"{name}.parquet"

    # ----------------------------------------------------------------------------------------------------------- index
    def _index_path(self, name: str) -> StorePath:
        return self.root / "index" / f"{name}.parquet"

    def _facts(self, index: str, folder: StorePath, suffix: str, read: Callable[[StorePath], str]) -> dict[str, str]:
        """Return what each file of a folder says: file name -> text, opening only files that the index lacks.

        A file that is gone says nothing, so an index may be old, or absent: it saves time and decides nothing.
        """
        names = list_names(folder, suffix)
        indexed = _read_index(self._index_path(index))
        facts = {name: indexed[name] for name in names & indexed.keys()}
        new = sorted(names - facts.keys())
        with ThreadPoolExecutor(NUM_READERS) as readers:
            facts.update(zip(new, readers.map(lambda name: read(folder / name), new), strict=True))
        if len(new) >= INDEX_AFTER:
            try:
                _write_index(self._index_path(index), facts)
            except storage_errors() as error:  # a store that may only be read can still be read
                logging.getLogger(__name__).warning("index of %s: %s; its files are opened each time", folder, error)
        return facts

    # -------------------------------------------------------------------------------------------------------- failures
    def write_failures(self, stage: str, failures: Iterable[Failure], *, part: str = "all") -> None:
        """Replace what is known to have failed in one part of a stage: every run tries failed clips again."""
        rows = [asdict(failure) for failure in failures]
        retry_io(lambda: write_json(self.root / "failures" / stage / f"{part}.json", rows))

    def failures(self) -> list[Failure]:
        """List what could not be done, by stage and clip, each once."""
        notes = listed(self.root / "failures", "*/*.json")
        found = {Failure(**row) for note in notes for row in json.loads(note.read_text(encoding="utf-8"))}
        return sorted(found, key=lambda failure: (failure.stage, failure.clip_id, failure.reason))


def read_parquet(path: StorePath, columns: Sequence[str] | None = None, filters: Any = None) -> pa.Table:
    """Read a Parquet file, or some columns of it, or the rows that a pyarrow expression chooses."""
    with path.open("rb") as file:
        return pq.read_table(file, columns=None if columns is None else list(columns), filters=filters)


def list_names(folder: StorePath, suffix: str) -> set[str]:
    """List the names in a folder that end so: one question, not one for each file.

    There are none where there is no folder, or a file in its place: whoever writes there will hear of it.
    """
    if not isinstance(folder, Path):
        return {name for name in names_below(folder) if name.endswith(suffix)}
    with suppress(FileNotFoundError, NotADirectoryError):
        return {path.name for path in folder.iterdir() if path.name.endswith(suffix)}
    return set()


def _read_text(path: StorePath) -> str:
    return path.read_text(encoding="utf-8")


def _read_identities(path: StorePath) -> str:
    with path.open("rb") as file:
        metadata = pq.read_schema(file).metadata or {}
    return str(metadata.get(IDENTITIES_KEY, b"[]"), "utf-8")


def _read_index(path: StorePath) -> dict[str, str]:
    if not is_file(path):
        return {}
    table = read_parquet(path)
    return dict(zip(table["file"].to_pylist(), table["says"].to_pylist(), strict=True))


def _write_index(target: StorePath, facts: Mapping[str, str]) -> None:
    _write_parquet(target, pa.table({"file": list(facts), "says": list(facts.values())}))


def _write_parquet(target: StorePath, table: pa.Table) -> None:
    with atomic(target) as temporary:
        pq.write_table(table, temporary, compression="zstd")
