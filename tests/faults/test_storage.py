"""Storage answers with errors for a while."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dejavu.storage import store as store_module
from dejavu.storage.store import Store


def test_a_shard_is_written_once_storage_answers_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([OSError(errno.EIO, "Input/output error"), OSError(errno.ESTALE, "Stale file handle"), None])
    waited: list[float] = []

    def fsync(_number: int) -> None:
        if (error := next(answers)) is not None:
            raise error

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(store_module.time, "sleep", waited.append)
    shard = Store(tmp_path).write_embeddings("setting", pa.table({"frame": [0, 1]}), ["a:0+2"])
    assert [path.name for path in shard.parent.iterdir()] == [shard.name], "nothing torn is left beside it"
    assert Store(tmp_path).done("setting") == {"a:0+2": shard}
    assert waited == [1, 2]


def test_storage_that_stays_away_is_an_error_after_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(store_module.time, "sleep", waited.append)
    (tmp_path / "failures").write_text("in the way")
    with pytest.raises(OSError, match="failures"):
        Store(tmp_path).write_failures("embed", [])
    assert 60 <= sum(waited) <= 90


FULL_DISK = """
import errno, sys
from dejavu.cluster.cluster import connect
from dejavu.cluster.ray_map import spread
from dejavu.storage import store
from dejavu.storage.one_line import exit_status


def kernel(row):
    def write():
        raise OSError(errno.ENOSPC, "No space left on device")

    store.time.sleep = lambda _: None
    return store.retry_io(write)


def run():
    connect()
    list(spread(kernel, [{"number": 0}], stage="stage"))


sys.exit(exit_status(run))
"""


@pytest.mark.faults
@pytest.mark.ray
@pytest.mark.slow
def test_a_disk_that_stays_full_under_a_worker_ends_the_command_with_one_line(ray_environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK], env=ray_environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith(
        "error: storage: got '[Errno 28] No space left on device' for 63 s, expected that it answers"
    )
    assert "Traceback" not in done.stderr
    assert "max_errored_blocks" not in done.stderr


@pytest.mark.faults
@pytest.mark.ray
@pytest.mark.slow
def test_a_run_waits_for_its_folders(
    bench: Any, undisturbed: Path, same: Callable[[Path], None], tmp_path: Path
) -> None:
    """A file lies where the workers' folder of mp4s should be, and where Original's shards should."""
    results = bench.results(tmp_path / "results")
    described = Store(undisturbed / "store").described()
    (original,) = [name for name, note in described.items() if note["method"] == "original"]
    in_the_way = [results / "store" / "mp4", results / "store" / "embeddings" / original]
    for path in in_the_way:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    driver = bench.start(results)
    for path in in_the_way:
        bench.wait(driver, results, lambda path=path: f"File exists: '{path}'" in (results / "driver.log").read_text())
        path.unlink()
    bench.finish(driver, results)
    same(results)
