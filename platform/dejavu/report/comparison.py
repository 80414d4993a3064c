"""Two runs side by side: their points in one plot, and where the same setting came out differently."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dejavu.records import ParetoPoint
from dejavu.report.frontier import ORIGINAL, QUALITIES, Gain, Quality, words_of
from dejavu.report.style import FAINT, INK, MUTED, styles_of
from dejavu.storage.store import atomic, write_csv

GAIN_NAMES: dict[Gain, str] = {
    "flops_reduction": "Reduction of executed FLOPs",
    "speedup": "Speed-up by the clock over Original",
}
COMPARED = ("flops_reduction", "speedup", "ms_per_frame")
"""Beside the quality, what of each setting stands in the table."""
SAME_TOWER = 1e-3
"""Originals whose FLOPs differ by no more, relatively, are the same tower on frames of the same size."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run: what it is called and its points."""

    name: str
    points: Sequence[ParetoPoint]


def two_towers(first: Run, second: Run) -> bool:
    """Say whether the runs' Originals cost differently: gains over each one's own are then no common scale."""
    originals = [one for run in (first, second) if (one := _original(run)) is not None]
    gflops = [one.gflops_per_frame for one in originals if one.gflops_per_frame is not None]
    return len(gflops) == 2 and not math.isclose(*gflops, rel_tol=SAME_TOWER)


def from_original_of(first: Run, second: Run) -> Run:
    """Return the second run with its gains counted from the first one's Original."""
    dense = _original(first)
    assert dense is not None
    points = [
        replace(
            point,
            flops_reduction=_over(dense.gflops_per_frame, point.gflops_per_frame),
            speedup=_over_all_clips(_over(dense.ms_per_frame, point.ms_per_frame), point),
        )
        for point in second.points
    ]
    return replace(second, points=points)


def _over_all_clips(timed_speedup: float | None, point: ParetoPoint) -> float | None:
    """Carry a speed-up from the timed clips to all, as the point's own was."""
    if timed_speedup is None or not point.speedup or not point.timed_speedup:
        return timed_speedup
    return timed_speedup * point.speedup / point.timed_speedup


def _original(run: Run) -> ParetoPoint | None:
    return next((point for point in run.points if point.method == ORIGINAL), None)


def _over(dense: float | None, other: float | None) -> float | None:
    return dense / other if dense and other else None


def common_quality(first: Run, second: Run) -> Quality:
    """Return the strictest measure that every point of both runs has.

    Raises:
        ValueError: There is none, or only the cosine to Original where each run has its own.
    """
    points = [*first.points, *second.points]
    for quality in QUALITIES:
        if points and all(getattr(point, quality) is not None for point in points):
            if quality == "cosine_to_dense" and two_towers(first, second):
                raise ValueError(
                    f"runs: got {first.name} and {second.name} of two towers with cosines to each one's own Original, "
                    "expected answers; run a recipe that has some"
                )
            return quality
    raise ValueError(
        f"runs: got {first.name} and {second.name} without a measure that every point of both has, expected one of "
        f"{', '.join(QUALITIES)}; compare runs that were scored alike"
    )


def pairs(first: Run, second: Run) -> list[tuple[ParetoPoint, ParetoPoint]]:
    """Return the settings that both runs have, as each has them, in the order of the first run."""
    others = {(point.method, point.setting): point for point in second.points}
    return [(a, b) for a in first.points if (b := others.get((a.method, a.setting)))]


def write_pairs_csv(path: Path, found: Sequence[tuple[ParetoPoint, ParetoPoint]], quality: Quality) -> None:
    """Write a row for each pair, whole or not at all; a value that one of both lacks is an empty cell."""
    columns = [f"{name}_{run}" for name in ("quality", *COMPARED) for run in "ab"]
    rows = (
        [a.method, a.setting, *(getattr(one, name) for name in (quality, *COMPARED) for one in (a, b))]
        for a, b in found
    )
    write_csv(path, ["method", "setting", *columns], rows)


def plot_comparison(first: Run, second: Run, quality: Quality, path: Path) -> None:
    """Draw quality against FLOP reduction, and against speed-up where both were timed; settings of both are joined.

    The first run is filled, with full lines, the second open, with dashed ones.

    Raises:
        ValueError: Neither gain is known in both runs.
    """
    gains = [gain for gain in GAIN_NAMES if all(_placed(run, gain) for run in (first, second))]
    if not gains:
        raise ValueError(
            f"runs: got no {' or '.join(GAIN_NAMES)} in both {first.name} and {second.name}, expected one of them; "
            "run the measure stage"
        )
    figure = Figure(figsize=(1.2 + 6.0 * len(gains), 5.4), dpi=150, facecolor="white")
    every_axes = figure.subplots(1, len(gains), squeeze=False, sharey=True)[0]
    for axes, gain in zip(every_axes, gains, strict=True):
        _panel(axes, first, second, quality, gain)
    words, scale = words_of([*first.points, *second.points], quality), "" if quality == "cosine_to_dense" else " (%)"
    every_axes[0].set_ylabel(f"{words.name}{scale}", color=INK, fontsize=10)
    styles = styles_of(point.method for run in (first, second) for point in run.points)
    handles = [
        Line2D([], [], color=style.colour, marker=style.marker, label=style.name, linewidth=1.4)
        for style in styles.values()
    ]
    runs = [
        Line2D([], [], color=INK, marker="o", linestyle="-", label=f"A: {first.name}"),
        Line2D([], [], color=INK, marker="o", markerfacecolor="white", linestyle="--", label=f"B: {second.name}"),
    ]
    for entry in (*handles, *runs):
        entry.set_markersize(6)
    figure.legend(
        handles=[*runs, *handles], loc="upper center", ncols=min(6, len(handles) + 2), fontsize=8.5, frameon=False
    )
    figure.tight_layout(rect=(0, 0, 1, 0.89))
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png")


def _placed(run: Run, gain: Gain) -> list[ParetoPoint]:
    return [point for point in run.points if getattr(point, gain) is not None]


def _panel(axes: Axes, first: Run, second: Run, quality: Quality, gain: Gain) -> None:
    scale = 1 if quality == "cosine_to_dense" else 100
    places = []
    for run, dashes, is_open in ((first, "-", False), (second, "--", True)):
        place: dict[tuple[str, str], tuple[float, float]] = {}
        for method, style in styles_of(point.method for point in run.points).items():
            some = sorted(
                (point for point in _placed(run, gain) if point.method == method), key=lambda one: getattr(one, gain)
            )
            x = [float(getattr(point, gain)) for point in some]
            y = [scale * float(getattr(point, quality)) for point in some]
            face = "white" if is_open else style.colour
            axes.plot(
                x, y, dashes, color=style.colour, marker=style.marker, markersize=6, markerfacecolor=face, linewidth=1.2
            )
            place |= {
                (point.method, point.setting): spot for point, spot in zip(some, zip(x, y, strict=True), strict=True)
            }
        places.append(place)
    for setting, spot in places[0].items():
        if setting in places[1]:
            axes.plot(*zip(spot, places[1][setting], strict=True), color=MUTED, linewidth=0.7, alpha=0.6)
    axes.set_xlabel(f"{GAIN_NAMES[gain]}  →  better", color=INK, fontsize=10)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(colors=MUTED, length=0)
