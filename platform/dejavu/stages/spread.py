"""Lay one kernel over many items with Ray Data, showing progress; a kernel never raises for one bad item."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import ray

NO_PROGRESS_TIMEOUT_S = 900
"""Ray Data ends a pipeline in which nothing moves for so long; an hour-long video takes some minutes to transcode."""
PROGRESS_PERIOD_S = 10.0

Row = dict[str, Any]


def configure() -> None:
    """Set Ray Data's context for this driver: our own progress lines, and a shorter wait before it calls a hang."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    context.execution_no_progress_timeout_s = NO_PROGRESS_TIMEOUT_S


def spread(kernel: Callable[[Row], Row], rows: Sequence[Row], *, stage: str, unit: str = "clips") -> Iterator[Row]:
    """Yield kernel(row) for each row in the order of completion, one CPU each, and print progress.

    A row is a dict of plain values; so is what the kernel returns. A worker that dies is replaced and its rows are
    done again, so a kernel's side effects must be idempotent.
    """
    if not rows:
        return
    configure()
    results = ray.data.from_items(list(rows), override_num_blocks=len(rows)).map(kernel, num_cpus=1)
    yield from report_progress(results.iter_rows(), total=len(rows), stage=stage, unit=unit)


def report_progress(results: Iterable[Row], *, total: int, stage: str, unit: str) -> Iterator[Row]:
    """Pass results on, printing how many are done and how long the rest will take, every ten seconds."""
    start = printed = time.monotonic()
    for count, result in enumerate(results, 1):
        yield result
        now = time.monotonic()
        if now - printed >= PROGRESS_PERIOD_S:
            printed = now
            left = (now - start) / count * (total - count)
            print(f"  {stage}: {count} of {total} {unit}, {now - start:.0f} s, about {left:.0f} s left", flush=True)
