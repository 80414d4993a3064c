"""The driver is killed, or told to end; the same command goes on to the same result set."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dejavu.observability.status import read_status

pytestmark = [pytest.mark.faults, pytest.mark.soak, pytest.mark.ray, pytest.mark.slow]


def state(results: Path) -> str:
    """Return what `--status` says of a run."""
    status = read_status(results)
    assert status is not None
    return status.judged(time.time())


@pytest.mark.parametrize("stage", ["transcode", "sweep", "embed"])
def test_a_driver_that_is_killed_is_begun_again(
    bench: Any, undisturbed: Path, same: Callable[[Path], None], tmp_path: Path, stage: str
) -> None:
    results = bench.undone(undisturbed, tmp_path / "results", stage)
    driver = bench.start(results)
    bench.wait(driver, results, lambda: bench.made(results, stage))
    driver.kill()
    driver.wait()
    assert state(results) == "died"
    assert len(bench.made(results, stage)) < len(bench.made(undisturbed, stage)), (
        "the kill came too late to show anything"
    )
    bench.finish(bench.start(results), results)
    assert state(results) == "finished"
    same(results)


def test_a_notice_in_the_sweep_ends_the_run_with_one_line(
    bench: Any, undisturbed: Path, same: Callable[[Path], None], tmp_path: Path
) -> None:
    results = bench.undone(undisturbed, tmp_path / "results", "sweep")
    driver = bench.start(results)
    bench.wait(driver, results, lambda: bench.made(results, "sweep"))
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(60) == 128 + signal.SIGTERM
    assert state(results) == "stopped"
    printed = (results / "driver.log").read_text()
    assert "stopped: got SIGTERM or Ctrl-C before the end; run the same command again" in printed
    assert "Traceback" not in printed
    assert len(bench.made(results, "sweep")) < len(bench.made(undisturbed, "sweep")), (
        "the notice came too late to show anything"
    )
    kept = {path: path.stat().st_mtime_ns for path in (results / "store").rglob("*.parquet")}
    assert "transcoded 0 clips" in bench.finish(bench.start(results), results)
    same(results)
    assert kept.items() <= {path: path.stat().st_mtime_ns for path in kept}.items()
