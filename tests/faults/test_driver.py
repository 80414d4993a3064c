"""The driver is killed, or told to end; the same command goes on to the same result set."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from dejavu.status import read_status

pytestmark = [pytest.mark.faults, pytest.mark.soak, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]

AFTER = ("embeddings", "tune", "chosen.json")
"""What a store has of the stages after transcode."""


def state(results: Path) -> str:
    """Return what `--status` says of a run."""
    status = read_status(results)
    assert status is not None
    return status.judged(time.time())


@pytest.mark.parametrize(
    ("missing", "begun"),
    [
        pytest.param(("transcoded", "mp4", *AFTER), "transcoded/*.json", id="transcode"),
        pytest.param(AFTER, "embeddings/*/*.parquet", id="embed"),
    ],
)
def test_a_driver_that_is_killed_is_begun_again(
    bench: Any, undisturbed: Path, same: Callable[[Path], None], tmp_path: Path, missing: Sequence[str], begun: str
) -> None:
    results = bench.copy(undisturbed, tmp_path / "results", *missing)
    store = results / "store"
    driver = bench.start(results)
    bench.wait(driver, results, lambda: list(store.glob(begun)))
    driver.kill()
    driver.wait()
    assert state(results) == "died"
    assert not (store / "chosen.json").exists(), "the kill came too late to show anything"
    bench.finish(bench.start(results), results)
    assert state(results) == "finished"
    same(results)


def test_a_notice_in_the_sweep_ends_the_run_with_one_line(
    bench: Any, undisturbed: Path, same: Callable[[Path], None], tmp_path: Path
) -> None:
    results = bench.copy(undisturbed, tmp_path / "results", *AFTER)
    store = results / "store"
    driver = bench.start(results)
    bench.wait(driver, results, lambda: len(list(store.glob("embeddings/*"))) >= 2)
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(60) == 128 + signal.SIGTERM
    assert state(results) == "stopped"
    printed = (results / "driver.log").read_text()
    assert "stopped: got SIGTERM or Ctrl-C before the end; run the same command again" in printed
    assert "Traceback" not in printed
    assert not (store / "chosen.json").exists(), "the notice came too late to show anything"
    kept = {path: path.stat().st_mtime_ns for path in store.rglob("*.parquet")}
    assert kept
    assert "transcoded 0 clips" in bench.finish(bench.start(results), results)
    same(results)
    assert kept.items() <= {path: path.stat().st_mtime_ns for path in store.rglob("*.parquet")}.items()
