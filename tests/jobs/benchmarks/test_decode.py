from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
def test_the_benchmark_prints_both_costs_and_their_ratio() -> None:
    command = [sys.executable, "jobs/benchmarks/decode.py", "--num-frames", "24", "--rounds", "2"]
    table = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    ratio = re.search(r"^ratio +([0-9.]+)", table, re.MULTILINE)
    assert ratio is not None
    assert float(ratio[1]) > 0
