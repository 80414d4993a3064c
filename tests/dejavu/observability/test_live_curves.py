"""Curves that are seen while a fit runs: each step once, whatever breaks off."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from dejavu.observability import live_curves as live
from dejavu.observability.live_curves import Curve, LiveCurves, ending, following
from dejavu.observability.tracking import Run, Tracking, TrackingError
from dejavu.storage.store import write_json

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
CURVE = [{"step": 4.0, "val_loss": 0.5}, {"step": 8.0, "val_loss": 0.4}, {"step": 12.0, "val_loss": 0.3}]
RUN = Run(name="fit target=0.9", params={}, metrics={}, tags={"recipe": "tiny"})


@pytest.fixture
def tracking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tracking:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Tracking.open(tmp_path)


def curves_of(tracking: Tracking, folder: Path) -> LiveCurves:
    return LiveCurves(tracking, {"0.9": RUN}, {"0.9": folder / "addon"}, folder / "tensorboard")


def test_each_step_is_logged_once_by_a_fit_that_breaks_off(tracking: Tracking, tmp_path: Path) -> None:
    import mlflow

    client = mlflow.MlflowClient(tracking.uri)
    curves_of(tracking, tmp_path).see({"0.9": CURVE[:1]})
    (open_run,) = client.search_runs([tracking.experiment_id])
    assert (open_run.info.status, open_run.data.metrics) == ("RUNNING", {"val_loss": 0.5})
    curves_of(tracking, tmp_path).see({"0.9": CURVE[:2]})  # another driver goes on

    points = [(int(entry["step"]), entry["val_loss"]) for entry in CURVE]
    done = Run(
        name=RUN.name, params={"target": 0.9}, metrics={"achieved_rate": 0.87}, tags={}, curves={"val_loss": points}
    )
    run_id = tracking.log(ending(done, tmp_path / "addon", tracking), [])
    (run,) = client.search_runs([tracking.experiment_id])
    assert (run.info.run_id, run.info.status) == (run_id, "FINISHED")
    assert run.data.metrics == {"val_loss": 0.3, "achieved_rate": 0.87}
    assert [(m.step, m.value) for m in client.get_metric_history(run_id, "val_loss")] == points
    events = [path.read_bytes() for path in sorted((tmp_path / "tensorboard" / "fit-target=0.9").iterdir())]
    assert [data.count(b"val_loss") for data in events] == [1, 1]


def test_a_fit_that_was_never_seen_is_logged_whole(tracking: Tracking, tmp_path: Path) -> None:
    done = Run(name="fit", params={}, metrics={}, tags={}, curves={"loss": [(1, 0.5)]})
    assert ending(done, tmp_path, tracking) == done


def test_a_tracking_server_that_is_away_ends_the_picture_and_not_the_fit(
    tracking: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def away(self: Tracking, run: Run) -> str:
        raise TrackingError("MLflow: got no answer")

    monkeypatch.setattr(Tracking, "begin", away)
    shown = curves_of(tracking, tmp_path)
    for _ in range(2):
        shown.see({"0.9": CURVE})
    assert capsys.readouterr().out == "live curves end here: MLflow: got no answer\n"


def test_a_file_is_followed_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "POLL_S", 0.01)
    seen: list[Mapping[str, Curve]] = []
    path = tmp_path / "curves.json"
    with following(path, seen.append):
        write_json(path, {"0.9": CURVE[:1]})  # as a fit does: whole, or not there
        deadline = time.monotonic() + 10
        while not seen and time.monotonic() < deadline:
            time.sleep(0.01)
        assert seen == [{"0.9": CURVE[:1]}]
        monkeypatch.setattr(live, "POLL_S", 10.0)
        write_json(path, {"0.9": CURVE})
    assert seen[-1] == {"0.9": CURVE}
