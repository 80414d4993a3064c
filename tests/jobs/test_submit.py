"""What belongs to a cluster that `jobs/submit.py` started."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import submit

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("jobs", "platform", "reuse_models", "tune_spaces")


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


def test_a_cluster_that_ends_at_once_is_said_to(tmp_path: Path) -> None:
    token, log = tmp_path / "token", tmp_path / "start.log"
    token.write_text("secret")
    log.write_text("OSError: no room for a socket\n")
    with subprocess.Popen([sys.executable, "-c", "exit(3)"]) as process:
        started = submit.Cluster("127.0.0.1:1", "http://127.0.0.1:1", token, process.pid)
        with pytest.raises(SystemExit, match=r"`ray start` after \d s, status 3, .* it said: OSError: no room for a"):
            submit.wait(started, process, log)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The project as a user has it, with videos beside it and within."""
    root = tmp_path / "clone"
    for name in PACKAGES:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".gitignore", ".rayignore", "pyproject.toml"):
        shutil.copy(ROOT / name, root / name)
    for name in ("videos", "platform/videos", ".cache"):
        (root / name).mkdir()
        (root / name / "a.mp4").write_bytes(b"film")
    (root / "videos" / "map.json").write_text("{}")
    (root / "jobs" / "b.MKV").write_bytes(b"film")
    (root / "c.webm").write_bytes(b"film")
    for name in (".git", ".venv", "jobs/__pycache__"):
        (root / name).mkdir()
        (root / name / "c.cpython-311.pyc").write_bytes(b"code")
    return root


def test_a_job_ships_what_the_packages_need_and_nothing_else(clone: Path, tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import create_package

    zipped = tmp_path / "package.zip"
    create_package(str(clone), zipped, include_gitignore=True)
    with zipfile.ZipFile(zipped) as package:
        shipped = {name for name in package.namelist() if not name.endswith("/")}
    ours = {path for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file()}
    needed = {path for path in ours if "__pycache__" not in path.parts and path.suffix != ".sh"}
    assert shipped == {path.relative_to(ROOT).as_posix() for path in needed}
    assert "platform/dejavu/backbones/embedded/model.safetensors" in shipped


def test_more_than_ray_takes_is_one_line_before_anything_starts(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submit.check_package(clone)
    monkeypatch.setattr(submit, "DASHBOARD_CLIENT_MAX_SIZE", 9 * 2**20)
    (clone / "platform" / "large.safetensors").write_bytes(random.Random(0).randbytes(9 * 2**20))
    with pytest.raises(
        SystemExit, match=r"got \d+ MiB to ship .* expected less than 9 MiB.*platform/large.safetensors"
    ):
        submit.check_package(clone)


@pytest.mark.ray
@pytest.mark.slow
def test_help_is_the_pipelines_and_starts_no_cluster(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(submit, "cluster")
    assert submit.main(["folder", "--help"]) == 0
    assert "usage: python jobs/pipeline.py folder" in capfd.readouterr().out


def test_workers_that_wait_for_work_longer_than_a_moment_are_kept(
    ray_environment: dict[str, str], tmp_path: Path
) -> None:
    """One more than CPUs: Ray of its own accord ends it after a second, and a reader loads everything again."""
    asks = """
import os, sys, time, ray
from pathlib import Path
ray.init(log_to_driver=False)
count = int(ray.cluster_resources()["CPU"]) + 1
@ray.remote(num_cpus=0.1)
def meet(folder):
    (Path(folder) / str(os.getpid())).touch()
    while len(os.listdir(folder)) < count:
        time.sleep(0.05)
    return os.getpid()
def workers(name):
    folder = Path(sys.argv[1]) / name
    folder.mkdir()
    return set(ray.get([meet.remote(str(folder)) for _ in range(count)], timeout=90))
before = workers("before")
time.sleep(3)
print(len(before) - count, len(workers("after") - before))
"""
    call = [sys.executable, "-c", asks, str(tmp_path)]
    done = subprocess.run(call, env=ray_environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.stdout.split()[-2:] == ["0", "0"], done.stdout + done.stderr[-2000:]


@pytest.mark.ray
@pytest.mark.slow
def test_a_cluster_ends_when_told_whatever_outlives_its_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of Ray Data's actors do, and Ray would wait for them until it is killed."""
    ended: list[int | None] = []
    stop = submit.stop

    def watched(process: subprocess.Popen[bytes], folder: Path) -> None:
        stop(process, folder)
        ended.append(process.returncode)

    monkeypatch.setattr(submit, "stop", watched)
    code = "import ray; ray.init(); assert len(list(ray.data.range(4).map(lambda row: row).iter_rows())) == 4"
    with submit.cluster(num_cpus=1) as started:
        environment = {**submit.environment(started.token), "RAY_ADDRESS": started.address}
        subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=900)
    assert ended == [1], "it ends itself with status 1; killed, it would be negative"
