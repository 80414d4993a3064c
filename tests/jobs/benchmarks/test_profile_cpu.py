from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
def test_each_line_has_its_parts() -> None:
    command = [sys.executable, "jobs/benchmarks/profile_cpu.py", "--streams", "2", "--rounds", "2", "--rows", "3"]
    command += ["--reuse-rates", "0.8"]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    (dense,) = (line.split() for line in lines if line.startswith("dense"))
    (reused,) = (line.split() for line in lines if line.startswith("80% reused"))
    assert dense[1:4:2] == ["1.00x", "1.00x"]
    assert float(reused[2].rstrip("x")) > 1.5, "fewer FLOPs"
    for row in (dense[2:], reused[3:]):
        # Wall clock and products are timed apart, so that on a busy machine either may be the larger.
        wall, products, other = float(row[0]), float(row[3]), float(row[5])
        assert wall > 0
        assert products > 0
        assert other == pytest.approx(wall - products, abs=0.002)
    assert any("aten::addmm" in line or "aten::mm" in line for line in lines)
