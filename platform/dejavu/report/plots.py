"""The Pareto plot: quality against the clock and computation. Drawn without a display and without global state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from textwrap import wrap
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, MaxNLocator

from dejavu.records import ParetoPoint
from dejavu.report.frontier import (
    MAX_LOSS,
    ORIGINAL,
    Gain,
    Quality,
    mark_frontier,
    original_quality,
    quality_of,
    words_of,
)
from dejavu.report.headline import loss_interval
from dejavu.report.label_placement import Box, Points, Room, place
from dejavu.report.published_points import PUBLISHED
from dejavu.report.style import FAINT, GOLD, INK, MUTED, STYLES, Style, styles_of
from dejavu.storage.store import atomic
from dejavu.storage.store_path import StorePath

_KEY = "gold and ringed: the frontier, with its settings; grey band: within {loss:g} % of Original"
_BETWEEN = "   ·   "
_CHARACTERS_PER_INCH = 13.5
"""Of the lines under the title, on average."""
_PANEL_INCHES = (9.6, 6.2)
"""Of the plot of one panel: a second one beside it is narrower, one below it has no title."""


@dataclass(frozen=True, slots=True)
class _Series:
    """One method's line, cheapest setting last; x are reductions, y and the whiskers per cent."""

    style: Style
    x: Points
    y: Points
    whiskers: tuple[tuple[float, float, float], ...]
    """(x, low, high), where there is an interval."""
    settings: tuple[str, ...]
    on_frontier: tuple[bool, ...]
    untrained: bool

    @property
    def corners(self) -> Points:
        """[K, 2]."""
        return np.column_stack([self.x, self.y])


@dataclass(frozen=True, slots=True)
class _Panel:
    """What one pair of axes shows."""

    x_name: str
    dense: float
    """Original's quality in per cent."""
    series: tuple[_Series, ...]
    published: tuple[_Series, ...]
    stairs: Points
    """[K, 2], the border of what is dominated; empty where nothing is marked."""
    says: str = "cheaper"
    """What further right means."""


@dataclass(frozen=True, slots=True)
class _Label:
    """A text and the places, in data units, that it may stand beside; the first is the most wanted."""

    text: str
    places: Points
    colour: str
    size_pt: float
    weight: str
    optional: bool = False


def plot_pareto(  # noqa: PLR0913  two files and what stands in them
    points: Sequence[ParetoPoint],
    path_png: StorePath,
    path_svg: StorePath | None = None,
    *,
    quality: Quality | None = None,
    published: bool = False,
    title: str = "Quality against the clock and computation",
    max_loss: float = MAX_LOSS,
) -> None:
    """Draw quality against the speed-up by the clock, and against the reduction of FLOPs, one line a method.

    Whiskers are the paired interval of the difference to Original, put at Original's quality. Each panel has its own
    frontier; the clock's is there where something beside Original was timed, and has the points that were. Published
    points, where wanted, stand in a panel of their own whose FLOPs are counted by the artifact's formulas, since those
    are not what is executed; where no point of ours has been counted so, they stand muted in the panel of executed
    FLOPs.

    Args:
        points: Settings scored on the same clips of one split, one Original among them.
        path_png: Written whole or not at all.
        path_svg: As path_png, where given.
        quality: What stands upwards, the strictest measure that all points have (frontier.quality_of) unless given.
        published: Show the published NExT-GQA numbers; they appear only beside Acc@GQA.
        title: Headline.
        max_loss: The share of Original's quality that the band shows.

    Raises:
        ValueError: There is no Original, it has no FLOP reduction, or no measure is common to all points.
    """
    quality = quality or quality_of(points)
    original_quality(points, quality)
    if any(point.flops_reduction is None for point in points if point.method == ORIGINAL):
        raise ValueError(
            f"points: got no flops_reduction for {ORIGINAL!r}, expected 1.0; count FLOPs before drawing them"
        )
    panels = _panels(points, quality, published=published and quality == "acc_gqa")
    figure, every_axes = _axes_under([title, *_about(points, quality, max_loss)], len(panels))
    for axes, panel in zip(every_axes, panels, strict=True):
        _frame(axes, panel, panels)
        axes.axhspan((1 - max_loss) * panel.dense, panel.dense, color=FAINT, zorder=0, linewidth=0)
        _draw(axes, panel)
    figure.canvas.draw()  # fixes where things are, which labels need to know
    for axes, panel in zip(every_axes, panels, strict=True):
        room = _room(axes, panel)
        for label in _labels(axes, panel):
            _write(axes, label, room)
    for path, kind in ((path_png, "png"), (path_svg, "svg")):
        if path is not None:
            with atomic(path) as temporary:
                figure.savefig(temporary, format=kind, metadata={"Date": None} if kind == "svg" else None)


