from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_one_pass_costs_at_most_1_8_times_a_plain_decode() -> None:
    command = [sys.executable, "jobs/benchmark_decode.py", "--num-frames", "200", "--rounds", "5"]
    table = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    ratio = re.search(r"^ratio +([0-9.]+)", table, re.MULTILINE)
    assert ratio is not None
    assert 1.0 < float(ratio[1]) <= 1.8
