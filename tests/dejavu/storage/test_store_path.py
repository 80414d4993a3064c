from __future__ import annotations

import builtins
import pickle
import uuid
from pathlib import Path

import pytest
from upath import UPath

from dejavu.storage.store_path import (
    is_file,
    is_folder,
    listed,
    names_below,
    ray_storage,
    side_by_side,
    storage_errors,
    store_path,
)


@pytest.fixture
def away() -> UPath:
    """A folder in an object store that is this process's memory."""
    found = store_path(f"memory://{uuid.uuid4().hex}/run")
    assert isinstance(found, UPath)
    return found


def test_a_local_path_stays_a_plain_path() -> None:
    assert type(store_path("results/tiny")) is type(Path("results/tiny"))
    assert store_path("results/tiny") == Path("results/tiny")


def test_an_address_is_what_it_says_and_travels() -> None:
    given = "s3://bucket/run"
    assert str(store_path(given) / "store") == "s3://bucket/run/store"
    assert pickle.loads(pickle.dumps(store_path(given))) == store_path(given)


@pytest.mark.parametrize("text", ["s3:/bucket/run", "s3://", "what://bucket"])
def test_an_address_that_leads_nowhere_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"address: got {text}, expected"):
        store_path(text)


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(
        ValueError, match=r"got s3://bucket/run, expected .* credentials come from the environment"
    ) as error:
        store_path("s3://key:secret@bucket/run")
    assert "secret" not in str(error.value)


def test_a_package_that_is_lacking_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def lacking(name: str, *rest: object) -> object:
        if name == "gcsfs":
            raise ImportError(name)
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", lacking)
    with pytest.raises(ValueError, match=r"got gs://bucket/run, which gcsfs reads, .*pip install gcsfs"):
        store_path("gs://bucket/run")


def test_files_and_folders_are_told_apart(away: UPath) -> None:
    (away / "folder").mkdir(parents=True)
    (away / "folder" / "file").write_text("x")
    assert is_file(away / "folder" / "file")
    assert is_folder(away / "folder")
    assert not is_file(away / "folder")
    assert not is_folder(away / "folder" / "file")
    assert not is_file(away / "absent")
    assert not is_folder(away / "absent")


def test_storage_that_cannot_tell_is_not_taken_for_empty(away: UPath, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("503")

    monkeypatch.setattr(away.fs, "info", fail)
    with pytest.raises(OSError, match="503"):
        is_file(away / "file")


def test_a_listing_is_that_of_a_local_folder(away: UPath, tmp_path: Path) -> None:
    for root in (away, tmp_path):
        for name in ("b/setting.json", "a/setting.json", "a/shard.parquet", "setting.json", "c/d/setting.json"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(name)
    for pattern in ("*/setting.json", "*.json", "*/*.parquet"):
        found = [path.read_text() for path in listed(away, pattern)]
        assert found == [path.read_text() for path in listed(tmp_path, pattern)] != []
    assert sorted(names_below(away / "a")) == ["setting.json", "shard.parquet"]
    assert listed(away / "absent", "*.json") == []


def test_what_is_mapped_keeps_its_order(away: UPath, tmp_path: Path) -> None:
    for at in (away, tmp_path):
        assert side_by_side(at, lambda number: 2 * number, range(100)) == list(range(0, 200, 2))


def test_ray_gets_a_file_system_of_an_address_alone(away: UPath, tmp_path: Path) -> None:
    assert ray_storage(tmp_path) == (str(tmp_path), None)
    (away / "file").write_text("x")
    path, filesystem = ray_storage(away)
    assert filesystem.open_input_file(f"{path}/file").read() == b"x"


def test_a_client_that_answers_in_its_own_way_is_storage_too() -> None:
    from botocore.exceptions import NoCredentialsError

    with pytest.raises(storage_errors()):
        raise NoCredentialsError
