"""From trials to a table: every variant at the same executed FLOPs, with intervals over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, Literal

from dejavu.ablation.trial import REDUCTIONS, Point
from dejavu.ablation.variants import DEFAULT, VARIANTS

Metric = Literal["cosine", "acc_gqa", "agreement"]
SHOWN: Mapping[Metric, tuple[str, float, int]] = {
    "cosine": ("cosine", 1.0, 4),
    "acc_gqa": ("Acc@GQA", 100.0, 1),
    "agreement": ("agreement", 1.0, 3),
}
"""Head, scale and digits of each; those that no trial has are left out."""

STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5 % quantiles for 1, 2, 3 ... degrees of freedom."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds and half of its 95 % interval; None for one seed."""

    mean: float
    half: float | None
    num_seeds: int

    @property
    def differs(self) -> bool:
        """Whether zero lies outside the interval."""
        return self.half is not None and abs(self.mean) > self.half


def estimate(values: Sequence[float]) -> Estimate | None:
    """Return Student's interval of a mean; None for no values."""
    if not values:
        return None
    if len(values) == 1:
        return Estimate(values[0], None, 1)
    quantile = STUDENT_T[min(len(values) - 1, len(STUDENT_T)) - 1]
    return Estimate(fmean(values), quantile * stdev(values) / math.sqrt(len(values)), len(values))


def value_at(points: Sequence[Point], reduction: float, metric: Metric) -> float | None:
    """Return a metric at a reduction, on the line between the nearest points on both sides; None outside them."""
    below = [point for point in points if point.reduction <= reduction]
    above = [point for point in points if point.reduction >= reduction]
    if not below or not above:
        return None
    low = max(below, key=lambda point: point.reduction)
    high = min(above, key=lambda point: point.reduction)
    span = high.reduction - low.reduction
    share = (reduction - low.reduction) / span if span > 0 else 0.0
    return float((1 - share) * getattr(low, metric) + share * getattr(high, metric))


def render(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the Markdown table of all trials read from the results folder."""
    found: dict[str, dict[int, list[Point]]] = {}
    for row in rows:
        found.setdefault(row["variant"], {})[row["seed"]] = [Point(**point) for point in row["points"]]
    points = [point for by_seed in found.values() for one in by_seed.values() for point in one]
    metrics = [metric for metric in SHOWN if any(getattr(point, metric) is not None for point in points)]
    heads = [f"{SHOWN[metric][0]} at {reduction:g}x | difference" for metric in metrics for reduction in REDUCTIONS]
    lines = [
        f"| variant | {' | '.join(heads)} | seeds |",
        f"|---|{'---|' * (2 * len(heads))}---|",
    ]
    gone = sorted(found.keys() - VARIANTS.keys())
    for name in (*VARIANTS, *gone):
        if name in found:
            cells = [
                cell
                for metric in metrics
                for reduction in REDUCTIONS
                for cell in _cells(found[name], found.get(DEFAULT, {}), reduction, metric, name == DEFAULT)
            ]
            lines.append(f"| {name} | {' | '.join(cells)} | {len(found[name])} |")
    return "\n".join(lines) + "\n"


def _cells(
    own: Mapping[int, Sequence[Point]],
    default: Mapping[int, Sequence[Point]],
    reduction: float,
    metric: Metric,
    is_default: bool,
) -> tuple[str, str]:
    values = {seed: value_at(points, reduction, metric) for seed, points in own.items()}
    known = {seed: value for seed, value in values.items() if value is not None}
    beside = {seed: value_at(default[seed], reduction, metric) for seed in known if seed in default}
    differences = [known[seed] - value for seed, value in beside.items() if value is not None]
    mean = _shown(estimate(list(known.values())), metric, signed=False)
    return mean, "" if is_default else _shown(estimate(differences), metric, signed=True)


def _shown(value: Estimate | None, metric: Metric, *, signed: bool) -> str:
    if value is None:
        return "out of reach"
    _, scale, digits = SHOWN[metric]
    text = f"{scale * value.mean:{'+' if signed else ''}.{digits}f}"
    if value.half is not None:
        text += f" ± {scale * value.half:.{digits}f}"
    return f"**{text}**" if signed and value.differs else text
