"""The one command for a GPU, rehearsed on a CPU with a small tower: parts leave their files, none stops the others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def on_gpu(out: Path, parts: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"SMALL": "1", "PARTS": parts, "PYTHON": python}
    environment.pop("TRITON_INTERPRET", None)
    command = ["bash", "jobs/benchmarks/on_gpu.sh", str(out)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_each_part_leaves_its_numbers_and_a_failing_one_stops_no_other(tmp_path: Path) -> None:
    done = on_gpu(tmp_path, "verify nothing large step")
    assert done.returncode == 1
    assert "part: got nothing, expected tests, verify" in done.stdout
    for name in ("verify", "large", "step"):
        assert f"== {name}: exit 0 after" in done.stdout, done.stdout
        assert json.loads((tmp_path / f"{name}.json").read_text())
        assert (tmp_path / f"{name}.log").read_text()
    (row,) = json.loads((tmp_path / "large.json").read_text())
    assert (row["backbone"], row["reuse_rate"]) == ("facebook/dinov2-small", 0.85)
    (step,) = json.loads((tmp_path / "step.json").read_text())
    assert step["step_s"] > 0


def test_a_part_that_fails_says_so(tmp_path: Path) -> None:
    done = on_gpu(tmp_path, "verify step", python="/bin/false")
    assert done.returncode == 1
    assert "== verify: exit 1 after" in done.stdout
    assert "== step: exit 1 after" in done.stdout


@pytest.mark.parametrize("job", ["profile_gpu", "parts_on_gpu"])
def test_what_needs_a_gpu_says_so(job: str) -> None:
    done = subprocess.run(
        [sys.executable, f"jobs/benchmarks/{job}.py"],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "got no GPU, expected one" in done.stderr
