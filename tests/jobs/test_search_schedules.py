"""DiffRate's schedules as a stage and as a job of their own: searched once, then read."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

Pipeline = Callable[..., "subprocess.CompletedProcess[str]"]
WithWorld = Callable[[Path], Path]


def test_schedules_are_searched_once_and_swept(pipeline: Pipeline, with_world: WithWorld, tmp_path: Path) -> None:
    words = ("tiny", "--results", with_world(tmp_path), "--sweep.methods", "diffrate", "--stages")
    done = pipeline(*words, "transcode,train")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "searched 2 of 2 DiffRate schedules" in done.stdout
    assert "add-ons" not in done.stdout
    (latest,) = (tmp_path / "store" / "schedules").glob("*/latest.json")
    files = [latest.with_name(name) for name in json.loads(latest.read_text())]
    assert [json.loads(file.read_text())["flops_share"] for file in files] == [0.565, 0.689]

    files[0].unlink()  # as if the first run had been killed before it
    done = pipeline(*words, "transcode,train,sweep")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "searched 1 of 2 DiffRate schedules" in done.stdout
    chosen = json.loads((tmp_path / "store" / "chosen.json").read_text())
    assert {row["label"] for row in chosen} <= {"searched 0.565", "searched 0.689"}
    assert chosen


def test_a_given_schedule_that_does_not_fit_ends_the_run_in_one_line(pipeline: Pipeline, tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text('{"prune_kept": [1]}')
    done = pipeline("tiny", "--results", tmp_path / "out", "--sweep.diffrate-schedules", broken)
    assert done.returncode == 1
    assert done.stderr.strip().startswith(f"error: diffrate schedule {broken}: got prune_kept, expected")
    assert len(done.stderr.strip().splitlines()) == 1
