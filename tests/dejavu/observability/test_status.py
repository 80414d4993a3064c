from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from dejavu.observability import status as module
from dejavu.observability.events import Work, stage_span, track_progress
from dejavu.observability.events import log_event as tell_event
from dejavu.observability.status import RunStatus, StageStatus, describe, end_status, keep_status, read_status
from dejavu.storage.store import write_json

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _no_run_left() -> Iterator[None]:
    yield
    logger = logging.getLogger("dejavu.observability.events")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()


def known(results: Path) -> RunStatus:
    status = read_status(results)
    assert status is not None
    return status


def test_a_run_is_seen_from_its_beginning_to_its_end(tmp_path: Path) -> None:
    keep_status(tmp_path, "tiny", tmp_path / "logs")
    assert (known(tmp_path).judged(time.time()), known(tmp_path).recipe) == ("running", "tiny")
    list(track_progress(range(3), Work(stage="transcode", total=3, unit="clips", kept=19)))
    with stage_span(Work(stage="sweep", total=4, unit="settings")) as so_far:
        so_far(4)
    tell_event("clip failed", {"clip_id": "a", "stage": "transcode", "reason": "VideoError: torn"})
    end_status("finished")
    status = known(tmp_path)
    assert [(stage.name, stage.kept, stage.done, stage.total) for stage in status.stages] == [
        ("transcode", 19, 3, 3),
        ("sweep", 0, 4, 4),
    ]
    assert all(stage.ended for stage in status.stages)
    assert (status.num_failures, status.failures[0]["reason"]) == (1, "VideoError: torn")
    assert status.judged(status.updated + 1e6) == "finished"


def test_the_record_is_written_while_the_driver_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PERIOD_S", 0.01)
    keep_status(tmp_path, "tiny", tmp_path / "logs")
    before = known(tmp_path).updated
    deadline = time.monotonic() + 60
    while known(tmp_path).updated == before:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_storage_that_is_away_costs_the_run_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    keep_status(tmp_path / "file" / "below", "tiny", tmp_path / "logs")
    end_status("finished")
    assert (tmp_path / "file").read_text() == "in the way"


def test_only_a_few_failures_are_kept_and_all_are_counted(tmp_path: Path) -> None:
    keep_status(tmp_path, "tiny", tmp_path / "logs")
    for number in range(100):
        tell_event("clip failed", {"clip_id": str(number), "stage": "embed", "reason": "r"})
    end_status("failed", "failures: got 100 of 100\n  the table")
    status = known(tmp_path)
    assert status.num_failures == 100
    assert [failure["clip_id"] for failure in status.failures] == ["0", "1", "2", "3", "4"]
    assert status.error == "failures: got 100 of 100"


def run(**changed: object) -> RunStatus:
    """Return the record of a run that has embedded 30 of 90 clips in a minute, told ten minutes after its begin."""
    began = time.time() - 600
    stage = StageStatus(
        name="embed", total=90, unit="clips", kept=10, started=began + 540, done=30, updated=began + 600
    )
    where = {"recipe": "demo", "host": "elsewhere", "pid": 1, "job": None, "logs": "/logs"}
    return RunStatus(**{**where, "started": began, "updated": began + 600, "stages": [stage], **changed})  # type: ignore[arg-type]


def test_a_driver_that_is_silent_for_a_minute_has_died() -> None:
    status = run()
    assert status.judged(status.updated + 50) == "running"
    assert status.judged(status.updated + 70) == "died"


def test_a_driver_on_this_machine_whose_process_is_gone_has_died_at_once() -> None:
    import socket

    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert run(host=socket.gethostname(), pid=ended.pid).judged(time.time()) == "died"
    assert run(host=socket.gethostname(), pid=os.getpid(), started=time.time()).judged(time.time()) == "running"
    reused = run(host=socket.gethostname(), pid=os.getpid(), started=1.0)
    assert reused.judged(time.time()) == "died", "the number belongs to another process by now"


def test_rate_and_time_left_follow_from_what_is_done() -> None:
    (stage,) = run().stages
    assert stage.rate() == pytest.approx(0.5)
    assert stage.left_s() == pytest.approx(120)


def test_a_person_reads_stage_rate_time_left_and_failures(tmp_path: Path) -> None:
    (tmp_path / "pareto.csv").touch()
    failures = [{"clip_id": "clip-7", "stage": "transcode", "reason": "VideoError: torn"}]
    status = run(num_failures=3, failures=failures, tracking="mlflow ui --port 5000")
    text = describe(status, tmp_path, status.updated + 2)
    assert "demo: running since" in text
    assert "embed  40 of 100 clips (10 were there), for 1 min 2 s, 0.5 clips/s, about 2 min 0 s left" in text
    assert "heard of 2 s ago" in text
    assert "failures   3 in this run\n  clip-7  transcode  VideoError: torn" in text
    assert f"table      {tmp_path / 'pareto.csv'}" in text
    assert "MLflow UI  mlflow ui --port 5000" in text
    assert "report" not in text


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"state": "finished"}, "demo: finished, after 10 min 0 s"),
        ({"state": "failed", "error": "training: got"}, "failed after 10 min 0 s"),
        ({"state": "stopped"}, "run the same command again to go on"),
        ({"updated": 0.0}, "died after"),
    ],
)
def test_the_first_line_says_how_it_ended(tmp_path: Path, changed: dict[str, object], line: str) -> None:
    assert line in describe(run(**changed), tmp_path, time.time()).splitlines()[0]


def test_a_file_of_another_version_is_one_line(tmp_path: Path) -> None:
    assert read_status(tmp_path) is None
    (tmp_path / "status.json").write_text('{"stages": [], "colour": "red"}')
    with pytest.raises(ValueError, match=r"got no status of this version \(.*colour.*\), expected"):
        read_status(tmp_path)


def call(results: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "jobs" / "pipeline.py"), "tiny", "--results", str(results), "--status"]
    return subprocess.run([*command, *words], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("changed", "status"), [({"state": "finished"}, 0), ({}, 0), ({"state": "stopped"}, 3), ({"updated": 0.0}, 3)]
)
def test_the_command_tells_by_its_exit_status(tmp_path: Path, changed: dict[str, object], status: int) -> None:
    write_json(tmp_path / "status.json", asdict(run(**changed)))
    done = call(tmp_path, "--num-workers", "2")
    assert (done.returncode, done.stderr) == (status, "")
    assert done.stdout.startswith("demo: ")


def test_the_command_says_where_there_is_no_run(tmp_path: Path) -> None:
    done = call(tmp_path)
    assert done.returncode == 1
    assert done.stderr == f"status: got no run in {tmp_path}, expected status.json there; check --results\n"


def test_a_program_reads_json(tmp_path: Path) -> None:
    write_json(tmp_path / "status.json", asdict(run(updated=0.0)))
    found = json.loads(call(tmp_path, "--json").stdout)
    assert (found["state"], found["stages"][0]["done"], found["results"]) == ("died", 30, str(tmp_path))


def test_the_command_loads_neither_ray_nor_torch(tmp_path: Path) -> None:
    write_json(tmp_path / "status.json", asdict(run()))
    code = (
        "import runpy, sys\n"
        "try: runpy.run_path(sys.argv[1], run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'ray', 'torch', 'mlflow'} & set(sys.modules)"
    )
    words = [str(ROOT / "jobs" / "pipeline.py"), "tiny", "--results", str(tmp_path), "--status"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "jobs")}
    done = subprocess.run([sys.executable, "-c", code, *words], env=environment, check=True, capture_output=True)
    assert done.stdout.startswith(b"demo: ")