def _axes_under(texts: Sequence[str], num_panels: int) -> tuple[Figure, list[Axes]]:
    """Make a figure with a title, what it is about, and axes for each panel below, two beside each other."""
    columns, rows = min(num_panels, 2), ceil(num_panels / 2)
    one_wide, one_high = _PANEL_INCHES
    width = one_wide * columns**0.75
    title, *about = texts
    lines = [line.strip(" ·") for text in about for line in wrap(text, int(width * _CHARACTERS_PER_INCH))]
    above, below = 0.74 + 0.21 * len(lines), 0.71
    panel_high = one_high - 1.86
    height = above + rows * (panel_high + below)
    figure = Figure(figsize=(width, height), dpi=160, facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    left = 0.85 / width
    figure.subplots_adjust(
        left=left, right=0.985, top=1 - above / height, bottom=below / height, wspace=0.06, hspace=below / panel_high
    )
    for unused in grid[num_panels:]:
        unused.remove()
    for axes in grid[:num_panels:2]:
        axes.tick_params(axis="y", labelleft=True)
    figure.text(left, 1 - 0.34 / height, title, fontsize=15, fontweight="bold", color=INK, va="center")
    for number, line in enumerate(lines):
        figure.text(left, 1 - (0.66 + 0.21 * number) / height, line, fontsize=9.5, color=MUTED, va="center")
    return figure, list(grid[:num_panels])


def _about(points: Sequence[ParetoPoint], quality: Quality, max_loss: float) -> list[str]:
    """Say what the quality is, of how many clips, and what is marked how."""
    clips = sorted({point.num_clips for point in points})
    words = words_of(points, quality)
    name = f"{words.name}: {words.meaning} (%)"
    about = [name[0].upper() + name[1:], f"{'/'.join(map(str, clips))} {points[0].split} clips"]
    if quality != "cosine_to_dense":
        about.append("whiskers: 95 % interval of the difference to Original")
    return [_BETWEEN.join(about), _KEY.format(loss=100 * max_loss)]


def _panels(points: Sequence[ParetoPoint], quality: Quality, *, published: bool) -> list[_Panel]:
    reference = _all_series(PUBLISHED, "acc_gqa", "flops_reduction_published") if published else ()
    series = _all_series(points, quality, "flops_reduction")
    same_formulas = _all_series(points, quality, "flops_reduction_published")
    by_clock = _all_series(points, quality, "speedup")
    comparable = published and any(line.style.name != STYLES[ORIGINAL].name for line in same_formulas)
    original = next(point for point in points if point.method == ORIGINAL)
    gflops = original.gflops_per_frame
    about = "" if gflops is None else f" (Original: {gflops:.3g} GFLOPs a frame)"
    dense = 100 * original_quality(points, quality)
    executed = f"Reduction of executed FLOPs{about}"
    panels = [_Panel(executed, dense, series, () if comparable else reference, _stairs(series))]
    if any(line.style != STYLES[ORIGINAL] for line in by_clock):
        fastest_ms = (original.ms_per_frame or 0) * (original.timed_speedup or original.speedup or 0)
        pace = f" (1×: {fastest_ms:.3g} ms a frame)" if fastest_ms else ""
        panels.insert(0, _Panel(f"Speed-up by the clock{pace}", dense, by_clock, (), _stairs(by_clock), "faster"))
    if comparable:
        panels.append(
            _Panel("Reduction by the artifact's FLOP formulas", dense, same_formulas, reference, np.empty((0, 2)))
        )
    return panels


def _all_series(
    points: Sequence[ParetoPoint], quality: Quality, gain: Gain | Literal["flops_reduction_published"]
) -> tuple[_Series, ...]:
    dense = original_quality(points, quality)
    points = mark_frontier(points, "speedup" if gain == "speedup" else "flops_reduction", quality)
    every = []
    for method, style in styles_of(point.method for point in points).items():
        chosen = [point for point in points if point.method == method and getattr(point, gain) is not None]
        if not chosen:
            continue
        chosen.sort(key=lambda point: float(getattr(point, gain)))
        every.append(
            _Series(
                style=style,
                x=np.array([float(getattr(point, gain)) for point in chosen]),
                y=np.array([100 * float(getattr(point, quality)) for point in chosen]),
                whiskers=tuple(
                    (float(getattr(point, gain)), 100 * (dense + interval[0]), 100 * (dense + interval[1]))
                    for point in chosen
                    if method != ORIGINAL and (interval := loss_interval(point, quality))
                ),
                settings=tuple(point.setting for point in chosen),
                on_frontier=tuple(bool(point.on_frontier) for point in chosen),
                untrained=any(point.trained is False for point in chosen),
            )
        )
    return tuple(every)


def _stairs(series: Sequence[_Series]) -> Points:
    """Return the border of what is dominated: from each point of the frontier left to the reduction of the last one."""
    tops = sorted(
        (x, y)
        for line in series
        for x, y, on in zip(line.x.tolist(), line.y.tolist(), line.on_frontier, strict=True)
        if on
    )
    corners = [tops[0]]
    for x, y in tops[1:]:
        corners += [(corners[-1][0], y), (x, y)]
    return np.array(corners)


def _frame(axes: Axes, panel: _Panel, panels: Sequence[_Panel]) -> None:
    """Set limits, the same up and down for all panels, and everything around the data."""
    x = np.concatenate([line.x for line in panel.series + panel.published])
    y = np.array(
        [value for other in panels for line in other.series + other.published for value in line.y]
        + [end for other in panels for line in other.series for whisker in line.whiskers for end in whisker[1:]]
    )
    (left, right), (low, high) = _at_least(x, 0.5), _at_least(y, 1.0)
    axes.set_xlim(left - 0.04 * (right - left), right + 0.09 * (right - left))
    axes.set_ylim(low - 0.05 * (high - low), high + 0.07 * (high - low))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=9.5, length=0, pad=6)
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.set_xlabel(f"{panel.x_name}  →  {panel.says}", color=INK, fontsize=10.5, labelpad=8)


