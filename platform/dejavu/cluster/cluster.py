"""The Ray cluster: attach or start, make the project importable on every worker, and size stages to what is there."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import grpc
import ray
from ray._private import services
from ray._private.grpc_utils import init_grpc_channel
from ray.exceptions import AuthenticationError

from dejavu.cluster.own_folder import ensure_token, shorten_tmpdir
from dejavu.observability.events import LOGS_VARIABLE
from dejavu.storage.one_line import OneLineError
from dejavu.storage.results_folder import enter_again

_log = logging.getLogger(__name__)
Result = TypeVar("Result")

PACKAGES_ROOT = Path(__file__).resolve().parents[3]
"""The folder that holds platform/ and reuse_models/ (Ray's unpacked copy of it in a submitted job)."""
NODE_GROUP_LABEL = "ray.io/node-group"
"""Ray's own label of a machine that a cluster launcher or KubeRay started as one of a type."""
NODE_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_idle_worker_killing_time_threshold_ms": "60000",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
}
"""Environment of Ray's own processes where we start them.

A machine with more workers than CPUs ends those that were idle for a second, unless told otherwise: readers would start
again, at some 3 s of processor each, for every batch that keeps the encoders busy for longer. And a node that is told
to end waits for 30 s until nothing is left on it, which some of Ray Data's actors, outliving their jobs, always are.
"""
PROCESS_BYTES = 600 * 2**20
"""Of a worker before it has loaded anything: Python, PyTorch, Ray and what they import."""
ANSWER_TIMEOUT_S = 20.0
"""A control store that is well answers within milliseconds, on a machine that is very busy within seconds."""
_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
_SILENT = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)
TAKEN = (signal.SIGINT, signal.SIGUSR1)
"""Signals that Ray Train and Ray Tune handle by handlers of their own, which they leave in place."""
MACHINE_TIMEOUT_S = 1800
"""A cloud's GPU machine spends ten minutes or more on installing before it joins."""


class ClusterError(OneLineError):
    """The cluster cannot do what was asked; one line says why and what to do."""


def handle_preemption() -> None:
    """Let SIGTERM end this driver as Ctrl-C does; call it after `connect`, since Ray has a handler of its own.

    It comes when the driver's machine is taken away, or from `ray job stop`. Of all exceptions, KeyboardInterrupt is
    what Ray's waiting calls let through. Nothing waits for the batches in flight: they are whole in the store or
    absent, and `ray job stop` kills after 3 s.
    """
    signal.signal(signal.SIGTERM, _stop)


def _stop(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # once is enough, and what unwinds now should not be broken off
    raise KeyboardInterrupt


@contextmanager
def own_handlers() -> Iterator[None]:
    """Put back what handled signals before.

    After a sweep, Tune would swallow the first Ctrl-C. After a fit, Train's handler would end the process as if all
    were well, and hold on to the controller of the fit, an actor of 400 MB.
    """
    before = {number: signal.getsignal(number) for number in TAKEN}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():  # elsewhere they set none
            for number, handler in before.items():
                if handler is not None:  # one that is not Python's
                    signal.signal(number, handler)


def connect(num_cpus: int | None = None, logs: Path | None = None) -> None:
    """Attach to the running cluster, or start one on this machine, which Ray guards with a token of this user.

    Workers get PYTHONPATH through the runtime environment, since they do not see the driver's `sys.path`; it is
    relative to the working directory where the job has one, so that it also holds on other nodes.

    Args:
        num_cpus: CPUs of a cluster started here; ignored when attaching.
        logs: Where workers log what they do (`dejavu.observability.events`); nowhere unless given.

    Raises:
        FolderError: There is no folder for what a cluster of our own keeps.
        ClusterError: The cluster of RAY_ADDRESS does not answer or does not take this driver. One that is merely found
            on this machine is left alone then.
    """
    if ray.is_initialized():
        return
    for name, value in NODE_SETTINGS.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # a fit's lines appear once, not as log records as well
    job: dict[str, Any] = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}").get("runtime_env") or {}
    variables: dict[str, str] = {}
    if "PYTHONPATH" not in (job.get("env_vars") or {}):
        absolute = os.pathsep.join((str(PACKAGES_ROOT / "platform"), str(PACKAGES_ROOT)))
        variables["PYTHONPATH"] = "platform" if job.get("working_dir") else absolute
    if logs is not None:
        variables[LOGS_VARIABLE] = str(logs)
    asked = os.environ.get("RAY_ADDRESS") or None
    if asked and asked not in ("local", "auto") and "://" not in asked:
        # Ray Train's controller asks for the state of the cluster, and where there are two on a machine does not know
        # of which.
        variables["RAY_ADDRESS"] = asked
    runtime_env = {"env_vars": variables} if variables else None
    try:
        if asked != "local" and _attach(asked, runtime_env):
            return
    except _UnusableError as error:
        if asked:
            raise ClusterError(
                f"Ray: got {error}, expected a running cluster of the same Ray, Python and token; start it or unset "
                "RAY_ADDRESS"
            ) from error
        print(f"Ray: left alone what runs on this machine, {error}; starting a cluster of our own", flush=True)
    shorten_tmpdir()
    ensure_token()
    ray.init(address="local", num_cpus=num_cpus, runtime_env=runtime_env, logging_level=logging.WARNING)


