"""Start a Ray cluster of this project's own on this machine, submit the pipeline to it, and stop exactly that cluster.

`python jobs/submit.py demo` does what `make pipeline` does after installation. It takes free ports, so that it stands
beside any other cluster, and ends only the processes that it started, by their process group.
"""

import _bootstrap

import contextlib
import json
import logging
import os
import random
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE
from ray._private.runtime_env.packaging import create_package

from dejavu.cluster.cluster import NODE_SETTINGS
from dejavu.cluster.own_folder import FolderError, shorten_tmpdir
from dejavu.stages.frontier import git_commit

RAY = Path(sys.executable).with_name("ray")
START_TIMEOUT_S = 120
STOP_TIMEOUT_S = 10
PORTS = range(20_000, 32_768)
"""Above those that Ray gives its workers, below those that Linux gives whoever asks for any."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster that runs here."""

    address: str
    """For RAY_ADDRESS."""
    dashboard: str
    """For `ray job submit --address`."""
    token: Path
    """File of the secret without which the cluster answers nobody; only this user may read it."""
    pid: int
    """Of `ray start`, whose descendants the cluster's processes are."""


def main(arguments: list[str]) -> int:
    """Submit the pipeline with these arguments; return the job's exit status."""
    if {"-h", "--help"} & set(arguments):  # no cluster is needed to answer this
        return subprocess.call([sys.executable, _bootstrap.ROOT / "jobs" / "pipeline.py", *arguments])
    results = Path.cwd() / "results"
    check_package(_bootstrap.ROOT)
    with cluster() as started:
        print(f"Ray dashboard {started.dashboard} (it asks for the token in {started.token})", flush=True)
        variables = {
            "PYTHONPATH": "platform",
            "DEJAVU_RESULTS": str(results),
            "DEJAVU_GIT_COMMIT": git_commit(None),
        }
        command = [RAY, "job", "submit", "--address", started.dashboard, "--working-dir", _bootstrap.ROOT]
        command += ["--runtime-env-json", json.dumps({"env_vars": variables})]
        command += ["--", "python", "jobs/pipeline.py", *arguments]
        print("$", shlex.join(map(str, command)), flush=True)
        # What Ray leaves out by itself it warns of each time; `.rayignore` leaves it out as well.
        settings = {**environment(started.token), "RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES": ""}
        settings["PYTHONUNBUFFERED"] = "1"  # of `ray job submit` alone: lines come as they are written
        return subprocess.run(list(map(str, command)), env=settings, check=False).returncode


def check_package(root: Path) -> None:
    """End this program with one line where what Ray would ship of a folder is more than its dashboard takes.

    `.rayignore` says what is shipped.
    """
    with tempfile.TemporaryDirectory(prefix="dejavu-") as folder:
        package = Path(folder) / "package.zip"
        logger = logging.getLogger(__name__)  # says less than Ray's own
        create_package(str(root), package, include_gitignore=True, logger=logger)
        size = package.stat().st_size
        if size >= DASHBOARD_CLIENT_MAX_SIZE:
            with zipfile.ZipFile(package) as shipped:
                largest = max(shipped.infolist(), key=lambda file: file.compress_size)
            sys.exit(
                f"working directory: got {size / 2**20:.0f} MiB to ship of {root}, expected less than "
                f"{DASHBOARD_CLIENT_MAX_SIZE >> 20} MiB, which Ray takes; the largest file is {largest.filename}: move "
                "it out, or name it in .rayignore"
            )


@contextlib.contextmanager
def cluster(num_cpus: int | None = None, autoscaling: Mapping[str, Any] | None = None) -> Iterator[Cluster]:
    """Run a cluster of one node, or one that grows, which answers this user alone, and end it.

    The dashboard listens on loopback, but Ray's own services listen on every interface whatever the node's address, and
    run what they are sent: hence the token.

    Args:
        num_cpus: That the node offers; all that this machine has unless given.
        autoscaling: What `ray up` would read from its file: the head then offers what its type has there, and the
            provider is told the cluster's address. None for a cluster that stays as it is.
    """
    # Unix socket paths are short: Ray's own folder must be too, so it is not in the project.
    shorten_tmpdir()
    folder = Path(tempfile.mkdtemp(prefix="dejavu-"))
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32), encoding="ascii")
    ports = free_ports(6)
    names = ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port")
    options = [f"--{name}={port}" for name, port in zip(names, ports, strict=False)]
    options += [f"--dashboard-agent-grpc-port={ports[4]}", f"--metrics-export-port={ports[5]}"]
    command = [RAY, "start", "--head", "--block", "--disable-usage-stats", "--include-dashboard=true"]
    command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}", *options]
    command += [] if num_cpus is None else [f"--num-cpus={num_cpus}"]
    address = f"127.0.0.1:{ports[0]}"
    if autoscaling is not None:
        head = autoscaling["available_node_types"][autoscaling["head_node_type"]]["resources"]
        command += [f"--num-cpus={head['CPU']}", f"--num-gpus={head['GPU']}"]
        config = folder / "autoscaling.json"  # which is YAML too
        config.write_text(json.dumps({**autoscaling, "provider": {**autoscaling["provider"], "gcs_address": address}}))
        command += [f"--autoscaling-config={config}"]
    log = folder / "start.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            list(map(str, command)), stdout=output, stderr=output, env=environment(token), start_new_session=True
        )
    started = Cluster(address, f"http://127.0.0.1:{ports[1]}", token, process.pid)
    try:
        wait(started, process, log)
        yield started
    finally:
        stop(process, folder)
        shutil.rmtree(folder, ignore_errors=True)