def _at_least(values: Points, length: float) -> tuple[float, float]:
    """Return the ends of the values' range, moved apart where it is shorter, as where all settings are alike."""
    low, high = float(values.min()), float(values.max())
    more = max(0.0, length - (high - low)) / 2
    return low - more, high + more


def _draw(axes: Axes, panel: _Panel) -> None:
    axes.axhline(panel.dense, color=INK, linewidth=1.1, zorder=1)
    axes.plot(*panel.stairs.T, color=GOLD, linewidth=3.5, zorder=1.2, solid_joinstyle="miter")
    for line in panel.published:
        axes.plot(line.x, line.y, color=MUTED, alpha=0.55, linewidth=1, linestyle=(0, (2, 2)), zorder=1.5)
        axes.scatter(line.x, line.y, marker=line.style.marker, s=26, color="white", edgecolor=MUTED, zorder=1.6)
    for line in panel.series:
        colour, dashes = line.style.colour, "--" if line.untrained else "-"
        axes.plot(line.x, line.y, color=colour, linewidth=1.5, alpha=0.75, linestyle=dashes, zorder=3)
        for x, low, high in line.whiskers:
            axes.plot([x, x], [low, high], color=colour, linewidth=1.1, alpha=0.38, zorder=2)
        for x, y, ringed in zip(line.x, line.y, line.on_frontier, strict=True):
            axes.scatter(
                [x],
                [y],
                marker=line.style.marker,
                s=210 if line.style == STYLES[ORIGINAL] else 74 if ringed else 40,
                color="white" if line.untrained else colour,
                edgecolor=colour if line.untrained else INK if ringed else "white",
                linewidth=1.8 if line.untrained else 1.3 if ringed else 0.8,
                zorder=5 if ringed else 4,
            )


