"""The tracking server is away for a while."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dejavu.observability.tracking import Run, Tracking, TrackingError
from tests.mlflow_server import MlflowServer

pytestmark = [pytest.mark.faults, pytest.mark.filterwarnings("ignore")]  # the server's own warnings, in our process


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path, monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    yield server
    server.go()


def child(number: int) -> Run:
    return Run(name=f"cmc t={number}", params={"t": number}, metrics={"accuracy": number / 10}, tags={})


@pytest.mark.slow
def test_a_server_that_comes_back_has_every_run_once(
    server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = Tracking.open(tmp_path)
    log, logged = Tracking._log, []

    def log_and_go(self: Tracking, client: object, run: Run, tags: object) -> str:
        logged.append(run.name)
        if len(logged) == 3:  # between the first child and the second
            server.go()
            threading.Timer(3, server.come).start()
        return log(self, client, run, tags)

    monkeypatch.setattr(Tracking, "_log", log_and_go)
    parent = Run(name="tiny", params={}, metrics={}, tags={"recipe": "tiny"})
    parent_id = tracking.log(parent, [child(number) for number in range(4)])

    from mlflow import MlflowClient

    found = MlflowClient(server.uri).search_runs([tracking.experiment_id])
    assert sorted(run.info.run_name for run in found) == ["cmc t=0", "cmc t=1", "cmc t=2", "cmc t=3", "tiny"]
    assert {run.info.status for run in found} == {"FINISHED"}
    children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent_id]
    assert sorted(run.data.metrics["accuracy"] for run in children) == [0.0, 0.1, 0.2, 0.3]


def test_a_server_that_stays_away_is_one_line(
    server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = Tracking.open(tmp_path)
    server.go()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with pytest.raises(TrackingError, match="run the same command again: only what is not logged is done again"):
        tracking.log(child(0), [])
    server.come()
