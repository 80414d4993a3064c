"""What a rehearsal says, as a table for people and as a record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dejavu.rehearsal.spent import Spent, StageSpent
from dejavu.rehearsal.whole import Hardware, Line, StageWhole

MIB, GB = 2**20, 1e9


def markdown(spent: Spent, whole: Mapping[str, StageWhole], hardware: Hardware) -> str:
    """Return the table: a row a stage, and one for all of them."""
    machines = list(next(iter(whole.values())).hours)
    columns: list[tuple[str, Callable[[StageSpent], str]]] = [
        ("s", lambda one: f"{one.seconds:,.0f}"),
        ("driver, MiB", lambda one: _mib(one.driver)),
        ("workers, MiB", lambda one: _mib(one.workers)),
        ("largest worker, MiB", lambda one: _mib(one.largest_worker)),
        ("all, MiB", lambda one: _mib(one.total)),
    ]
    columns += [("GPU, MiB", lambda one: _mib(one.gpu))] if hardware.gpus else []
    columns += [("written, MiB", lambda one: _mib(one.written))]
    head = ["stage", *(name for name, _ in columns), "whole: worker hours"]
    head += [f"hours on {count} machine{'s' * (count > 1)}" for count in machines] + ["written, GB"]
    rows = [head, ["---"] * len(head)]
    for stage, one in {**spent.stages, "**all**": _all(spent)}.items():
        found = whole.get(stage) or _sum(list(whole.values()), machines)
        hours = [short(found.hours[count]) for count in machines]
        shown = [show(one) for _, show in columns]
        rows.append([stage, *shown, short(found.worker_h), *hours, short(max(0.0, found.written) / GB)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def record(
    spent: Spent, whole: Mapping[str, StageWhole], lines: Sequence[Line], about: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the same, and what it follows from, as plain values."""
    steps = [{**asdict(key), **asdict(steps)} for key, steps in spent.steps.items()]
    work = [{**asdict(line), "at_once": line.at_once if line.at_once < float("inf") else None} for line in lines]
    stages = {stage: {**asdict(one), "whole": asdict(whole[stage])} for stage, one in spent.stages.items()}
    return {**about, "stages": stages, "steps": steps, "work": work}


def short(number: float) -> str:
    """Write a number with two digits that count, or whole from ten on."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def _mib(size: int) -> str:
    return f"{max(0, size) / MIB:,.0f}"


def _all(spent: Spent) -> StageSpent:
    every = list(spent.stages.values())
    peaks = ("driver", "workers", "largest_worker", "others", "total", "gpu")
    return StageSpent(
        seconds=sum(one.seconds for one in every),
        written=sum(one.written for one in every),
        **{name: max(getattr(one, name) for one in every) for name in peaks},
    )


def _sum(every: Sequence[StageWhole], machines: Sequence[int]) -> StageWhole:
    return StageWhole(
        worker_h=sum(one.worker_h for one in every),
        hours={count: sum(one.hours[count] for one in every) for count in machines},
        written=sum(one.written for one in every),
    )
