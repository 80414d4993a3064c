from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.ray
@pytest.mark.slow
def test_the_benchmark_compares_the_same_work(tmp_path: Path) -> None:
    command = [sys.executable, "jobs/benchmarks/cluster.py", "--clips", "12", "--frames", "4", "--nodes", "2"]
    command += ["--rounds", "1", "--json", str(tmp_path / "out.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "out.json").read_text())
    assert (report["clips"], report["nodes"]) == (12, 2)
    (row,) = report["rounds"]
    assert row["plain_s"] > 0
    assert row["more"] == pytest.approx(row["cluster_s"] / row["plain_s"] - 1)
    assert row["more_than_at_once"] == pytest.approx(row["cluster_s"] / row["at_once_s"] - 1)
    assert row["equal_shards"] == row["shards"] > 0
    assert row["driver_s"] > 0
    assert row["ray_s"] > 0
