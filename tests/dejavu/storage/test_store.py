from __future__ import annotations

import errno
import pickle
import uuid
from pathlib import Path

import pyarrow as pa
import pytest

import dejavu.storage.store as store_module
from dejavu.records import Failure
from dejavu.storage.store import (
    Store,
    StoreError,
    atomic,
    file_sha256,
    filled,
    identity,
    list_names,
    local_copy,
    read_parquet,
    retry_io,
    write_json,
)
from dejavu.storage.store_path import StorePath, store_path


def table(rows: int) -> pa.Table:
    return pa.table({"frame": list(range(rows))})


def test_an_identity_depends_on_values_not_on_their_order() -> None:
    assert identity({"a": 1, "b": 2}) == identity({"b": 2, "a": 1})
    assert identity({"a": 1}) != identity({"a": 2})


def write_half(target: StorePath) -> None:
    with atomic(target) as temporary:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    target = tmp_path / "value.json"
    write_json(target, 1)
    with pytest.raises(OSError, match="No space"):
        write_half(target)
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


@pytest.fixture
def away() -> StorePath:
    """A folder in an object store that is this process's memory."""
    return store_path(f"memory://{uuid.uuid4().hex}/run")


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let nothing really wait; what would have been waited, in seconds."""
    waited: list[float] = []
    monkeypatch.setattr(store_module.time, "sleep", waited.append)
    return waited


def test_an_object_store_holds_what_a_folder_holds(bucket: StorePath) -> None:
    store = pickle.loads(pickle.dumps(Store.open(bucket / "run")))
    path = store.write_embeddings("s", table(2), ["b", "a"])
    store.describe("s", {"method": "original"})
    failure = Failure(clip_id="c", stage="embed", reason="broken")
    store.write_failures("embed", [failure], part="test")
    assert store.done("s") == {"a": path, "b": path}
    assert store.done("other") == {}
    assert store.described() == {"s": {"method": "original"}}
    assert store.failures() == [failure]
    assert read_parquet(path, ["frame"]).num_rows == 2
    assert store.write_embeddings("s", table(2), ["a", "b"]) == path


def test_a_bucket_that_does_not_exist_is_refused_in_one_line(bucket: StorePath) -> None:
    with pytest.raises(StoreError, match=r"got s3://absent/run \(.*does not exist\), expected a bucket.*--results"):
        Store.open(store_path("s3://absent/run"))


def test_a_write_that_fails_leaves_the_old_object(away: StorePath) -> None:
    target = away / "value.json"
    write_json(target, 1)
    with pytest.raises(OSError, match="No space"):
        write_half(target)
    assert target.read_text() == "1\n"


def test_a_local_copy_has_name_and_content_and_does_not_stay(away: StorePath, tmp_path: Path) -> None:
    (away / "clip.mp4").write_bytes(b"frames")
    with local_copy(away / "clip.mp4") as here:
        assert (here.name, here.read_bytes()) == ("clip.mp4", b"frames")
    assert not here.exists()
    (tmp_path / "clip.mp4").write_bytes(b"frames")
    with local_copy(tmp_path / "clip.mp4") as here:
        assert here == tmp_path / "clip.mp4"
    assert file_sha256(away / "clip.mp4") == file_sha256(tmp_path / "clip.mp4")


def test_a_missing_object_is_said_at_once(away: StorePath, waits: list[float]) -> None:
    with pytest.raises(FileNotFoundError), local_copy(away / "absent.mp4"):
        pass
    assert waits == []


def test_new_files_of_a_folder_go_to_the_object_store(away: StorePath) -> None:
    with filled(away / "events") as folder:
        (folder / "first").write_text("1")
    with filled(away / "events") as folder:
        (folder / "second").write_text("2")
    assert [(away / "events" / name).read_text() for name in ("first", "second")] == ["1", "2"]


def test_an_object_store_that_is_away_for_a_while_is_waited_for(
    away: StorePath, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    from botocore.exceptions import EndpointConnectionError

    assert not isinstance(away, Path)
    target = away / "value.json"
    errors = [OSError(errno.EBUSY, "503 Slow Down"), EndpointConnectionError(endpoint_url="http://s3")]
    for name in ("put_file", "get_file"):
        real, left = getattr(away.fs, name), list(errors)

        def sometimes(*words: str, real: object = real, left: list[Exception] = left) -> None:
            if left:
                raise left.pop(0)
            real(*words)  # type: ignore[operator]

        monkeypatch.setattr(away.fs, name, sometimes)
    retry_io(lambda: write_json(target, 1))
    with local_copy(target) as here:
        assert here.read_text() == "1\n"
    assert waits == [1, 2, 1, 2]


def test_a_file_in_place_of_a_folder_holds_no_names(tmp_path: Path) -> None:
    (tmp_path / "mp4").write_text("in the way")
    assert list_names(tmp_path / "mp4", ".mp4") == list_names(tmp_path / "nothing", ".mp4") == set()
