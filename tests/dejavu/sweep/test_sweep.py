from __future__ import annotations

import json
import shutil
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from dejavu.sweep.sweep import halving, overhead_per_trial
from tests.drivers import Driver, run_driver

WORDS = ("--stages", "transcode,sweep", "--sweep.methods", "frame_skip", "eventful", "--embed.streams", "2")
SEARCH = ("--sweep.search", "optuna", "--sweep.num-samples", "4")
WAIT_S = 900


def decisions(reports: list[tuple[str, float, float]]) -> list[str]:
    """Return what the scheduler says to (trial, rung, shortfall), one after the other."""
    scheduler = halving(3)
    trials: dict[str, Any] = {}
    said = []
    for name, rung, shortfall in reports:
        if name not in trials:
            trials[name] = SimpleNamespace(trial_id=name)
            scheduler.on_trial_add(None, trials[name])
        said.append(scheduler.on_trial_result(None, trials[name], {"rung": rung, "shortfall": shortfall}))
    return said


def test_a_trial_below_the_grid_is_stopped_and_one_on_the_frontier_never() -> None:
    reports = [("a", 1.0, 0.0), ("b", 1.0, 0.2), ("c", 1.0, 0.0), ("d", 1.0, 0.1), ("c", 2.0, 0.0), ("c", 4.0, 0.0)]
    assert decisions(reports) == ["CONTINUE", "STOP", "CONTINUE", "STOP", "CONTINUE", "CONTINUE"]


def test_trials_are_compared_on_the_same_clips_alone() -> None:
    """At its first report on more clips, nothing is there to compare a trial with."""
    assert decisions([("a", 1.0, 0.0), ("b", 1.0, 0.0), ("a", 2.0, 0.3), ("b", 2.0, 0.4)]) == [
        *["CONTINUE"] * 3,
        "STOP",
    ]


@pytest.mark.parametrize(("num_at_once", "overhead_s"), [(1, 1.0), (2, 3.0), (8, 4.0)])
def test_overhead_is_when_no_trial_worked(num_at_once: int, overhead_s: float) -> None:
    """Four trials of 4 s within 20 s; more than four cannot run at once."""
    assert overhead_per_trial(20.0, [4.0] * 4, num_at_once) == overhead_s


