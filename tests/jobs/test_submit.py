"""What belongs to a cluster that `jobs/submit.py` started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import submit


def test_what_was_given_the_clusters_token_belongs_to_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "input()"]
    given, other = (
        subprocess.Popen(
            command, stdin=subprocess.PIPE, start_new_session=True, env=submit.environment(folder / "token")
        )
        for folder in (tmp_path, tmp_path.with_name("another"))
    )
    try:
        with given, other:
            assert submit.members(os.getpid() + 10**7, tmp_path) == [given.pid]
            for process in (given, other):
                process.communicate(b"\n")
    finally:
        given.kill()
        other.kill()
