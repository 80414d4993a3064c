"""Confidence intervals by drawing videos, not questions: those of one video stand and fall together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dejavu.records import EvalRow, Interval

Metric = Literal["correct", "grounded", "iop", "iou"]
"""A field of EvalRow; its mean is Acc@QA, Acc@GQA, mIoP or mIoU."""

LEVEL = 0.95


def paired_bootstrap(
    rows_a: Sequence[EvalRow], rows_b: Sequence[EvalRow], metric: Metric, *, num_samples: int = 2000, seed: int = 0
) -> Interval:
    """Estimate metric(a) - metric(b) where both answered the same questions, in any order.

    2000 resamples put the ends of a 95 % interval within about 3 % of its width. Same seed, same interval.

    Raises:
        ValueError: The questions are not the same, are none, or stand twice.
    """
    values_a, values_b = _values(rows_a, metric), _values(rows_b, metric)
    if values_a.keys() != values_b.keys():
        only_one = sorted(values_a.keys() ^ values_b.keys())
        raise ValueError(
            f"paired rows: got {len(only_one)} questions in only one of both (first {only_one[0]!r}), expected the "
            "same questions; leave a clip that failed out of both"
        )
    differences = np.array([values_a[row.question_id] - values_b[row.question_id] for row in rows_a])
    return clustered_interval(differences, [row.clip_id for row in rows_a], num_samples=num_samples, seed=seed)


def bootstrap(rows: Sequence[EvalRow], metric: Metric, *, num_samples: int = 2000, seed: int = 0) -> Interval:
    """Estimate one setting's metric by itself; see paired_bootstrap."""
    values = _values(rows, metric)
    return clustered_interval(
        np.array(list(values.values())), [row.clip_id for row in rows], num_samples=num_samples, seed=seed
    )


def clustered_interval(
    values: NDArray[np.float64], clusters: Sequence[str], *, num_samples: int = 2000, seed: int = 0
) -> Interval:
    """Estimate the mean of values that are alike within a cluster.

    Args:
        values: [V], one per question or frame.
        clusters: [V], the clip of each. A resample draws as many clips as there are, with replacement, and takes the
            mean over all values of those drawn: clips with more questions weigh more, as in the metric itself.
        num_samples: Resamples.
        seed: Same seed and same clips in any order, same interval.

    Raises:
        ValueError: There are no values, or not one cluster for each.
    """
    if not len(values) or len(values) != len(clusters) or num_samples < 1:
        raise ValueError(
            f"bootstrap: got {len(values)} values of {len(clusters)} clips and {num_samples} samples, expected a clip "
            "for each value and one sample or more; score a clip first"
        )
    names, cluster_V = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    num_clusters = len(names)
    count_C = np.bincount(cluster_V, minlength=num_clusters)
    sum_C = np.bincount(cluster_V, weights=values, minlength=num_clusters)
    # How often each clip is drawn in each resample; two matrix products then give all means at once.
    drawn_SC = np.random.default_rng(seed).multinomial(
        num_clusters, np.full(num_clusters, 1 / num_clusters), size=num_samples
    )
    mean_S = (drawn_SC @ sum_C) / (drawn_SC @ count_C)
    low, high = np.quantile(mean_S, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(low=float(low), high=float(high), mean=float(sum_C.sum() / count_C.sum()))


def _values(rows: Sequence[EvalRow], metric: Metric) -> dict[str, float]:
    values = {row.question_id: float(getattr(row, metric)) for row in rows}
    if len(values) != len(rows):
        raise ValueError(
            f"rows: got {len(rows)} of {len(values)} questions, expected each question once; score each setting alone"
        )
    return values