def add_node(started: Cluster, num_cpus: int) -> subprocess.Popen[bytes]:
    """Start one more node of a cluster on this machine and wait until the cluster knows it; it ends with the cluster.

    Ray ends a node that starts too slowly, as on a busy machine: another one is started then.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    number = len(list(started.token.parent.glob("node-*.log")))
    log = started.token.parent / f"node-{number}.log"
    while True:
        with log.open("wb") as output:
            node = subprocess.Popen(
                _node_command(started, num_cpus),
                env=environment(started.token),
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        while node.poll() is None and time.monotonic() < deadline:
            # `ray start` says so once it found the node, with its agents' ports, in the cluster's own list.
            if b"Ray runtime started" in log.read_bytes():
                return node
            time.sleep(0.1)
        if time.monotonic() >= deadline:
            sys.exit(f"Ray: got no node within {START_TIMEOUT_S} s, expected one more; it said: {_last_line(log)}")


def _node_command(started: Cluster, num_cpus: int) -> list[str]:
    names = ("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port")
    command = [RAY, "start", f"--address={started.address}", "--block", "--disable-usage-stats"]
    command += ["--node-ip-address=127.0.0.1", f"--num-cpus={num_cpus}", "--object-store-memory=200000000"]
    command += [f"--{name}={port}" for name, port in zip(names, free_ports(len(names)), strict=True)]
    return list(map(str, command))


def environment(token: Path) -> dict[str, str]:
    """Return this environment without another cluster's address and token, and with this Python first on the path.

    A job's `python` is the one that runs here. Only the token's path is in the environment, never the token.
    """
    other = ("RAY_ADDRESS", "RAY_AUTH_TOKEN")
    kept = {name: value for name, value in os.environ.items() if name not in other}
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    settings = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    return NODE_SETTINGS | kept | {"PATH": path} | settings


def free_ports(count: int) -> list[int]:
    """Return ports that are free now, all different.

    They are drawn by lot between those that Ray gives its workers and those that the system gives whoever asks for any:
    nobody is given one of them before the server that it is for takes it.
    """
    found: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        with contextlib.suppress(OSError), socket.socket() as one:
            one.bind(("", port))
            found.append(port)
        if len(found) == count:
            return found
    sys.exit(f"ports: got {len(found)} free ones of {PORTS}, expected {count}; end servers that are not needed")


def wait(started: Cluster, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the dashboard takes jobs."""
    bearer = {"Authorization": f"Bearer {started.token.read_text(encoding='ascii')}"}
    request = urllib.request.Request(f"{started.dashboard}/api/jobs/", headers=bearer)
    began = time.monotonic()
    while time.monotonic() < began + START_TIMEOUT_S:
        if process.poll() is not None:
            sys.exit(
                f"Ray: got an end of `ray start` after {time.monotonic() - began:.0f} s, status {process.returncode}, "
                f"expected a cluster; it said: {_last_line(log)}"
            )
        try:
            with urllib.request.urlopen(request, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    sys.exit(f"Ray: got no dashboard within {START_TIMEOUT_S} s, expected a cluster; it said: {_last_line(log)}")


def stop(process: subprocess.Popen[bytes], folder: Path) -> None:
    """End the cluster's own processes, its added nodes and what still works on it.

    `ray start` ends what it started within seconds, but waits for much longer where that was told to end as well.
    """
    own = (process.pid, folder)
    for name, chosen in ((signal.SIGTERM, not_rays), (signal.SIGTERM, list), (signal.SIGKILL, list)):
        for pid in chosen([process.pid, *members(*own)]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, name)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while time.monotonic() < deadline:
            process.poll()
            if process.returncode is not None and not members(*own):
                return
            time.sleep(0.2)


def not_rays(pids: list[int]) -> list[int]:
    """Leave out what a `ray start` among them started, which shares its session."""
    sessions = {pid: _session(pid) for pid in pids}
    started = {pid for pid, session in sessions.items() if pid == session and _is_ray_start(pid)}
    return [pid for pid, session in sessions.items() if pid == session or session not in started]


def members(session: int, folder: Path) -> list[int]:
    """List live processes of our session, those whose command line names our folder, and those given our token.

    `ray start` of a node that was added later is known by the token alone.
    """
    found = []
    for process in psutil.process_iter(["pid", "status", "cmdline"]):
        with contextlib.suppress(ProcessLookupError, psutil.Error):
            named = any(str(folder) in word for word in process.info["cmdline"] or ())
            ours = named or os.getsid(process.pid) == session or _token_lies_in(process, folder)
            if process.info["status"] != psutil.STATUS_ZOMBIE and ours:
                found.append(process.pid)
    return found


def _last_line(log: Path) -> str:
    return (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["nothing"])[-1]


def _session(pid: int) -> int:
    with contextlib.suppress(ProcessLookupError):
        return os.getsid(pid)
    return -1


def _is_ray_start(pid: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).cmdline()[1:3][-1:] == ["start"]
    return False


def _token_lies_in(process: psutil.Process, folder: Path) -> bool:
    token = process.environ().get("RAY_AUTH_TOKEN_PATH", "")
    return process.pid != os.getpid() and Path(token).is_relative_to(folder)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except FolderError as error:
        sys.exit(f"error: {error}")
