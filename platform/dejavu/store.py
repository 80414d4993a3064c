"""Where artifacts lie: atomic writes, an index of what is done, and the manifest of failures.

    <root>/mp4/<content id>.mp4                     transcoded clips
    <root>/transcoded/<source key>.json             what is known of each, written after its mp4
    <root>/embeddings/<setting id>/<shard id>.parquet   one row per frame; the footer names the identities inside
    <root>/embeddings/<setting id>/setting.json         what the id stands for: method, config, backbone, cuts
    <root>/failures/<stage>/<part>.json             what could not be done, replaced whenever the stage runs again
    <root>/index/<setting id or transcoded>.parquet     what many shards or records say, so that they need not be opened

Everything is written to a temporary file beside its target and renamed, so that a file is either absent or whole.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from dejavu.records import Failure

IDENTITIES_KEY = b"dejavu.identities"
"""Parquet footer entry: JSON list of the identities that a shard holds completely."""


WAITS_S = (1, 2, 4, 8, 16, 32)
"""Between tries to write while storage answers with errors: a shared file system may be away for a minute."""

INDEX_AFTER = 256
"""Files opened because an index lacked them before it is written again."""
NUM_READERS = 16
"""Threads that open them: storage that is far away answers late, not seldom."""

_Written = TypeVar("_Written")


class StoreError(RuntimeError):
    """The results folder cannot be used; one line says why and what to do."""


def identity(parts: Mapping[str, Any]) -> str:
    """Return 24 hex digits that name a result by everything that made it (SHA-256 of its canonical JSON)."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; on success sync it and move it there, on failure leave nothing."""
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


def patiently(write: Callable[[], _Written]) -> _Written:
    """Do a write again while storage answers with errors; it must be one that may be done twice.

    Raises:
        OSError: It still does after the last of WAITS_S.
    """
    for wait_s in WAITS_S:
        try:
            return write()
        except OSError as error:
            logging.getLogger(__name__).warning("storage: %s; trying again in %g s", error, wait_s)
            time.sleep(wait_s)
    return write()


def write_text(target: Path, text: str) -> None:
    """Write a small text file atomically, UTF-8."""
    with atomic(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(target: Path, value: Any) -> None:
    """Write JSON atomically, keys in the order given."""
    write_text(target, json.dumps(value, indent=2) + "\n")


@dataclass(frozen=True, slots=True)
class Store:
    """The artifacts of one results folder. Holds only a path, so that it travels to any worker."""

    root: Path

    @staticmethod
    def open(root: Path) -> Store:
        """Create the folder, or say in one line why it cannot be used.

        Raises:
            StoreError: The path lies below a file, is read-only, or the disk is full.
        """
        probe = root / f".writable-{uuid.uuid4().hex[:8]}"
        try:
            root.mkdir(parents=True, exist_ok=True)
            probe.write_text("x", encoding="utf-8")
            probe.unlink()
        except OSError as error:
            raise StoreError(
                f"results folder: got {root} ({error.strerror or error}), expected a folder that can be written; "
                "choose another with --results"
            ) from error
        return Store(root)

    # ------------------------------------------------------------------------------------------------ transcoded clips
    @property
    def mp4_dir(self) -> Path:
        """Transcoded clips."""
        return self.root / "mp4"

    def mp4_path(self, content_id: str) -> Path:
        """Where the transcoded clip of this content lies."""
        return self.mp4_dir / f"{content_id}.mp4"

    def transcoded_path(self, source_key: str) -> Path:
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
            patiently(lambda: _write_index(target, kept))

    # ------------------------------------------------------------------------------------------------------ embeddings
    def embeddings_dir(self, setting_id: str) -> Path:
        """Shards of one method setting."""
        return self.root / "embeddings" / setting_id

    def write_embeddings(self, setting_id: str, table: pa.Table, identities: Iterable[str]) -> Path:
        """Write one shard; its name follows from the identities inside, so writing it again replaces it."""
        names = sorted(identities)
        target = self.embeddings_dir(setting_id) / f"{identity({'shard': names})}.parquet"
        metadata = {**(table.schema.metadata or {}), IDENTITIES_KEY: json.dumps(names).encode()}

        def write() -> Path:
            with atomic(target) as temporary:
                pq.write_table(table.replace_schema_metadata(metadata), temporary, compression="zstd")
            return target

        return patiently(write)

    def done(self, setting_id: str) -> dict[str, Path]:
        """Index what is embedded under one setting: identity -> shard, from the footers of new shards alone."""
        folder = self.embeddings_dir(setting_id)
        index: dict[str, Path] = {}
        for name, held in sorted(self._facts(setting_id, folder, ".parquet", _read_identities).items()):
            index.update(dict.fromkeys(json.loads(held), folder / name))
        return index

    def describe(self, setting_id: str, note: Mapping[str, Any]) -> None:
        """Say what a setting's id, which is a hash, stands for, so that later versions of the code can find it."""
        patiently(lambda: write_json(self.embeddings_dir(setting_id) / "setting.json", dict(note)))

    def described(self) -> dict[str, dict[str, Any]]:
        """List what `describe` wrote: setting id -> note."""
        notes = sorted((self.root / "embeddings").glob("*/setting.json"))
        return {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in notes}

    # ----------------------------------------------------------------------------------------------------------- index
    def _index_path(self, name: str) -> Path:
        return self.root / "index" / f"{name}.parquet"

    def _facts(self, index: str, folder: Path, suffix: str, read: Callable[[Path], str]) -> dict[str, str]:
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
            except OSError as error:  # a store that may only be read can still be read
                logging.getLogger(__name__).warning("index of %s: %s; its files are opened each time", folder, error)
        return facts

    # -------------------------------------------------------------------------------------------------------- failures
    def write_failures(self, stage: str, failures: Iterable[Failure], *, part: str = "all") -> None:
        """Replace what is known to have failed in one part of a stage: every run tries failed clips again."""
        rows = [asdict(failure) for failure in failures]
        patiently(lambda: write_json(self.root / "failures" / stage / f"{part}.json", rows))

    def failures(self) -> list[Failure]:
        """List what could not be done, by stage and clip, each once."""
        notes = sorted((self.root / "failures").glob("*/*.json"))
        found = {Failure(**row) for note in notes for row in json.loads(note.read_text(encoding="utf-8"))}
        return sorted(found, key=lambda failure: (failure.stage, failure.clip_id, failure.reason))


def list_names(folder: Path, suffix: str) -> set[str]:
    """List the names in a folder that end so, none where there is no folder: one question, not one for each file."""
    with suppress(FileNotFoundError):
        return {path.name for path in folder.iterdir() if path.name.endswith(suffix)}
    return set()


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _read_identities(path: Path) -> str:
    metadata = pq.read_schema(path).metadata or {}
    return str(metadata.get(IDENTITIES_KEY, b"[]"), "utf-8")


def _read_index(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    table = pq.read_table(path)
    return dict(zip(table["file"].to_pylist(), table["says"].to_pylist(), strict=True))


def _write_index(target: Path, facts: Mapping[str, str]) -> None:
    with atomic(target) as temporary:
        pq.write_table(pa.table({"file": list(facts), "says": list(facts.values())}), temporary, compression="zstd")
