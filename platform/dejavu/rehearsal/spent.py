"""What each stage of a run took, from the run's own log and from samples of its processes.

Stages follow each other in the driver; what happens between two of them, such as loading or drawing the report with its
motion, is the stage OTHER.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from dejavu.rehearsal.watch import Sample

OTHER = "other"
"""Start, loading, choosing, report and plots."""

WITHIN_OTHER = ("draw", "motion")
"""Stages that are a part of it."""

Event = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StepKey:
    """One kind of step."""

    stage: str
    step: str
    method: str = ""


@dataclass(slots=True)
class Steps:
    """All steps of one kind."""

    count: int = 0
    seconds: float = 0.0
    """Of the workers that they ran in, added up."""
    frames: int = 0


@dataclass(kw_only=True, slots=True)
class StageSpent:
    """One stage, however often it ran."""

    seconds: float = 0.0
    """Of the clock on the wall."""
    units: int = 0
    """Done in it, as the stage counts them, when it ran last."""
    last_s: float = 0.0
    """Of that, when what is loaded once had been loaded."""
    fixed_s: float = 0.0
    """In which no worker was at a step: starts of processes, what the driver does. All of it where a stage tells of no
    steps."""
    driver: int = 0
    workers: int = 0
    largest_worker: int = 0
    others: int = 0
    total: int = 0
    gpu: int = 0
    """Peaks in bytes, as in Sample; `total` of driver, workers and others at one moment."""
    written: int = 0
    """Bytes by which the results folder grew."""


@dataclass(slots=True)
class Spent:
    """A whole run."""

    stages: dict[str, StageSpent] = field(default_factory=dict)
    """In the order in which they began first; OTHER last."""
    steps: dict[StepKey, Steps] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Span:
    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


def read_events(logs: Path) -> list[Event]:
    """Return the events of all processes in the order of their times, each with `at`, seconds since 1970."""
    found = []
    for path in logs.glob("*.jsonl*"):
        for line in path.read_text(encoding="utf-8").splitlines():
            event = json.loads(line)
            found.append({**event, "at": datetime.fromisoformat(event["time"]).timestamp()})
    return sorted(found, key=lambda event: event["at"])


def spent(events: Sequence[Event], samples: Iterable[Sample], start: float, end: float) -> Spent:
    """Lay events and samples of one run, in order, to stages; `start` and `end` are its own, seconds since 1970."""
    found = Spent()
    spans: dict[str, list[_Span]] = defaultdict(list)
    busy = list(_steps(events, found.steps))
    for stage, span, units in _runs(events):
        spans[stage].append(span)
        one = found.stages.setdefault(stage, StageSpent())
        one.seconds += span.seconds
        one.fixed_s += span.seconds - _covered(span, busy)
        one.units, one.last_s = units, span.seconds
    inside = sum(stage.seconds for stage in found.stages.values())
    found.stages[OTHER] = StageSpent(seconds=end - start - inside, fixed_s=end - start - inside)
    before = 0
    for sample in samples:
        stage = next((name for name, some in spans.items() if any(s.start <= sample.time < s.end for s in some)), OTHER)
        one = found.stages[stage]
        for name in ("driver", "workers", "largest_worker", "others", "gpu"):
            setattr(one, name, max(getattr(one, name), getattr(sample, name)))
        one.total = max(one.total, sample.driver + sample.workers + sample.others)
        one.written += sample.written - before
        before = sample.written
    return found


def _runs(events: Sequence[Event]) -> Iterator[tuple[str, _Span, int]]:
    """Yield each time that a stage ran to its end and had anything to do, and its units."""
    begun: dict[str, Event] = {}
    for event in events:
        stage = str(event.get("stage"))
        if event["event"] == "stage begins" and stage not in WITHIN_OTHER:
            begun[stage] = event
        elif event["event"] == "stage ends" and stage in begun:
            first = begun.pop(stage)
            if first["total"]:
                yield stage, _Span(first["at"], event["at"]), first["total"]


def _steps(events: Sequence[Event], into: dict[StepKey, Steps]) -> Iterator[_Span]:
    """Add up the steps that ended, and yield when each was at work."""
    for event in events:
        name, _, what = event["event"].partition(" ")
        if what == "ends" and "num_frames" in event:
            steps = into.setdefault(StepKey(event["stage"], name, event.get("method", "")), Steps())
            steps.count += 1
            steps.seconds += event["seconds"]
            steps.frames += event["num_frames"]
            yield _Span(event["at"] - event["seconds"], event["at"])


def _covered(span: _Span, busy: Iterable[_Span]) -> float:
    """Return the seconds of a span in which something was at work."""
    covered, until = 0.0, span.start
    for one in sorted(busy, key=lambda one: one.start):
        start, end = max(one.start, until), min(one.end, span.end)
        if end > start:
            covered += end - start
            until = end
    return covered
