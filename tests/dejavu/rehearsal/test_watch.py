"""Memory and bytes that are known are seen."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dejavu.rehearsal.watch import Watch, folder_bytes, is_worker, memory_bytes

HOLD = "import sys; held = b'x' * ({mib} * 2**20); print('held', flush=True); sys.stdin.read()"


def hold(mib: int) -> subprocess.Popen[str]:
    """Start a process that holds so much memory until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(mib=mib)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def let_go(process: subprocess.Popen[str]) -> None:
    process.communicate()


def test_a_drivers_memory_and_written_bytes_are_seen(tmp_path: Path) -> None:
    process = hold(64)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_bytes(b"x" * 1000)
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "file")
    watch = Watch(process.pid, process.pid, tmp_path)
    watch.start()
    deadline = time.monotonic() + 20
    while not watch.samples and time.monotonic() < deadline:
        time.sleep(0.05)
    samples = watch.stop()
    let_go(process)
    assert samples[-1].written == 1000
    assert 64 * 2**20 < samples[-1].driver < 110 * 2**20
    assert samples[-1].others == pytest.approx(samples[-1].driver, rel=0.05)  # no worker of Ray's
    assert (samples[-1].workers, samples[-1].largest_worker) == (0, 0)


def test_a_process_that_ended_holds_nothing() -> None:
    process = hold(1)
    watched = psutil.Process(process.pid)
    assert memory_bytes(watched) > 2**20
    let_go(process)
    assert memory_bytes(watched) == 0
    assert not is_worker(watched)


def test_a_worker_is_known_by_its_command_line() -> None:
    code = "print(flush=True); input()"
    pipe = subprocess.PIPE
    with subprocess.Popen(["ray::Map", "-c", code], executable=sys.executable, stdin=pipe, stdout=pipe) as named:
        assert named.stdout is not None
        named.stdout.readline()  # until it runs, it has its parent's command line
        found = is_worker(psutil.Process(named.pid))
        named.communicate(b"\n")
    assert found
    assert not is_worker(psutil.Process())


def test_an_empty_folder_has_no_bytes(tmp_path: Path) -> None:
    assert folder_bytes(tmp_path) == folder_bytes(tmp_path / "absent") == 0
