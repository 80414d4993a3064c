"""The whole job, as a person runs it, on one shared cluster."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from tests.drivers import Driver

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
Pipeline = Callable[..., "subprocess.CompletedProcess[str]"]
WithWorld = Callable[[Path], Path]

COLUMNS = ["method", "setting", "split", "num_clips", "reuse_rate", "gflops_per_frame", "flops_reduction"]
COLUMNS += ["accuracy", "acc_gqa", "miop", "miou", "cosine_to_dense", "ms_per_frame"]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def result_set(results: Path) -> dict[tuple[str, str, int], list[float]]:
    """Return every stored frame: (setting, content, frame) -> embedding."""
    found = {}
    for shard in (results / "store" / "embeddings").glob("*/*.parquet"):
        for row in pq.read_table(shard).to_pylist():
            key = (shard.parent.name, row["content_id"], row["frame"])
            assert key not in found, "a frame is stored twice"
            found[key] = row["embedding"]
    return found


def test_the_tiny_run_leaves_everything_it_promises(tiny_results: Path) -> None:
    points = rows(tiny_results / "pareto.csv")
    assert list(points[0])[: len(COLUMNS)] == COLUMNS
    assert (points[0]["method"], points[0]["flops_reduction"], points[0]["cosine_to_dense"]) == (
        "original",
        "1.0",
        "1.0",
    )
    assert {"frame_skip", "eventful", "cmc"} <= {point["method"] for point in points}
    assert all(float(point["ms_per_frame"]) > 0 and int(point["num_clips"]) == 8 for point in points)
    assert (tiny_results / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert (tiny_results / "failures.csv").read_text() == "clip,stage,reason\n"
    assert yaml.safe_load((tiny_results / "config.yaml").read_text())["recipe"] == "tiny"
    assert not list(tiny_results.rglob("*.tmp"))


def test_every_setting_is_a_child_run_in_mlflow(tiny_results: Path) -> None:
    import sqlite3

    with sqlite3.connect(tiny_results / "mlflow.db") as database:
        children = database.execute("select count(*) from tags where key = 'mlflow.parentRunId'").fetchone()[0]
        metrics = {name for (name,) in database.execute("select distinct key from latest_metrics")}
        tags = {name for (name,) in database.execute("select distinct key from tags")}
    database.close()
    assert children >= len(rows(tiny_results / "pareto.csv"))
    assert {"accuracy", "accuracy_ci_low", "acc_gqa", "cosine_to_dense", "gflops_per_frame", "ms_per_frame"} <= metrics
    assert {"val_quality", "val_gflops_per_frame"} <= metrics
    assert {"git_commit", "config_hash", "data_hash", "backbone", "hardware", "split", "chosen"} <= tags


def test_the_run_says_how_it_went_and_a_clips_way_is_in_its_log(tiny_results: Path) -> None:
    command = [sys.executable, str(ROOT / "jobs" / "pipeline.py"), "tiny", "--results", str(tiny_results), "--status"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    status = json.loads(done.stdout)
    assert (status["state"], status["num_failures"]) == ("finished", 0)
    assert all(stage["ended"] and stage["done"] == stage["total"] for stage in status["stages"])
    assert {"draw", "transcode", "embed", "score"} <= {stage["name"] for stage in status["stages"]}

    told = [json.loads(line) for path in (tiny_results / "logs").iterdir() for line in path.read_text().splitlines()]
    clip = next(line["clip_ids"][0] for line in told if line["event"] == "encode ends" and line["stage"] == "embed")
    way = {(line.get("stage"), line["event"]) for line in told if clip in line.get("clip_ids", ())}
    steps = {("transcode", "transcode"), ("embed", "decode"), ("embed", "encode")}
    assert way >= {(stage, f"{step} {end}") for stage, step in steps for end in ("begins", "ends")}


def test_a_second_run_computes_nothing(tiny_results: Path, pipeline: Pipeline) -> None:
    shards = {path: path.stat().st_mtime_ns for path in (tiny_results / "store").rglob("*.parquet")}
    done = pipeline("tiny", "--results", tiny_results, own_database=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for line in ("drew 0 videos", "transcoded 0 clips", "swept 0 of", "embedded 0 clips", "timed 0 settings"):
        assert line in done.stdout
    assert {path: path.stat().st_mtime_ns for path in (tiny_results / "store").rglob("*.parquet")} == shards


def test_a_killed_run_goes_on_to_the_same_result_set(
    tiny_results: Path, with_world: WithWorld, pipeline: Pipeline, ray_environment: dict[str, str], tmp_path: Path
) -> None:
    results = with_world(tmp_path / "killed")
    null = Path(os.devnull)
    words = ("tiny", "--results", results, "--stages", "transcode,sweep,embed")
    driver = Driver("pipeline.py", *words, env=ray_environment, stdout=null, stderr=null)
    deadline = time.monotonic() + 600
    # The first stored shards: validation clips are embedded, test clips are not.
    while not list((results / "store").rglob("*.parquet")) and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL
    for target in [path for path in (results / "store").rglob("*") if path.is_file()]:
        target.with_name(f".{target.name}.0123abcd.tmp").write_bytes(b"half")  # as if that was written at that moment

    done = pipeline(*words)
    assert done.returncode == 0, done.stderr[-2000:]
    expected, found = result_set(tiny_results), result_set(results)
    assert found.keys() == expected.keys()
    for key, embedding in expected.items():
        np.testing.assert_allclose(found[key], embedding, atol=2e-3)


def test_a_cluster_without_the_project_runs_a_submitted_job(
    with_world: WithWorld, ray_environment: dict[str, str], tmp_path: Path
) -> None:
    command = [str(Path(sys.executable).with_name("ray")), "job", "submit", "--working-dir", str(ROOT)]
    command += ["--address", ray_environment["DASHBOARD"], "--", "python", "jobs/pipeline.py", "tiny"]
    command += ["--results", str(with_world(tmp_path)), "--sweep.methods", "frame_skip"]
    environment = {name: value for name, value in ray_environment.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert [row["method"] for row in rows(tmp_path / "pareto.csv")][:2] == ["original", "frame_skip"]
