"""Training alone: fitted once, then read."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import submit

pytestmark = [pytest.mark.ray, pytest.mark.slow]

Pipeline = Callable[..., "subprocess.CompletedProcess[str]"]


def test_a_fit_is_done_once_and_its_curve_is_measured(
    pipeline: Pipeline, with_world: Callable[[Path], Path], tmp_path: Path
) -> None:
    with_world(tmp_path)
    methods = ("frame_skip", "reusevit", "residualvit")
    steps = ("--sweep.methods", *methods)
    with submit.cluster():  # one that is none of ours, on the same machine
        done = pipeline("tiny", "--results", tmp_path, "--stages", "transcode,train", *steps)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    assert "trained 1 of 1 add-ons" in done.stdout
    assert "fitted ResidualViT's token: cosine 0." in done.stdout
    notes = list((tmp_path / "store" / "addons").glob("*/fit.json"))
    assert len(notes) == 1
    fit = json.loads(notes[0].read_text())
    assert fit["curve"][-1]["step"] == 2
    assert 0 < fit["achieved_rate"] < 1

    done = pipeline("tiny", "--results", tmp_path, "--stages", "transcode,train,sweep,embed,score", *steps)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "trained 0 of 1 add-ons" in done.stdout
    assert "found ResidualViT's token: cosine 0." in done.stdout
    with (tmp_path / "pareto.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["method"] for row in rows} == {"original", *methods}
    points = [row for row in rows if row["method"] == "reusevit"]
    assert {row["trained"] for row in points} == {"true"}
    assert all(row["setting"].startswith("target=0.8") for row in points)
