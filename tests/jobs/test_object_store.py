"""The pipeline with everything in an object store: videos, results, checkpoints of training and Tune's own files."""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from upath import UPath

from dejavu.datasets.synthetic import SyntheticConfig, make_world
from dejavu.storage.store_path import listed, names_below

pytestmark = [pytest.mark.ray, pytest.mark.slow]

Pipeline = Callable[..., "subprocess.CompletedProcess[str]"]
Run = Callable[..., str]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where commands are given, and so what cannot lie in a bucket is written."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(pipeline: Pipeline) -> Run:
    """Run the pipeline to its end and return what it printed."""

    def call(*words: str) -> str:
        done = pipeline(*words, own_database=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    return call


def times(results: UPath) -> dict[str, int]:
    """Return when each embedding was written."""
    return {str(path): path.stat().st_mtime_ns for path in listed(results / "store" / "embeddings", "*/*.parquet")}


def points(results: UPath) -> list[list[str]]:
    with (results / "pareto.csv").open(encoding="utf-8") as file:
        return [row[:7] for row in csv.reader(file)]  # times follow, which may be measured anew


def test_a_run_in_a_bucket_is_complete_and_a_second_one_computes_nothing(
    run: Run, bucket: UPath, elsewhere: Path
) -> None:
    results = bucket / "tiny"
    words = ("tiny", "--results", str(results), "--sweep.methods", "frame_skip", "eventful")
    printed = run(*words)
    assert str(elsewhere / "results" / "tiny" / "mlflow.db") in printed
    found = points(results)
    assert {row[0] for row in found[1:]} == {"original", "frame_skip", "eventful"}
    assert (results / "failures.csv").read_text() == "clip,stage,reason\n"
    assert (results / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert "data:image/png;base64," in (results / "report.html").read_text()
    assert not [name for name in names_below(results) if name.endswith(".tmp")]
    assert "testing" not in (results / "config.yaml").read_text(), "a key is in the environment alone"

    before, printed = times(results), run(*words)
    for line in ("drew 0 videos", "transcoded 0 clips", "swept 0 of", "embedded 0 clips", "timed 0 settings"):
        assert line in printed
    assert times(results) == before
    assert points(results) == found


def test_training_reads_videos_from_a_bucket_and_keeps_its_checkpoints_there(
    run: Run, bucket: UPath, tmp_path: Path
) -> None:
    words = ["nextqa", "--backbone", "embedded", "--results", f"{bucket}run", "--stages", "transcode,train,sweep"]
    words += ["--train.targets", "0.8", "--sweep.methods", "reusevit", "--sweep.density", "tiny"]
    world = make_world(tmp_path / "world", SyntheticConfig(num_train=3, num_val=2, num_test=1))
    for kind in ("videos", "annotations"):
        bucket.fs.put(f"{world}/{kind}/", f"{bucket.path}world/{kind}/", recursive=True)
        words += [f"--{kind}", f"{bucket}world/{kind}"]
    assert "trained 1 of 1 add-ons" in run(*words)
    names = names_below(bucket / "run")
    assert any(name.startswith("store/train/") and name.endswith("progress.json") for name in names)
    assert any(name.startswith("tensorboard/") for name in names)
    printed = run(*words)
    assert "trained 0 of 1 add-ons" in printed
    assert "swept 0 of" in printed
