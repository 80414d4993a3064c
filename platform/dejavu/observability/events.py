"""What happens in a run, told once: a JSON line for each event, in a file of each process's own.

    <results>/logs/<start in UTC>-<host>-<process>.jsonl

Every line that is about a clip names it, so that looking for its id in this folder shows its way. The driver begins a
log with `keep_log` and names the folder to its workers by LOGS_VARIABLE; where neither is so, `log_event` does nothing.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, TypeVar

LOGS = "logs"
"""Folder in a results folder."""
LOGS_VARIABLE = "DEJAVU_LOGS"
"""Environment variable of a worker: the folder of its log."""
FILE_BYTES = 16 * 2**20
"""A process's file is begun anew when it has grown to this; the one before it is kept."""
KEPT_BYTES = 256 * 2**20
"""Of all files in the folder, when a run begins: the oldest go first."""
PROGRESS_PERIOD_S = 5.0
"""Between two events that say how far a stage is."""

_Row = TypeVar("_Row")


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What a stage has before it."""

    stage: str
    total: int
    """To be done now, in units."""
    unit: str
    kept: int = 0
    """Units that were in the store already."""


def log_event(event: str, fields: Mapping[str, Any]) -> None:
    """Log one event. Fields are plain values; a clip is named in `clip_id`, several in `clip_ids`."""
    _logger().info(event, extra={"fields": fields})


@contextmanager
def stage_span(work: Work) -> Iterator[Callable[[int], None]]:
    """Tell when a stage begins and that it has ended, and by what this yields how many units are done meanwhile.

    A stage that breaks off has not ended.
    """
    log_event("stage begins", asdict(work))
    start = time.monotonic()
    yield lambda done: log_event("progress", {"stage": work.stage, "done": done})
    log_event("stage ends", {"stage": work.stage, "seconds": round(time.monotonic() - start, 3)})


def track_progress(results: Iterable[_Row], work: Work, count: Callable[[_Row], int] = lambda _: 1) -> Iterator[_Row]:
    """Pass a stage's results on as they are completed, telling how far it is; `count` gives the units of one result."""
    with stage_span(work) as so_far:
        done, last = 0, time.monotonic()
        for result in results:
            yield result
            done += count(result)
            now = time.monotonic()
            if now - last >= PROGRESS_PERIOD_S:
                last = now
                so_far(done)
        so_far(done)


# ------------------------------------------------------------------------------------------------------------ the files
def keep_log(folder: Path) -> None:
    """Log this process's events in a file of its own from now on, and remove what is too old in the folder."""
    _remove_oldest(folder, KEPT_BYTES)
    add_handler(_OwnFile(folder))


def add_handler(handler: logging.Handler) -> None:
    """Let something else have this process's events too; it stands for the same kind of handler before it."""
    logger = _logger()
    for before in [one for one in logger.handlers if type(one) is type(handler)]:
        logger.removeHandler(before)
        before.close()
    logger.addHandler(handler)


@cache
def _logger() -> logging.Logger:
    logger = logging.getLogger("dejavu.observability.events")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    if folder := os.environ.get(LOGS_VARIABLE):
        logger.addHandler(_OwnFile(Path(folder)))
    return logger


class _JsonLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        head = {"time": f"{when}.{int(record.msecs):03}Z", "event": record.getMessage()}
        process = {"host": socket.gethostname(), "pid": record.process}
        return json.dumps({**head, **record.__dict__["fields"], **process}, default=str)


class _OwnFile(RotatingFileHandler):
    """Begins its file with the first line; one that cannot be written costs the line, not the run."""

    def __init__(self, folder: Path) -> None:
        started = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        path = folder / f"{started}-{socket.gethostname()}-{os.getpid()}.jsonl"
        super().__init__(path, maxBytes=FILE_BYTES, backupCount=1, encoding="utf-8", delay=True)
        self.setFormatter(_JsonLine())

    def _open(self) -> TextIOWrapper:
        Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
        return super()._open()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  logging's own name
        pass


def _remove_oldest(folder: Path, limit_bytes: int) -> None:
    total = 0
    for path in sorted(folder.glob("*.jsonl*"), key=lambda path: path.stat().st_mtime_ns, reverse=True):
        total += path.stat().st_size
        if total > limit_bytes:
            with suppress(OSError):
                path.unlink()
