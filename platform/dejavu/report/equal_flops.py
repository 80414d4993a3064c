"""Is a method better than the others at the same computation? Each item is interpolated on a baseline's frontier.

An *item* is what is scored by itself: a question, or a frame whose neighbours are asked for. A baseline's settings
rarely cost what ours cost, so that its score at our cost lies on the line between its two neighbouring settings on its
own frontier. The same weights applied to each item's score give paired differences.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dejavu.records import Interval
from dejavu.report.frontier import non_dominated
from dejavu.storage.store import write_csv
from dejavu.storage.store_path import StorePath
from dejavu.tasks.bootstrap import clustered_interval

Item = tuple[str, str]
"""The clip, which is what is resampled, and a name of its own in it."""


@dataclass(frozen=True, slots=True)
class Scored:
    """One setting: what it costs and how it did."""

    method: str
    gflops_per_frame: float
    values: Mapping[Item, float]
    """Item -> its score: the same items under every setting."""
    setting: str = ""


@dataclass(frozen=True, slots=True)
class Lead:
    """One setting's metric minus one baseline's at equal computation."""

    method: str
    setting: str
    gflops_per_frame: float
    baseline: str
    """The other method."""
    difference: Interval
    """Paired over items, resampled by videos."""


COLUMNS = ("method", "setting", "gflops_per_frame", "baseline", "difference", "ci_low", "ci_high")


def leads(ours: Scored, others: Iterable[Scored], *, seed: int = 0) -> list[Lead]:
    """Compare one setting with every baseline whose frontier covers its cost; all are scored on the same items.

    Returns:
        The best baseline there first; nothing where no baseline's range holds the cost, or there are no items.
    """
    by_method: dict[str, list[Scored]] = {}
    for other in others:
        by_method.setdefault(other.method, []).append(other)
    found = []
    for baseline, settings in by_method.items():
        values = values_at(ours.gflops_per_frame, settings)
        if values and ours.values:
            differences = np.array([value - values[item] for item, value in ours.values.items()])
            interval = clustered_interval(differences, [clip_id for clip_id, _ in ours.values], seed=seed)
            found.append(Lead(ours.method, ours.setting, ours.gflops_per_frame, baseline, interval))
    return sorted(found, key=lambda lead: lead.difference.mean)


def write_leads_csv(path: StorePath, rows: Iterable[Lead]) -> None:
    """Write equal_flops.csv, whole or not at all."""
    named = ((row.method, row.setting, row.gflops_per_frame, row.baseline, row.difference) for row in rows)
    write_csv(path, COLUMNS, ((*names, found.mean, found.low, found.high) for *names, found in named))


def values_at(gflops_per_frame: float, settings: Sequence[Scored]) -> dict[Item, float]:
    """Return a method's score of each item at a cost between its settings; nothing outside their range.

    Only settings on the method's own frontier count: a worse one between two better ones does not pull the line down.
    """
    means = [float(np.mean(list(one.values.values()))) if one.values else 0.0 for one in settings]
    kept = non_dominated([-one.gflops_per_frame for one in settings], means)
    front = sorted(
        (one for one, keep in zip(settings, kept, strict=True) if keep), key=lambda one: one.gflops_per_frame
    )
    # A dominated dear setting still says that the method can be run there: as well as its best cheaper one.
    dearest = max(one.gflops_per_frame for one in settings)
    if not front or not front[0].gflops_per_frame <= gflops_per_frame <= dearest:
        return {}
    above = next((one for one in front if one.gflops_per_frame >= gflops_per_frame), front[-1])
    below = [one for one in front if one.gflops_per_frame <= gflops_per_frame][-1]
    span = above.gflops_per_frame - below.gflops_per_frame
    weight = (gflops_per_frame - below.gflops_per_frame) / span if span > 0 else 0.0
    return {item: (1 - weight) * value + weight * above.values[item] for item, value in below.values.items()}
