"""What belongs to a cluster that `jobs/submit.py` started."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
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


def test_a_port_that_is_taken_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = submit.free_ports(3)
    assert len(set(ports)) == 3
    monkeypatch.setattr(submit, "PORTS", tuple(ports))
    with socket.create_server(("127.0.0.1", ports[1])):
        assert set(submit.free_ports(2)) == {ports[0], ports[2]}
        with pytest.raises(SystemExit, match=r"ports: got 2 free ones .* expected 3; end servers"):
            submit.free_ports(3)


def test_workers_that_wait_for_work_longer_than_a_moment_are_kept(ray_environment: dict[str, str]) -> None:
    """More of them than CPUs: those Ray ends after a second of its own accord, and readers load everything again."""
    asks = """
import os, time, ray
ray.init(log_to_driver=False)
task = ray.remote(num_cpus=0.1)(lambda: (time.sleep(0.5), os.getpid())[1])
count = 2 * int(ray.cluster_resources()["CPU"])
before = set(ray.get([task.remote() for _ in range(count)]))
time.sleep(3)
after = set(ray.get([task.remote() for _ in range(count)]))
print(len(before), len(after - before))
"""
    done = subprocess.run(
        [sys.executable, "-c", asks], env=ray_environment, capture_output=True, text=True, timeout=120, check=True
    )
    started, started_again = map(int, done.stdout.split()[-2:])
    assert started > 1
    assert started_again == 0, done.stderr[-2000:]
