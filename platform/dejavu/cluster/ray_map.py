"""Lay one kernel over many items with Ray Data, showing progress; a kernel never raises for one bad item."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, TypeVar

import ray

from dejavu.observability.events import Work
from dejavu.observability.metrics import watched

NO_PROGRESS_TIMEOUT_S = 900
"""Ray Data ends a pipeline in which nothing moves for so long."""
WAITING = 0.5
"""Where there is a bound on the object store: of what actors have taken, so much more may wait for them, once readers
have used half of what is theirs."""
SPREAD_TIMEOUT_S = 6 * 3600
"""The same where items are spread: they need one CPU each, and what may hang in them has a limit of its own."""
PROGRESS_PERIOD_S = 10.0
WAVE = 2_000
"""Items that Ray Data gets at once: it keeps about 20 KB of each in the driver until all are done."""

Row = dict[str, Any]
Item = TypeVar("Item")


def configure(timeout_s: int = NO_PROGRESS_TIMEOUT_S, store_bytes: float = math.inf) -> None:
    """Set Ray Data's context for this driver: our own progress lines, and a shorter wait before it calls a hang.

    `store_bytes` bounds what a pipeline keeps in the object store, of which an operator alone gets about half; Ray
    Data's share of it counts where that is less.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that it has no bars
    # What ends a pipeline is raised in the driver; its advice to leave out what failed would lose results.
    logging.getLogger("ray.data._internal.execution.streaming_executor_state").setLevel(logging.CRITICAL)
    context.execution_no_progress_timeout_s = timeout_s
    # They warn of workers' memory, which `embedding/memory.py` has fitted to the machines, and of shuffles.
    context.issue_detectors_config.detectors = []
    limits = context.execution_options.resource_limits
    context.execution_options.resource_limits = limits.copy(object_store_memory=store_bytes)
    usual = ray.data.context.DEFAULT_DOWNSTREAM_CAPACITY_BACKPRESSURE_RATIO
    context.downstream_capacity_backpressure_ratio = WAITING if store_bytes < math.inf else usual


def spread(
    kernel: Callable[[Row], Row], rows: Sequence[Row], *, stage: str, unit: str = "clips", kept: int = 0
) -> Iterator[Row]:
    """Yield kernel(row) for each row in the order of completion, one CPU each, and show progress.

    A row is a dict of plain values; so is what the kernel returns. A worker that dies is replaced and its rows are
    done again, so a kernel's side effects must be idempotent. `kept` rows were done before, and are only told of.
    """
    if rows:
        configure(SPREAD_TIMEOUT_S)
    results: Iterator[Row] = chain.from_iterable(
        ray.data.from_items(list(wave), override_num_blocks=len(wave)).map(kernel, num_cpus=1).iter_rows()
        for wave in waves(rows)
    )
    results = watched(results, Work(stage=stage, total=len(rows), unit=unit, kept=kept))
    yield from report_progress(results, total=len(rows), stage=stage, unit=unit)


def waves(items: Sequence[Item], size: int = WAVE) -> Iterator[Sequence[Item]]:
    """Cut a manifest into parts that are done one after the other, so that the driver's memory has a bound."""
    return (items[start : start + size] for start in range(0, len(items), size))


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
