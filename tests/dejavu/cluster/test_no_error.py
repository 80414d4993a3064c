"""A driver's stderr without what looks like an error and is none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}
ADVICE = (
    "[2026-11-29 14:23:28,197 E 29499 29499] core_worker.cc:2465: Actor with class name: 'MapWorker(MapBatches)' and "
    "ID: 'c5bb' has constructor arguments in the object store and max_restarts > 0. If the arguments go out of scope"
)
REAL = "[2026-11-29 14:23:28,197 E 29499 29499] core_worker.cc:900: the control store is gone"
BEGIN = f"""
import os, sys
from dejavu.cluster.no_error import without_advice
with without_advice():
    os.write(2, {(ADVICE + chr(10) + REAL + chr(10)).encode()!r})
    print('(Controller pid=3)', {ADVICE!r}, file=sys.stderr)
    print('said by Python', file=sys.stderr)
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_advice_alone_is_left_out() -> None:
    end = "os.write(2, b'after it\\n')\nsys.exit(3)"
    done = run(BEGIN + end)
    assert done.returncode == 3
    assert done.stderr.splitlines() == [REAL, "said by Python", "after it"]


def test_what_is_raised_passes_and_fd_2_is_as_before() -> None:
    done = run(BEGIN + "    raise ValueError('one line')\n")
    assert done.returncode == 1
    assert "ValueError: one line" in done.stderr
    assert ADVICE not in done.stderr


def test_last_words_of_a_driver_that_crashes_are_seen() -> None:
    # The pipe of stderr ends when the process that passes on has, so that run() waits for it.
    done = run(BEGIN + "    os.write(2, b'check failed')\n    os.abort()\n")
    assert done.returncode == -signal.SIGABRT
    assert REAL in done.stderr
    assert "check failed" in done.stderr
    assert ADVICE not in done.stderr


def test_ctrl_c_ends_the_driver_alone_and_its_words_pass() -> None:
    code = (
        BEGIN + "    try:\n        os.killpg(0, 2)\n    except KeyboardInterrupt:\n        os.write(2, b'stopped\\n')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        start_new_session=True,
    )
    assert done.returncode == 0
    assert "stopped" in done.stderr
    assert REAL in done.stderr


def test_without_a_stderr_or_a_process_the_job_runs_all_the_same(tmp_path: Path) -> None:
    code = "import sys\nfrom dejavu.cluster.no_error import without_advice\n"
    code += "sys.executable = {executable!r}\nwith without_advice():\n    print('ran')\n"
    for executable, closed in ((sys.executable, "2>&-"), (str(tmp_path / "nowhere"), "")):
        done = subprocess.run(
            f'"$PYTHON" -c "$CODE" {closed}',
            shell=True,
            env=ENVIRONMENT | {"PYTHON": sys.executable, "CODE": code.format(executable=executable)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "ran\n", "")