class _UnusableError(Exception):
    """What kind of cluster was met instead of one that takes this driver."""


def _attach(asked: str | None, runtime_env: Mapping[str, Any] | None) -> bool:
    """Attach to the cluster that was asked for, or to one that is found on this machine; False where there is none."""
    try:
        address = cluster_here()
    except (ConnectionError, ValueError) as error:
        raise _UnusableError(f"no cluster for {asked} ({error})") from error
    if address is None and asked is None:
        return False
    if address is not None and not answers(address):
        raise _UnusableError(f"no answer from {address}")
    try:
        ray.init(address=asked, runtime_env=runtime_env, logging_level=logging.WARNING)
    except ConnectionError as error:
        raise _UnusableError(f"no answer from {address or asked}") from error
    except (RuntimeError, AuthenticationError) as error:
        ray.shutdown()  # what was half attached
        reason = " ".join(str(error).split())[:300]
        raise _UnusableError(f"a cluster at {address or asked} that refuses this driver ({reason})") from error
    return True


def cluster_here() -> str | None:
    """Return what `ray.init()` would attach to: RAY_ADDRESS, or what `ray start` noted on this machine.

    None is for neither, and for an address that another service than the control store answers, such as `ray://`.

    Raises:
        ConnectionError: RAY_ADDRESS is `auto`, and no cluster is here.
        ValueError: RAY_ADDRESS is no address.
    """
    asked = os.environ.get("RAY_ADDRESS")
    if asked and "://" in asked:
        return None
    address: str | None = services.canonicalize_bootstrap_address(asked)  # type: ignore[arg-type]  # None is taken
    return address


def answers(address: str) -> bool:
    """Whether a control store says anything at this address (host:port): Ray itself waits for one without end."""
    with init_grpc_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(_ALIVE)(b"", timeout=ANSWER_TIMEOUT_S)
        except grpc.RpcError as error:
            return error.code() not in _SILENT
    return True


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """How many actors encode, and what each of them holds."""

    num_actors: int
    cpus_per_actor: float
    gpus_per_actor: float
    cpus_per_reader: float
    """Of a task that decodes."""
    store_bytes: float = math.inf
    """What a pipeline may take of Ray's object store, if less than Ray Data's share of it."""


def actor_pool(num_workers: int | None, gpus_per_worker: float | None) -> Pool:
    """Fit the encoding actors to the cluster, leaving one CPU of every machine to the tasks that decode.

    On CPUs alone there is an actor for each CPU, each holding less than one: decoding is cheap and shares the machine.
    What they hold is so little that all of them fit on the smallest machine beside a reader: when machines are lost,
    Ray starts their actors again on those that are left; where none had a CPU left for readers, nothing would move.

    A cluster that grows is first brought to one machine that can take an actor. More actors than fit on what is up then
    wait for machines that their demand brings, and those that are up begin.

    Args:
        num_workers: Actors wanted, or None for as many as fit.
        gpus_per_worker: GPUs an actor holds, or None for one where the cluster has any.

    Raises:
        ClusterError: More is asked for than the cluster can ever give.
    """
    wait_for_nodes(gpus_per_worker)
    resources = ray.cluster_resources()
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    gpus_each = gpus_per_actor(gpus_per_worker)
    num_actors = num_workers or (int(gpus / gpus_each) if gpus_each else max(1, int(cpus)))
    if gpus_each and num_actors * gpus_each > gpus and not grows():
        raise ClusterError(
            f"num_workers: got {num_actors} with {gpus_each:g} GPUs each, expected at most {gpus:g} GPUs in all; "
            "lower --num-workers"
        )
    if num_actors > 100 * max(cpus - 1, 1):
        raise ClusterError(
            f"num_workers: got {num_actors} on {cpus:g} CPUs, expected at most {cpus:g}; lower --num-workers"
        )
    smallest = min((cpus, *_per_machine("CPU")))
    reader = 1.0 if smallest >= 2 else smallest / 2
    # Rounded down to what Ray counts in, so that the sum stays below whatever the rounding; many machines share less.
    share = max(0.01, min(1.0, math.floor((smallest - reader) / num_actors * 100) / 100))
    return Pool(num_actors=num_actors, cpus_per_actor=share, gpus_per_actor=gpus_each, cpus_per_reader=reader)


