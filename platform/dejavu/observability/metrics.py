"""Count and time what stages do to clips, in Ray's metrics and in the log: both are told in one call.

Ray exports the metrics of every machine for Prometheus, `ray_` before each name (docs/observability.md). A step takes a
batch, or a single clip; what is waiting is told by the driver.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from types import SimpleNamespace
from typing import Literal, TypeVar

import psutil
import ray
from ray.util.metrics import Counter, Gauge, Histogram

from dejavu.observability.events import Work, log_event, track_progress
from dejavu.records import Failure

SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
"""Bounds of the histogram."""

_Row = TypeVar("_Row")


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step on one batch of clips."""

    stage: str
    step: Literal[
        "transcode", "decode", "encode", "gather", "warm_up", "fit", "validate", "calibrate", "token", "search", "time"
    ]
    """From `gather` on, what training, searching schedules and timing do to frames of clips that they do not name."""
    clip_ids: Sequence[str] = ()
    method: str = ""
    """Only where a method is at work."""
    setting_id: str = ""


@dataclass(slots=True)
class Done:
    """What came of a step."""

    num_frames: int = 0


@contextmanager
def metered(step: Step) -> Iterator[Done]:
    """Time a step; set `num_frames` before its end. A step that raises has begun and has not ended."""
    names = {name: value for name, value in asdict(step).items() if value and name != "step"}
    log_event(f"{step.step} begins", names)
    done, start = Done(), time.perf_counter()
    yield done
    seconds = time.perf_counter() - start
    log_event(f"{step.step} ends", {**names, "num_frames": done.num_frames, "seconds": round(seconds, 4)})
    if ray.is_initialized():
        metrics, tags = _metrics(), {"stage": step.stage, "step": step.step, "method": step.method}
        metrics.seconds.observe(seconds, tags)
        if done.num_frames:
            metrics.frames.inc(done.num_frames, tags)
        metrics.memory.set(_process().memory_info().rss, {"stage": step.stage})


def failed(failures: Iterable[Failure]) -> None:
    """Tell of clips that could not be done; call it where they are counted once, however often they were tried."""
    for failure in failures:
        log_event("clip failed", asdict(failure))
        if ray.is_initialized():
            _metrics().failed.inc(1, {"stage": failure.stage})


def watched(results: Iterable[_Row], work: Work, count: Callable[[_Row], int] = lambda _: 1) -> Iterator[_Row]:
    """Pass a stage's results on as `track_progress` does, and keep the gauge of what is waiting."""
    left = work.total

    def less(ended: int) -> int:
        nonlocal left
        left -= ended
        if ray.is_initialized():
            _metrics().waiting.set(left, {"stage": work.stage})
        return ended

    less(0)
    return track_progress(results, work, lambda result: less(count(result)))


@cache
def _metrics() -> SimpleNamespace:
    step = ("stage", "step", "method")
    return SimpleNamespace(
        frames=Counter("dejavu_frames_total", "Frames put through a step.", step),
        seconds=Histogram("dejavu_step_seconds", "Seconds of a step on one batch.", list(SECONDS), step),
        failed=Counter("dejavu_clips_failed_total", "Clips that became a row of the failures table.", ("stage",)),
        waiting=Gauge("dejavu_waiting", "Units of work that are not done.", ("stage",)),
        memory=Gauge("dejavu_worker_memory_bytes", "Resident memory of the process.", ("stage",)),
    )


@cache
def _process() -> psutil.Process:
    return psutil.Process()


def first_line(error: BaseException) -> str:
    """Return the first line of an error, with its type where the message alone does not say what went wrong."""
    text = str(error).strip().splitlines()
    line = text[0] if text else ""
    return line if isinstance(error, ValueError) and line else f"{type(error).__name__}: {line}".rstrip(": ")