def scalars(file: Path) -> Iterator[tuple[str, float]]:
    """Read a TensorBoard event file: records of length, checksum, event, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    data, start = file.read_bytes(), 0
    while start < len(data):
        (length,) = struct.unpack_from("<Q", data, start)
        event = Event.FromString(data[start + 12 : start + 12 + length])
        yield from ((value.tag, value.simple_value) for value in event.summary.value)
        start += length + 16


def tried(results: Path) -> list[dict[str, Any]]:
    """Return what the search in a results folder tried, by setting."""
    (note,) = results.glob("store/tune/search-*/tried.json")
    return sorted(json.loads(note.read_text()), key=lambda row: str(row["setting"]["id"]))


def num_frames(results: Path) -> Counter[str]:
    """Return how many frames are embedded under each setting."""
    counts: Counter[str] = Counter()
    for shard in (results / "store" / "embeddings").glob("*/*.parquet"):
        counts[shard.parent.name] += pq.read_metadata(shard).num_rows
    return counts


@pytest.fixture(scope="module")
def searched(
    pipeline: Callable[..., Any], with_world: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """The results folder of a small search that nobody disturbed, and what it printed."""
    results = with_world(tmp_path_factory.mktemp("searched"))
    done = pipeline("tiny", "--results", results, *WORDS, *SEARCH, "--sweep.stop-after", "0.5")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return results, done.stdout


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_search_tries_new_settings_and_never_chooses_a_stopped_one(searched: tuple[Path, str]) -> None:
    results, printed = searched
    rows = tried(results)
    assert [row["setting"]["config"]["method"] for row in rows].count("eventful") == 4
    assert len({row["setting"]["id"] for row in rows}) == len(rows) == 8
    stopped = [row["setting"]["config"] for row in rows if row["metrics"]["clips_share"] != 1]
    assert f"searched 8 settings beyond the grid, {len(stopped)} of them stopped early" in printed
    assert "s a trial beside their own work" in printed
    chosen = json.loads((results / "store" / "chosen.json").read_text())
    assert chosen
    assert not [config for config in stopped if config in chosen]
    whole = [row["setting"]["id"] for row in rows if row["metrics"]["clips_share"] == 1]
    frames = num_frames(results)
    assert {frames[setting_id] for setting_id in whole} <= {max(frames.values())}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_trials_are_seen_in_tensorboard(searched: tuple[Path, str]) -> None:
    results, _ = searched
    rows = {row["setting"]["id"]: row["metrics"] for row in tried(results)}
    files = list(results.glob("store/tune/search-*/*/events.out.tfevents.*"))
    assert len(files) == len(rows)
    last = [dict(scalars(file)) for file in files]
    for name in ("quality", "gflops_per_frame"):
        shown = sorted(found[f"ray/tune/{name}"] for found in last)
        assert shown == pytest.approx(sorted(metrics[name] for metrics in rows.values()), rel=1e-5)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_finished_search_runs_nothing_again(searched: tuple[Path, str], pipeline: Callable[..., Any]) -> None:
    results, _ = searched
    before = {path: path.stat().st_mtime_ns for path in results.rglob("*.parquet")}
    done = pipeline("tiny", "--results", results, *WORDS, *SEARCH, "--sweep.stop-after", "0.5")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "swept 0 of" in done.stdout
    assert "beside their own work" not in done.stdout
    assert {path: path.stat().st_mtime_ns for path in results.rglob("*.parquet")} == before


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_killed_search_goes_on_with_the_samples_it_has(
    searched: tuple[Path, str], ray_environment: dict[str, str], tmp_path: Path
) -> None:
    """Without early stopping, which depends on which trial comes first; its first samples depend on the seed alone."""
    results = tmp_path / "results"
    without = shutil.ignore_patterns("embeddings", "tune", "chosen.json", "mlflow.db")
    shutil.copytree(searched[0], results, ignore=without)
    command = ["pipeline.py", "tiny", "--results", results, *WORDS, *SEARCH, "--sweep.stop-after"]
    environment = {**ray_environment, "TUNE_GLOBAL_CHECKPOINT_S": "1"}

    def finished() -> set[str]:
        """Return the settings of which the search on disk knows that they are done."""
        records = sorted(results.glob("store/tune/search-*/experiment_state-*.json"))
        if not records:
            return set()
        try:
            rows = json.loads(records[-1].read_text())["trial_data"]
        except ValueError:  # it is being written
            return set()
        trials = [json.loads(trial) if isinstance(trial, str) else trial for trial, _ in rows]
        return {trial["config"]["setting"]["id"] for trial in trials if trial["status"] == "TERMINATED"}

    log = tmp_path / "driver.log"
    driver = Driver(*command, env=environment, stdout=log, stderr=log)
    deadline = time.monotonic() + WAIT_S
    while not finished():
        assert driver.poll() is None, log.read_text(errors="replace")[-4000:]
        assert time.monotonic() < deadline, log.read_text(errors="replace")[-4000:]
        time.sleep(0.1)
    driver.kill()
    driver.wait()
    done_before = finished()
    assert not list(results.glob("store/tune/search-*/tried.json")), "the kill came too late to show anything"
    kept = {path: path.stat().st_mtime_ns for path in results.rglob("*.parquet") if path.parent.name in done_before}
    folders = {path for path in results.glob("store/tune/search-*/*") if path.is_dir()}

    again = run_driver(*command, env=environment)
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]
    assert "goes on where it was killed" in again.stdout
    rows = tried(results)
    assert [row["setting"]["id"] for row in rows] == [row["setting"]["id"] for row in tried(searched[0])]
    assert all(row["metrics"]["clips_share"] == 1 for row in rows)
    assert done_before <= {row["setting"]["id"] for row in rows}
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert folders <= {path for path in results.glob("store/tune/search-*/*") if path.is_dir()}
    (line,) = [line for line in again.stdout.splitlines() if "search-" in line and "beside their own work" in line]
    assert int(line.split(": ")[1].split()[0]) <= len(rows) - len(done_before)
