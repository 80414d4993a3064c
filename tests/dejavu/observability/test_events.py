from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dejavu.observability import events
from dejavu.observability.events import Work, keep_log, log_event, track_progress


@pytest.fixture(autouse=True)
def _no_log_left() -> Iterator[None]:
    yield
    logger = logging.getLogger("dejavu.observability.events")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]


def test_an_event_is_one_line_with_its_fields_and_its_process(tmp_path: Path) -> None:
    keep_log(tmp_path / "logs")
    log_event("clip failed", {"clip_id": "a\nb", "reason": "größer"})
    (line,) = lines(tmp_path / "logs")
    assert (line["event"], line["clip_id"], line["reason"]) == ("clip failed", "a\nb", "größer")
    assert line["pid"] == os.getpid()
    assert str(line["time"]).endswith("Z")


def test_without_a_log_nothing_is_written_or_printed(capfd: pytest.CaptureFixture[str]) -> None:
    log_event("clip failed", {"clip_id": "a"})
    assert capfd.readouterr() == ("", "")


def test_a_worker_logs_where_its_environment_says_once(tmp_path: Path) -> None:
    code = "from dejavu.observability.events import log_event; log_event('decode begins', {'clip_ids': ['a', 'b']})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), events.LOGS_VARIABLE: str(tmp_path / "logs")}
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)
        assert (done.stdout, done.stderr) == (b"", b"")
    assert [line["clip_ids"] for line in lines(tmp_path / "logs")] == [["a", "b"]] * 2
    assert len({line["pid"] for line in lines(tmp_path / "logs")}) == 2


def test_a_log_that_is_kept_twice_is_written_once(tmp_path: Path) -> None:
    keep_log(tmp_path / "one")
    keep_log(tmp_path / "two")
    log_event("run begins", {})
    assert not (tmp_path / "one").exists()
    assert len(lines(tmp_path / "two")) == 1


def test_a_log_that_cannot_be_written_costs_its_lines_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "logs").write_text("a file in the way")
    keep_log(tmp_path / "logs")
    log_event("run begins", {})
    assert capfd.readouterr() == ("", "")


def test_a_file_is_begun_anew_when_it_is_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "FILE_BYTES", 1000)
    keep_log(tmp_path)
    for number in range(100):
        log_event("clip failed", {"clip_id": str(number)})
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2
    assert sum(path.stat().st_size for path in files) <= 2000
    assert lines(tmp_path)[-1]["clip_id"] == "99"


def test_the_oldest_files_go_when_a_run_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for age, name in enumerate(("new.jsonl", "old.jsonl", "older.jsonl.1")):
        (tmp_path / name).write_bytes(b"x" * 400)
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    monkeypatch.setattr(events, "KEPT_BYTES", 1000)
    keep_log(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.jsonl", "old.jsonl"]


def test_a_stage_tells_its_beginning_its_units_and_its_end(tmp_path: Path) -> None:
    keep_log(tmp_path)
    work = Work(stage="embed", total=5, unit="clips", kept=2)
    assert list(track_progress([2, 3], work, count=int)) == [2, 3]
    found = lines(tmp_path)
    assert [line["event"] for line in found] == ["stage begins", "progress", "stage ends"]
    assert (found[0]["total"], found[0]["unit"], found[0]["kept"]) == (5, "clips", 2)
    assert found[1]["done"] == 5


def test_a_stage_that_breaks_off_has_not_ended(tmp_path: Path) -> None:
    keep_log(tmp_path)

    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("torn")

    with pytest.raises(ValueError, match="torn"):
        list(track_progress(broken(), Work(stage="embed", total=2, unit="clips")))
    assert [line["event"] for line in lines(tmp_path)] == ["stage begins"]
