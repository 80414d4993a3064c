from __future__ import annotations

import errno
from pathlib import Path

import pyarrow as pa
import pytest

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
