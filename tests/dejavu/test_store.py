from __future__ import annotations

import errno
from pathlib import Path

import pyarrow as pa
import pytest

import dejavu.store as store_module
from dejavu.records import Failure
from dejavu.store import Store, StoreError, atomic, identity, write_json


def table(rows: int) -> pa.Table:
    return pa.table({"frame": list(range(rows))})


def test_an_identity_depends_on_values_not_on_their_order() -> None:
    assert identity({"a": 1, "b": 2}) == identity({"b": 2, "a": 1})
    assert identity({"a": 1}) != identity({"a": 2})


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    target = tmp_path / "value.json"
    write_json(target, 1)

    def write_half() -> None:
        with atomic(target) as temporary:
            temporary.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_half()
    assert target.read_text() == "1\n"
    assert [path.name for path in tmp_path.iterdir()] == ["value.json"]


def test_a_shard_tells_what_it_holds(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = store.write_embeddings("s", table(2), ["b", "a"])
    assert store.done("s") == {"a": path, "b": path}
    assert store.done("other") == {}


def test_writing_the_same_shard_again_replaces_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.write_embeddings("s", table(2), ["a", "b"]) == store.write_embeddings("s", table(2), ["b", "a"])
    assert len(list(store.embeddings_dir("s").iterdir())) == 1


def test_shards_that_are_indexed_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = counted_opens(monkeypatch)
    shards = {name: Store(tmp_path).write_embeddings("s", table(1), [name]) for name in "abc"}
    assert Store(tmp_path).done("s") == shards
    assert len(opened) == 3
    assert Store(tmp_path).done("s") == shards
    assert len(opened) == 3

    shards["d"] = Store(tmp_path).write_embeddings("s", table(1), ["d"])
    shards.pop("a").unlink()
    assert Store(tmp_path).done("s") == shards
    assert opened[3:] == [shards["d"]]

    (tmp_path / "index" / "s.parquet").unlink()
    assert Store(tmp_path).done("s") == shards
    assert len(opened) == 7


def test_an_index_that_cannot_be_written_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened = counted_opens(monkeypatch)
    (tmp_path / "index").write_text("not a folder")
    shards = {name: Store(tmp_path).write_embeddings("s", table(1), [name]) for name in "ab"}
    assert [Store(tmp_path).done("s") for _ in range(2)] == [shards, shards]
    assert len(opened) == 4
    assert "its files are opened each time" in caplog.text


def counted_opens(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Write an index after two files, and list those that were opened for it."""
    opened: list[Path] = []
    read = store_module._read_identities

    def counting(path: Path) -> str:
        opened.append(path)
        return read(path)

    monkeypatch.setattr(store_module, "INDEX_AFTER", 2)
    monkeypatch.setattr(store_module, "_read_identities", counting)
    return opened


def test_failures_of_a_stage_are_replaced_when_it_runs_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    old, new = (Failure(clip_id=name, stage="embed", reason="broken") for name in ("old", "new"))
    store.write_failures("embed", [old], part="test")
    store.write_failures("embed", [new], part="val")
    assert store.failures() == [new, old]
    store.write_failures("embed", [], part="test")
    assert store.failures() == [new]


def test_a_folder_below_a_file_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match=r"results folder: got .*file/results .*expected a folder.*--results"):
        Store.open(tmp_path / "file" / "results")
