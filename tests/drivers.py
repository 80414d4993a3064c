"""Drivers that are forked from a process that has imported what all of them import: each saves the seconds that takes.

Scripts in processes of their own are what a submitted job of tests/jobs/test_pipeline.py, tests/test_autoscaling.py and
tests/jobs/test_embed.py run.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FORK_SERVER = multiprocessing.get_context("forkserver")
FORK_SERVER.set_forkserver_preload(["tests.driver_imports"])
OF_SERVER = {"RAY_AUTH_MODE": "token", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
"""Variables of the process that is forked: what packages read when they are imported, and where that is found from."""


class Driver:
    """A running script of `jobs/`, with the part of `subprocess.Popen` that tests use."""

    def __init__(self, script: str, *words: object, env: Mapping[str, str], stdout: Path, stderr: Path) -> None:
        """Start `python jobs/{script} words...`; what it prints is appended to files."""
        for path in {stdout, stderr}:
            path.touch()  # whoever looks for it before the process has begun finds it
        arguments = [str(ROOT / "jobs" / script), *map(str, words)]
        self._process: ForkServerProcess = FORK_SERVER.Process(
            target=_run, args=(arguments, dict(env), str(stdout), str(stderr), str(Path.cwd()))
        )
        with pytest.MonkeyPatch.context() as environment:  # the first driver starts the server
            for name, value in OF_SERVER.items():
                environment.setenv(name, value)
            self._process.start()

    @property
    def pid(self) -> int:
        """The process."""
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """Return the exit status, None while it runs; the negative of a signal that ended it."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status.

        Raises:
            subprocess.TimeoutExpired: It still runs.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("driver", timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once, if it still runs."""
        self.send_signal(signal.SIGKILL)


def run_driver(
    script: str, *words: object, env: Mapping[str, str], timeout: float = 900
) -> subprocess.CompletedProcess[str]:
    """Run `python jobs/{script} words...` to its end, as `subprocess.run` with its output captured.

    Raises:
        subprocess.TimeoutExpired: It ran longer than `timeout` seconds, and is ended.
    """
    with tempfile.TemporaryDirectory() as folder:
        stdout, stderr = Path(folder, "stdout"), Path(folder, "stderr")
        driver = Driver(script, *words, env=env, stdout=stdout, stderr=stderr)
        try:
            status = driver.wait(timeout)
        finally:
            driver.kill()
        said = [path.read_text(encoding="utf-8", errors="replace") for path in (stdout, stderr)]
        return subprocess.CompletedProcess([script, *map(str, words)], status, *said)


def _run(arguments: list[str], environment: dict[str, str], stdout: str, stderr: str, folder: str) -> None:
    """Be the script: in the forked process, which has run nothing yet."""
    for stream, path in ((1, stdout), (2, stderr)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, stream)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    sys.argv = arguments
    sys.path.insert(0, str(Path(arguments[0]).parent))
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    finally:
        # multiprocessing ends its processes without them, and Ray's says good-bye to the cluster.
        atexit._run_exitfuncs()
