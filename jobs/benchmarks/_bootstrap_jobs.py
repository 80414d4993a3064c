"""Does for a benchmark what `jobs/_bootstrap.py` does for a job, and lets it find the jobs: imported first."""

import runpy
import sys
from pathlib import Path

JOBS = Path(__file__).resolve().parents[1]

if str(JOBS) not in sys.path:
    sys.path.insert(1, str(JOBS))
runpy.run_path(str(JOBS / "_bootstrap.py"))
