"""The pipeline with everything in an object store: videos, results, checkpoints of training and Tune's own files."""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from upath import UPath

from dejavu.place import listed, names_below

pytestmark = [pytest.mark.ray, pytest.mark.slow]

Pipeline = Callable[..., "subprocess.CompletedProcess[str]"]
FEW = ("--sweep.methods", "frame_skip", "eventful")


def times(root: UPath) -> dict[str, int]:
    """Return when each embedding was written."""
    return {str(path): path.stat().st_mtime_ns for path in listed(root / "store" / "embeddings", "*/*.parquet")}


def rows(path: Path | UPath) -> list[list[str]]:
    with path.open(encoding="utf-8") as file:
        return [row[:7] for row in csv.reader(file)]  # what follows is measured time


def test_a_run_in_a_bucket_leaves_what_a_local_one_does(
    pipeline: Pipeline, bucket: UPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    results = bucket / "tiny"
    done = pipeline("tiny", "--results", str(results), *FEW)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"MLflow: {tmp_path}/results/tiny/mlflow.db, since a database cannot lie in {results}" in done.stdout
    points = rows(results / "pareto.csv")
    assert {"original", "frame_skip", "eventful"} == {row[0] for row in points[1:]}
    assert (results / "failures.csv").read_text() == "clip,stage,reason\n"
    assert (results / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert "data:image/png;base64," in (results / "report.html").read_text()
    assert not [name for name in names_below(results) if name.endswith(".tmp")]
    assert "testing" not in (results / "config.yaml").read_text(), "credentials are in the environment alone"

    before = times(results)
    again = pipeline("tiny", "--results", str(results), *FEW)
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]
    for line in ("drew 0 videos", "transcoded 0 clips", "swept 0 of", "embedded 0 clips", "timed 0 settings"):
        assert line in again.stdout
    assert times(results) == before
    assert rows(results / "pareto.csv") == points


def test_a_folder_of_videos_in_a_bucket_is_trained_on_and_embedded(
    pipeline: Pipeline, tiny_results: Path, bucket: UPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for kind in ("videos", "annotations"):
        bucket.fs.put(f"{tiny_results}/world/{kind}/", f"{bucket.path}world/{kind}/", recursive=True)
    given = (
        "--videos",
        f"{bucket}world/videos",
        "--annotations",
        f"{bucket}world/annotations",
        "--backbone",
        "embedded",
    )
    short = ("--train.targets", "0.8", "--train.max-steps", "2")
    words = (*given, *short, "--sweep.methods", "reusevit", "--sweep.density", "tiny")
    done = pipeline("nextqa", "--results", f"{bucket}nextqa", "--stages", "transcode,train,sweep,embed", *words)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "trained 1 of 1 add-ons" in done.stdout
    names = names_below(bucket / "nextqa")
    assert any(name.startswith("store/train/") and name.endswith("progress.json") for name in names)
    assert any(name.startswith("tensorboard/") for name in names)
    again = pipeline("nextqa", "--results", f"{bucket}nextqa", "--stages", "transcode,train,sweep,embed", *words)
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]
    assert "trained 0 of 1 add-ons" in again.stdout