def gpus_per_actor(gpus_per_worker: float | None) -> float:
    """Return the GPUs that an actor holds: one where the cluster has any, unless a number is given."""
    if gpus_per_worker is not None:
        return gpus_per_worker
    return 1.0 if ray.cluster_resources().get("GPU") else 0.0


def run_on_gpu(function: Callable[..., Result], *arguments: object, num_gpus: float) -> Result:
    """Run a function once where an actor that holds so many GPUs could be, and return what it returns."""
    wait_for_nodes(num_gpus)
    found: Result = ray.get(ray.remote(num_cpus=1, num_gpus=num_gpus)(function).remote(*arguments))
    return found


def wait_for_nodes(gpus_per_worker: float | None) -> None:
    """Wait until a machine is up that can take a worker, on a cluster that grows on demand; elsewhere do not wait.

    `gpus_per_worker` is what a worker holds; None asks for a CPU alone.

    Raises:
        ClusterError: The cluster does not grow and has fewer GPUs, or no machine came in time.
    """
    enter_again()
    gpus_each = gpus_per_worker or 0.0
    resources = ray.cluster_resources()
    gpus = resources.get("GPU", 0.0)
    if gpus >= gpus_each and resources.get("CPU"):
        return
    if not grows():
        if gpus < gpus_each:
            raise ClusterError(
                f"gpus_per_worker: got {gpus_each:g}, expected at most the cluster's {gpus:g}; lower --gpus-per-worker"
            )
        return
    _log.warning("waiting for a machine with %g GPUs", gpus_each)
    # A task's demand ends with this driver; what ray.autoscaler.sdk.request_resources asks for does not.
    probe = ray.remote(num_cpus=1, num_gpus=gpus_each)(lambda: None).remote()
    if not ray.wait([probe], timeout=MACHINE_TIMEOUT_S)[0]:
        ray.cancel(probe)
        raise ClusterError(
            f"machines: got none with {gpus_each:g} GPUs within {MACHINE_TIMEOUT_S // 60} minutes, expected the "
            "autoscaler to start one; see `ray status`, or lower --gpus-per-worker"
        )
    enter_again()


def grows() -> bool:
    """Whether machines may come up on demand: some cluster launcher has started those that are here."""
    return any(NODE_GROUP_LABEL in node.get("Labels", {}) for node in ray.nodes() if node["Alive"])


def num_cpus() -> float:
    """Return the CPUs of all machines that are up."""
    return float(ray.cluster_resources().get("CPU", 0.0))


def _per_machine(resource: str) -> list[float]:
    """List what each machine has of a resource that is up and has any."""
    return [amount for node in ray.nodes() if node["Alive"] and (amount := node["Resources"].get(resource, 0.0))]


def memory_per_machine() -> list[int]:
    """List the bytes that Ray may give out on each machine that is up: what it found free, less its object store."""
    return [int(amount) for amount in _per_machine("memory")]


def hardware() -> str:
    """Name this machine's processor for keying measured times, such as `x86_64 2 cpus` or `NVIDIA H200`."""
    import platform  # noqa: PLC0415  the standard library's

    import torch  # noqa: PLC0415  heavy, and needed here alone

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name(0))
    return f"{_processor_name() or platform.machine()} x{os.cpu_count()}"


def cluster_hardware() -> str:
    """Name what encodes on this cluster, without starting a worker: its kinds of GPU, else the driver's processor."""
    kinds = sorted(name.partition(":")[2] for name in ray.cluster_resources() if name.startswith("accelerator_type:"))
    return " + ".join(kinds) or hardware()


def _processor_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
