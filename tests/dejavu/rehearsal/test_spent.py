"""A made-up log and made-up samples, by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dejavu.rehearsal.spent import OTHER, StepKey, read_events, spent
from dejavu.rehearsal.watch import Sample


def begins(at: float, stage: str, total: int = 2) -> dict[str, Any]:
    return {"at": at, "event": "stage begins", "stage": stage, "total": total}


def ends(at: float, stage: str) -> dict[str, Any]:
    return {"at": at, "event": "stage ends", "stage": stage, "seconds": 0.0}


def encoded(at: float, seconds: float, frames: int, method: str) -> dict[str, Any]:
    step = {"stage": "embed", "method": method, "num_frames": frames, "seconds": seconds}
    return {"at": at, "event": "encode ends", **step}


def sample(time: float, driver: int, workers: int, written: int) -> Sample:
    return Sample(
        time=time, driver=driver, workers=workers, largest_worker=workers // 2, others=1, gpu=0, written=written
    )


# The driver starts at 100 s. Embedding runs twice, 110-120 and 130-150, two workers at a time in the second run.
EVENTS = [
    begins(110, "embed", 3),
    encoded(118, 4, 40, "original"),
    ends(120, "embed"),
    begins(121, "embed", 0),
    ends(122, "embed"),
    begins(130, "embed", 5),
    encoded(142, 10, 100, "tome"),
    encoded(145, 10, 60, "original"),
    ends(150, "embed"),
    begins(155, "motion"),
    ends(156, "motion"),
    begins(160, "train", 1),
]


def test_times_are_laid_to_stages() -> None:
    found = spent(EVENTS, [], 100, 200)
    embed = found.stages["embed"]
    assert list(found.stages) == ["embed", OTHER]  # one that did not end, or is a part of the rest, is none
    assert embed.seconds == 30
    # Busy from 114 to 118 and from 132 to 145, though two workers overlap there.
    assert embed.fixed_s == pytest.approx(30 - 4 - 13)
    assert (embed.units, embed.last_s) == (5, 20)
    assert found.stages[OTHER].seconds == 70


def test_steps_of_a_kind_are_added_up() -> None:
    steps = spent(EVENTS, [], 100, 200).steps
    original = steps[StepKey("embed", "encode", "original")]
    assert (original.count, original.seconds, original.frames) == (2, 14, 100)
    assert steps[StepKey("embed", "encode", "tome")].frames == 100


def test_peaks_and_bytes_belong_to_the_stage_of_their_moment() -> None:
    samples = [sample(105, 9, 0, 10), sample(112, 5, 8, 30), sample(149, 7, 4, 70), sample(151, 6, 20, 75)]
    stages = spent(EVENTS, samples, 100, 200).stages
    embed, other = stages["embed"], stages[OTHER]
    assert (embed.driver, embed.workers, embed.largest_worker, embed.total, embed.written) == (7, 8, 4, 14, 60)
    assert (other.driver, other.workers, other.total, other.written) == (9, 20, 27, 15)


def test_the_logs_of_all_processes_are_read_in_order(tmp_path: Path) -> None:
    lines = {
        "b.jsonl": ["2026-01-01T00:00:01.500Z", "2026-01-01T00:00:03.000Z"],
        "a.jsonl.1": ["2026-01-01T00:00:02.250Z"],
    }
    for name, times in lines.items():
        text = "".join(json.dumps({"time": time, "event": name}) + "\n" for time in times)
        (tmp_path / name).write_text(text)
    events = read_events(tmp_path)
    assert [event["event"] for event in events] == ["b.jsonl", "a.jsonl.1", "b.jsonl"]
    assert events[1]["at"] - events[0]["at"] == pytest.approx(0.75)