def _labels(axes: Axes, panel: _Panel) -> list[_Label]:
    """List the texts: what the reference is, method names, published names, the settings of the frontier."""
    right = np.array([[axes.get_xlim()[1], panel.dense]])
    labels = [_Label(f"Original {panel.dense:.1f} %", right, INK, 9.5, "bold")]
    methods = [line for line in panel.series if line.style != STYLES[ORIGINAL]]
    for line in sorted(methods, key=lambda line: float(line.x[-1])):
        name = line.style.name + (" (untrained)" if line.untrained else "")
        labels.append(_Label(name, line.corners[::-1], line.style.colour, 11, "bold"))
    for line in panel.published:
        if line.style != STYLES[ORIGINAL]:
            labels.append(_Label(f"{line.style.name}, published", line.corners[::-1], MUTED, 8.5, "normal"))
    if len(panel.stairs):
        for line in methods:
            for corner, setting, on in zip(line.corners, line.settings, line.on_frontier, strict=True):
                if on:
                    labels.append(_Label(setting, corner[None], INK, 8, "normal", optional=True))
    return labels


def _write(axes: Axes, label: _Label, room: Room) -> None:
    """Write a label beside one of its places; an optional one only where it hides nothing."""
    text = axes.text(0, 0, label.text, va="center", ha="center", zorder=7, clip_on=False)
    text.set(color=label.colour, fontsize=label.size_pt, fontweight=label.weight)
    text.set_gid(f"label:{label.text}".replace(" ", "_"))  # the SVG holds shapes of letters: this keeps what they say
    text.set_path_effects([withStroke(linewidth=2.6, foreground="white", alpha=0.85)])
    extent = text.get_window_extent()
    anchors = [(float(x), float(y)) for x, y in axes.transData.transform(label.places)]
    spot = place((extent.width, extent.height), anchors, room)
    if label.optional and spot.cost > 30:
        text.remove()
        return
    room.labels.append(spot.box)
    to_data = axes.transData.inverted()
    text.set_position(tuple(to_data.transform(spot.box.middle)))
    if spot.distance > 20:  # far enough to need a hint of what it belongs to
        ends = to_data.transform([spot.anchor, spot.box.nearest(spot.anchor)])
        axes.plot(*ends.T, color=label.colour, linewidth=0.7, alpha=0.6, zorder=2.5)


def _room(axes: Axes, panel: _Panel) -> Room:
    """Gather what labels should keep clear of."""
    box = axes.get_window_extent()
    shown = panel.series + panel.published
    drawn = [line.corners for line in shown]
    drawn += [np.array([[x, low], [x, high]]) for line in shown for x, low, high in line.whiskers]
    drawn += [panel.stairs, np.array([[x, panel.dense] for x in axes.get_xlim()])]
    lines = [_along(axes.transData.transform(corners)) for corners in drawn if len(corners)]
    marks = axes.transData.transform(np.concatenate([line.corners for line in shown]))
    return Room(Box(box.x0 + 4, box.y0 + 4, box.x1 - 2, box.y1 + 14), marks, np.concatenate(lines))


def _along(corners_K2: Points) -> Points:
    """Return points every few pixels along a line through the corners."""
    pieces = [corners_K2]
    for start, end in pairwise(corners_K2):
        steps = int(np.hypot(*(end - start)) // 5)
        pieces.append(start + (end - start) * np.linspace(0, 1, steps + 1, endpoint=False)[:, None])
    return np.concatenate(pieces)
