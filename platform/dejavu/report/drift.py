"""Drift: how far embeddings move from Original's while a segment grows older, and a plot of it.

A frame's age is the number of frames since the last dense one that its method computed. F frames of one clip.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from dejavu.report.style import FAINT, INK, MUTED, styles_of
from dejavu.storage.store import atomic
from dejavu.storage.store_path import StorePath
from dejavu.tasks.bootstrap import clustered_interval

MIN_CLIPS_SHARE = 1 / 3
"""An age that fewer of the clips reach is left out: its mean would be of other clips than its neighbours'."""
NUM_SAMPLES = 400
"""Resamples of each age's interval: a curve has hundreds of them."""
PANELS_PER_ROW = 3
SHADES = (1.0, 0.72, 0.5, 0.34, 0.24, 0.16)


@dataclass(frozen=True, slots=True)
class AgePoint:
    """All frames of one age, over all clips."""

    method: str
    setting: str
    age: int
    """Frames since the last dense one, 0 for that one itself."""
    num_clips: int
    num_frames: int
    cosine: float
    """Mean cosine to Original's embedding."""
    ci_low: float
    """95 % interval over resampled clips."""
    ci_high: float


def ages(reuse_rate_F: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return [F], the frames since the last one of which nothing was reused; the first frame of a clip counts as one.

    So it holds for every way in which a method begins anew: after a fixed number of frames, at a cut, by an estimate of
    its own error, or where the embedding stage cuts a clip.
    """
    frame_F = np.arange(len(reuse_rate_F), dtype=np.int64)
    dense_F = np.where(np.asarray(reuse_rate_F) == 0, frame_F, 0)
    return frame_F - np.maximum.accumulate(dense_F)


def drift_curve(
    label: tuple[str, str],
    frames_of: Mapping[str, tuple[NDArray[np.floating], NDArray[np.floating]]],
    *,
    seed: int = 0,
) -> list[AgePoint]:
    """Average cosines by age.

    `label` is method and setting. Of each clip there are [F] and [F] in display order: each frame's cosine to Original,
    and its reuse rate.

    Returns:
        One point per age that enough clips reach, youngest first.
    """
    values: dict[int, list[float]] = defaultdict(list)
    clips: dict[int, list[str]] = defaultdict(list)
    for clip_id, (cosine_F, reuse_rate_F) in frames_of.items():
        for age, cosine in zip(ages(reuse_rate_F).tolist(), cosine_F.tolist(), strict=True):
            values[age].append(cosine)
            clips[age].append(clip_id)
    curve = []
    for age in sorted(values):
        num_clips = len(set(clips[age]))
        if num_clips < MIN_CLIPS_SHARE * len(frames_of):
            continue
        found = clustered_interval(np.array(values[age]), clips[age], num_samples=NUM_SAMPLES, seed=seed)
        curve.append(AgePoint(*label, age, num_clips, len(values[age]), found.mean, found.low, found.high))
    return curve


def plot_drift(curves: Sequence[Sequence[AgePoint]], path: StorePath) -> None:
    """Draw one panel per method with a line per setting, all at one scale.

    Curves without a point are left out, but there is one with points.
    """
    drawn = [curve for curve in curves if curve]
    by_method = {
        method: [curve for curve in drawn if curve[0].method == method]
        for method in styles_of(curve[0].method for curve in drawn)
    }
    num_columns = min(PANELS_PER_ROW, len(by_method))
    num_rows = -(-len(by_method) // num_columns)
    figure = Figure(figsize=(0.7 + 3.6 * num_columns, 0.5 + 2.7 * num_rows), dpi=130, facecolor="white")
    grid = figure.subplots(num_rows, num_columns, squeeze=False, sharey=True)
    lowest = min(point.ci_low for curve in drawn for point in curve)
    for axes, (method, some) in zip(grid.flat, by_method.items(), strict=False):
        _panel(axes, method, some, lowest)
    for axes in list(grid.flat)[len(by_method) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("cosine to Original", fontsize=9, color=INK)
    figure.tight_layout(pad=0.8)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png")


def _panel(axes: Axes, method: str, curves: Sequence[Sequence[AgePoint]], lowest: float) -> None:
    style = styles_of([method])[method]
    best_first = sorted(curves, key=lambda curve: -float(np.mean([point.cosine for point in curve])))
    for number, curve in enumerate(best_first):
        age = [point.age for point in curve]
        shade = SHADES[min(number, len(SHADES) - 1)]
        dashes = ("-", "--", "-.", ":")[number % 4]
        low, high = [point.ci_low for point in curve], [point.ci_high for point in curve]
        axes.fill_between(age, low, high, color=style.colour, alpha=0.12 * shade + 0.03, linewidth=0)
        marker = "o" if len(age) < 10 else None
        mean = [point.cosine for point in curve]
        axes.plot(
            age, mean, dashes, color=style.colour, alpha=shade, marker=marker, markersize=3, label=curve[0].setting
        )
    axes.set_title(style.name, loc="left", fontsize=10.5, fontweight="bold", color=style.colour)
    axes.set_ylim(lowest - 0.03 * (1 - lowest) - 0.002, 1 + 0.04 * (1 - lowest) + 0.002)
    axes.set_xlabel("frames since the last dense frame", fontsize=8.5, color=MUTED)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelsize=8.5, length=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.legend(fontsize=7.5, frameon=False, loc="lower left", labelcolor=INK)
