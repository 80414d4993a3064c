"""Fixtures that every test may use."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

Pipeline = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of golden numbers and real data beside the project; tests skip plainly where it is absent."""
    if not (SHARED / "golden").is_dir():
        pytest.skip("the folder ../shared with golden numbers and real clips is not here")
    return SHARED


@pytest.fixture(scope="session")
def ray_environment() -> Iterator[dict[str, str]]:
    """An environment in which drivers attach to one cluster that all tests share."""
    import submit

    with submit.cluster(Path(sys.executable).with_name("ray")) as cluster:
        settings = {"RAY_ADDRESS": cluster.address, "HF_HUB_OFFLINE": "1", "DASHBOARD": cluster.dashboard}
        cleared = {name: value for name, value in os.environ.items() if name not in ("MLFLOW_TRACKING_URI",)}
        yield cleared | submit.environment(cluster.token) | settings


@pytest.fixture(scope="session")
def pipeline(ray_environment: dict[str, str]) -> Pipeline:
    """Run `python jobs/pipeline.py` with these words on the shared cluster."""

    def run(*words: str | Path, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "jobs" / "pipeline.py"), *map(str, words)]
        return subprocess.run(
            command, env=ray_environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )

    return run


@pytest.fixture(scope="session")
def tiny_results(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results folder of one whole run of the tiny recipe."""
    results = tmp_path_factory.mktemp("tiny")
    done = pipeline("tiny", "--results", results)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return results
