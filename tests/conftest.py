"""Fixtures that every test may use."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.drivers import run_driver

if not Path("/dev/nvidiactl").exists():
    # Without a GPU Triton's kernels run in its interpreter, if that is said before anything imports Triton.
    os.environ["TRITON_INTERPRET"] = "1"

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

Pipeline = Callable[..., "subprocess.CompletedProcess[str]"]
WithWorld = Callable[[Path], Path]
BRIEFLY = (
    *("--measure.num-clips", "2", "--measure.num-frames", "8", "--measure.num-rounds", "2"),
    *("--train.max-steps", "2", "--train.warm-up.steps", "20", "--train.warm-up.num-clips", "4"),
    *("--train.validation-windows", "8", "--train.calibration-clips", "2"),
)
"""How settings are timed and add-ons are trained where a test does not say how."""
SHARED_RUNS = ("undisturbed", "tiny_results")
"""Fixtures that take a minute and more: what reads one of them runs in one process of several."""


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep tests together that share what is dear to make, the longest first, where several processes run them."""
    if not hasattr(config, "workerinput"):
        return

    def shared(item: pytest.Item) -> list[str]:
        return [name for name in SHARED_RUNS if name in getattr(item, "fixturenames", ())]

    def last(item: pytest.Item) -> int:
        marks = {mark.name for mark in item.iter_markers()}
        return 3 - ("slow" in marks) - ("ray" in marks) - bool(shared(item))

    for item in items:
        item.add_marker(pytest.mark.xdist_group(next(iter(shared(item)), item.nodeid.partition("::")[0])))
    items.sort(key=last)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of golden numbers and real data beside the project; tests skip plainly where it is absent."""
    if not (SHARED / "golden").is_dir():
        pytest.skip("the folder ../shared with golden numbers and real clips is not here")
    return SHARED


@pytest.fixture(scope="session")
def s3_variables() -> Iterator[dict[str, str]]:
    """What the environment says of an object store on this machine, whether it runs yet or not."""
    import submit

    variables = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{submit.free_ports(1)[0]}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as environment:
        for name, value in variables.items():
            environment.setenv(name, value)
        yield variables


@pytest.fixture(scope="session")
def s3_server(s3_variables: dict[str, str]) -> Iterator[str]:
    """The address of a server that speaks S3, of these tests alone."""
    address = s3_variables["AWS_ENDPOINT_URL"]
    command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", address.rpartition(":")[2]]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 120
        while time.monotonic() < until and process.poll() is None:
            with suppress(OSError), urllib.request.urlopen(f"{address}/moto-api/", timeout=5):
                break
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def bucket(s3_server: str) -> Any:
    """An empty bucket, as a place."""
    from dejavu.storage.store_path import store_path

    name = f"bucket-{uuid.uuid4().hex[:8]}"
    root = store_path(f"s3://{name}/")
    root.fs.mkdir(name)  # type: ignore[union-attr]
    return root


@pytest.fixture(scope="session")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database for all runs of which no test reads what they log: one takes seconds to make."""
    return f"sqlite:///{tmp_path_factory.mktemp('tracking') / 'mlflow.db'}"


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe's videos and questions, drawn once for all runs that are not about drawing."""
    from dejavu.datasets.synthetic import make_world
    from dejavu.experiment import RECIPES

    return make_world(tmp_path_factory.mktemp("drawn") / "world", RECIPES["tiny"][1].synthetic)


@pytest.fixture(scope="session")
def with_world(world: Path) -> WithWorld:
    """Make a results folder in which the tiny recipe has nothing left to draw."""

    def make(results: Path) -> Path:
        results.mkdir(parents=True, exist_ok=True)
        (results / "world").symlink_to(world)
        return results

    return make


@pytest.fixture(scope="session")
def ray_cluster(s3_variables: dict[str, str]) -> Iterator[Any]:
    """The one cluster that all tests share, of two CPUs wherever they run."""
    import submit

    with pytest.MonkeyPatch.context() as environment:
        # Hundreds of workers leave a log each: Ray would look for new ones twice a second.
        environment.setenv("LOG_NAME_UPDATE_INTERVAL_S", "2")
        with submit.cluster(num_cpus=2) as cluster:
            yield cluster


@pytest.fixture(scope="session")
def ray_environment(ray_cluster: Any, tracking_uri: str) -> dict[str, str]:
    """An environment in which drivers attach to the cluster."""
    import submit

    settings = {"RAY_ADDRESS": ray_cluster.address, "HF_HUB_OFFLINE": "1", "DASHBOARD": ray_cluster.dashboard}
    settings["MLFLOW_TRACKING_URI"] = tracking_uri
    return dict(os.environ) | submit.environment(ray_cluster.token) | settings


@pytest.fixture(scope="session")
def pipeline(ray_environment: dict[str, str]) -> Pipeline:
    """Run `python jobs/pipeline.py` with these words on the shared cluster, and on the shared database unless told.

    Settings are timed and add-ons are trained briefly, unless the words say otherwise.
    """

    def run(recipe: str, *words: str | Path, own_database: bool = False) -> subprocess.CompletedProcess[str]:
        environment = dict(ray_environment)
        if own_database:
            del environment["MLFLOW_TRACKING_URI"]
        return run_driver("pipeline.py", recipe, *BRIEFLY, *words, env=environment)

    return run


@pytest.fixture(scope="session")
def tiny_results(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results folder of one whole run of the tiny recipe."""
    results = tmp_path_factory.mktemp("tiny")
    done = pipeline("tiny", "--results", results, own_database=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "constructor arguments in the object store" not in done.stderr  # Ray says so of every pool of actors
    return results
