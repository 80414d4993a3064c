"""Pictures: quality against computation, and what was reused where; drawn without a display or global state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, MaxNLocator

from dejavu.frontier import MAX_LOSS, ORIGINAL, Quality, mark_frontier, original_quality, quality_of
from dejavu.label_placement import Box, Points, Room, place
from dejavu.published_points import PUBLISHED
from dejavu.records import ParetoPoint
from dejavu.store import atomic

INK, MUTED, FAINT, GOLD = "#1d2530", "#77808c", "#e7eaee", "#f5dfae"


@dataclass(frozen=True, slots=True)
class Look:
    """How one method is drawn, in every picture alike."""

    name: str
    colour: str
    marker: str


LOOKS = {
    ORIGINAL: Look("Original", INK, "*"),
    "reusevit": Look("ReuseViT", "#d1345b", "o"),
    "eventful": Look("Eventful", "#2274c9", "s"),
    "eventful_full": Look("Eventful, all gates", "#0097a7", "s"),
    "cmc": Look("CMC", "#1b8a5a", "^"),
    "diffrate": Look("DiffRate", "#8a4fbf", "D"),
    "diffrate_sized": Look("DiffRate, size-aware", "#b05fc9", "D"),
    "tome": Look("ToMe", "#e08300", "v"),
    "frame_skip": Look("FrameSkip", "#7a6a53", "X"),
}
_SPARE = (("#00939c", "P"), ("#a3333d", "p"), ("#5c6b00", "h"), ("#b0578d", "<"), ("#41506b", ">"))

_QUALITY_NAMES: dict[Quality, str] = {
    "acc_gqa": "Acc@GQA: right answer at the right time (%)",
    "accuracy": "Acc@QA: right answers (%)",
    "cosine_to_dense": "Fidelity: cosine to Original's embeddings (%)",
}
_INTERVALS: dict[Quality, tuple[str, str] | None] = {
    "acc_gqa": ("acc_gqa_ci_low", "acc_gqa_ci_high"),
    "accuracy": ("accuracy_ci_low", "accuracy_ci_high"),
    "cosine_to_dense": None,
}


_KEY = "Gold and ringed: the frontier, with its settings   ·   grey band: within 2 % of Original"


@dataclass(frozen=True, slots=True)
class _Series:
    """One method's points in drawing order, quality in per cent."""

    look: Look
    points: tuple[ParetoPoint, ...]
    x: Points
    y: Points

    def from_its_end(self) -> list[tuple[float, float]]:
        """The places where its name may stand, the cheapest setting first."""
        return list(zip(self.x[::-1].tolist(), self.y[::-1].tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class _Label:
    """A text and the places, in data units, that it may stand beside; the first is the most wanted."""

    text: str
    places: Sequence[tuple[float, float]]
    colour: str
    size_pt: float
    weight: str
    optional: bool = False


@dataclass(frozen=True, slots=True)
class _View:
    """What a panel shows."""

    quality: Quality
    gain: str
    gain_name: str
    published: bool


def plot_pareto(
    points: Sequence[ParetoPoint],
    path_png: Path,
    path_svg: Path | None = None,
    *,
    published: bool = False,
    title: str = "Quality against computation",
) -> None:
    """Draw quality against the reduction of FLOPs, one line a method.

    Whiskers are the points' own confidence intervals, the grey band is within 2 % of Original, ringed points are on the
    frontier and carry their setting. Published points, where wanted, stand in a panel of their own whose FLOPs are
    counted by the artifact's formulas, since those differ from what is executed; where no point of ours has been
    counted so, they stand muted in the one panel.

    Args:
        points: Settings scored on the same clips of one split, one Original among them.
        path_png: Written whole or not at all.
        path_svg: As path_png, where given.
        published: Show the published NExT-GQA numbers; only beside Acc@GQA.
        title: Headline.

    Raises:
        ValueError: There is no Original, no measure that all have, or no FLOP reduction.
    """
    quality = quality_of(points)
    original_quality(points, quality)
    points = [point for point in mark_frontier(points) if point.flops_reduction is not None]
    if not any(point.method == ORIGINAL for point in points):
        raise ValueError(
            f"points: got no flops_reduction for {ORIGINAL!r}, expected 1.0; count FLOPs before drawing them"
        )
    published = published and quality == "acc_gqa"
    comparable = published and any(
        point.flops_reduction_published is not None for point in points if point.method != ORIGINAL
    )
    views = [_View(quality, "flops_reduction", _executed(points), published and not comparable)]
    if comparable:
        views.append(_View(quality, "flops_reduction_published", "Reduction by the artifact's FLOP formulas", True))

    figure = Figure(figsize=(9.6 * len(views) ** 0.75, 6.2), dpi=160, facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(views), squeeze=False, sharey=True)[0]
    figure.subplots_adjust(left=0.085 / len(views) ** 0.6, right=0.985, top=0.815, bottom=0.115, wspace=0.06)
    for axes, view in zip(panels, views, strict=True):
        _draw_panel(figure, axes, points, view, first=axes is panels[0])
    _headline(figure, points, title)
    for axes, view in zip(panels, views, strict=True):
        _label_panel(figure, axes, points, view)
    _save(figure, path_png, "png")
    if path_svg is not None:
        _save(figure, path_svg, "svg")


def _draw_panel(figure: Figure, axes: Axes, points: Sequence[ParetoPoint], view: _View, *, first: bool) -> None:
    every = _all_series(points, view)
    dense = 100 * original_quality(points, view.quality)
    _frame(axes, every, view, dense, first=first)

    axes.axhspan((1 - MAX_LOSS) * dense, dense, color=FAINT, zorder=0, linewidth=0)
    axes.axhline(dense, color=INK, linewidth=1.1, zorder=1)
    if view.published:
        for line in _published_series():
            axes.plot(line.x, line.y, color=MUTED, alpha=0.55, linewidth=1, linestyle=(0, (2, 2)), zorder=1.5)
            axes.scatter(line.x, line.y, marker=line.look.marker, s=26, color="white", edgecolor=MUTED, zorder=1.6)
    if view.gain == "flops_reduction":  # the frontier is of what is executed
        stairs = _staircase(axes, points, view)
        axes.plot(stairs[:, 0], stairs[:, 1], color=GOLD, linewidth=3.5, zorder=1.2, solid_joinstyle="miter")
    for line in every:
        _draw_series(axes, line, view)


def _draw_series(axes: Axes, line: _Series, view: _View) -> None:
    colour, original = line.look.colour, line.points[0].method == ORIGINAL
    untrained = line.points[0].trained is False
    axes.plot(line.x, line.y, color=colour, linewidth=1.5, alpha=0.75, linestyle="--" if untrained else "-", zorder=3)
    fields = _INTERVALS[view.quality]
    for point, x in zip(line.points, line.x, strict=True):
        low, high = (getattr(point, field) for field in fields) if fields else (None, None)
        if low is not None and high is not None:
            axes.plot([x, x], [100 * low, 100 * high], color=colour, linewidth=1.1, alpha=0.38, zorder=2)
    for point, x, y in zip(line.points, line.x, line.y, strict=True):
        ringed = bool(point.on_frontier)
        axes.scatter(
            [x],
            [y],
            marker=line.look.marker,
            s=210 if original else 74 if ringed else 40,
            color="white" if untrained else colour,
            edgecolor=colour if untrained else INK if ringed else "white",
            linewidth=1.8 if untrained else 1.3 if ringed else 0.8,
            zorder=5 if ringed else 4,
        )


def _staircase(axes: Axes, points: Sequence[ParetoPoint], view: _View) -> Points:
    """Return the border of what is dominated: a step down where no setting saves more at that quality."""
    stairs = sorted(
        (float(getattr(p, view.gain)), 100 * float(getattr(p, view.quality))) for p in points if p.on_frontier
    )
    corners = [(axes.get_xlim()[0], stairs[0][1]), stairs[0]]
    for x, y in stairs[1:]:
        corners += [(corners[-1][0], y), (x, y)]
    return np.array(corners)


def _frame(axes: Axes, every: Sequence[_Series], view: _View, dense: float, *, first: bool) -> None:
    shown = [*every, *(_published_series() if view.published else ())]
    x = np.concatenate([line.x for line in shown])
    low, high = _whisker_ends(every, view)
    y = np.concatenate([*(line.y for line in shown), low, high, [dense]])
    width, height = max(float(np.ptp(x)), 0.5), max(float(np.ptp(y)), 1.0)
    axes.set_xlim(float(x.min()) - 0.04 * width, float(x.max()) + 0.09 * width)
    bottom, top = axes.get_ylim() if not first else (np.inf, -np.inf)
    axes.set_ylim(min(bottom, float(y.min()) - 0.05 * height), max(top, float(y.max()) + 0.07 * height))
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=9.5, length=0, pad=6)
    axes.tick_params(axis="y", labelleft=first)
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.set_xlabel(f"{view.gain_name}  →  cheaper", color=INK, fontsize=10.5, labelpad=8)


def _whisker_ends(every: Sequence[_Series], view: _View) -> tuple[Points, Points]:
    fields = _INTERVALS[view.quality]
    ends = [
        [100 * float(value) for line in every for point in line.points if (value := getattr(point, name)) is not None]
        for name in fields or ()
    ]
    low, high = ends or ([], [])
    return np.array(low, dtype=float), np.array(high, dtype=float)


def _headline(figure: Figure, points: Sequence[ParetoPoint], title: str) -> None:
    quality = quality_of(points)
    left = figure.axes[0].get_position().x0
    figure.text(left, 0.945, title, fontsize=15, fontweight="bold", color=INK, va="center")
    clips = sorted({point.num_clips for point in points})
    about = [f"{_QUALITY_NAMES[quality]}", f"{'/'.join(map(str, clips))} {points[0].split} clips"]
    fields = _INTERVALS[quality]
    if fields and any(getattr(point, fields[0]) is not None for point in points):
        about.append("whiskers: 95 % interval of the difference to Original")
    figure.text(left, 0.896, "   ·   ".join(about), fontsize=9.5, color=MUTED, va="center")
    figure.text(left, 0.862, _KEY, fontsize=9.5, color=MUTED, va="center")


def _label_panel(figure: Figure, axes: Axes, points: Sequence[ParetoPoint], view: _View) -> None:
    """Write method names, the frontier's settings and what the reference is, where there is room."""
    figure.canvas.draw()
    every = _all_series(points, view)
    dense = 100 * original_quality(points, view.quality)
    labels = [_Label(f"Original {dense:.1f} %", [(axes.get_xlim()[1], dense)], INK, 9.5, "bold")]
    for line in sorted(every, key=lambda line: float(line.x.max())):
        if line.points[0].method != ORIGINAL:
            name = line.look.name + (" (untrained)" if line.points[0].trained is False else "")
            labels.append(_Label(name, line.from_its_end(), line.look.colour, 11, "bold"))
    if view.published:
        labels += [
            _Label(f"{line.look.name}, published", line.from_its_end(), MUTED, 8.5, "normal")
            for line in _published_series()
            if line.look.name != LOOKS[ORIGINAL].name
        ]
    if view.gain == "flops_reduction":
        labels += [
            _Label(point.setting, [(x, y)], INK, 8, "normal", optional=True)
            for line in every
            for point, x, y in zip(line.points, line.x, line.y, strict=True)
            if point.on_frontier and point.method != ORIGINAL
        ]
    room = _room(axes, every, view)
    for label in labels:
        _write(axes, label, room)


def _write(axes: Axes, label: _Label, room: Room) -> None:
    """Write a label beside one of its places; an optional one only where it hides nothing."""
    text = axes.text(0, 0, label.text, va="center", ha="center", zorder=7, clip_on=False)
    text.set(color=label.colour, fontsize=label.size_pt, fontweight=label.weight)
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
        axes.plot(ends[:, 0], ends[:, 1], color=label.colour, linewidth=0.7, alpha=0.6, zorder=2.5)


def _room(axes: Axes, every: Sequence[_Series], view: _View) -> Room:
    box = axes.get_window_extent()
    shown = [*every, *(_published_series() if view.published else ())]
    marks = np.concatenate([axes.transData.transform(np.column_stack([line.x, line.y])) for line in shown])
    lines = [_along(axes.transData.transform(np.column_stack([line.x, line.y]))) for line in shown]
    fields = _INTERVALS[view.quality]
    for line in every:
        for point, x in zip(line.points, line.x, strict=True):
            if fields and (low := getattr(point, fields[0])) is not None:
                high = getattr(point, fields[1])
                lines.append(_along(axes.transData.transform([(x, 100 * low), (x, 100 * high)])))
    dense = next(float(line.y[0]) for line in every if line.points[0].method == ORIGINAL)
    lines.append(_along(axes.transData.transform([(x, dense) for x in axes.get_xlim()])))
    if view.gain == "flops_reduction":
        lines.append(
            _along(axes.transData.transform(_staircase(axes, [point for line in every for point in line.points], view)))
        )
    return Room(Box(box.x0 + 4, box.y0 + 4, box.x1 - 2, box.y1 + 14), marks, np.concatenate(lines))


def _along(corners_K2: Points) -> Points:
    """Return points every few pixels along a line through the corners."""
    pieces = [corners_K2]
    for start, end in pairwise(corners_K2):
        steps = int(np.hypot(*(end - start)) // 5)
        pieces.append(start + (end - start) * np.linspace(0, 1, steps + 1, endpoint=False)[:, None])
    return np.concatenate(pieces)


def _executed(points: Sequence[ParetoPoint]) -> str:
    dense = next(point for point in points if point.method == ORIGINAL)
    gflops = "" if dense.gflops_per_frame is None else f" (Original: {dense.gflops_per_frame:.3g} GFLOPs a frame)"
    return f"Reduction of executed FLOPs{gflops}"


def _all_series(points: Sequence[ParetoPoint], view: _View) -> list[_Series]:
    names = [ORIGINAL, *(name for name in LOOKS if name != ORIGINAL), *(point.method for point in points)]
    every = []
    for number, method in enumerate(dict.fromkeys(names)):
        chosen = [p for p in points if p.method == method and getattr(p, view.gain) is not None]
        if not chosen:
            continue
        chosen.sort(key=lambda point: float(getattr(point, view.gain)))
        colour, marker = _SPARE[(number - len(LOOKS)) % len(_SPARE)]
        look = LOOKS.get(method) or Look(method.replace("_", " ").capitalize(), colour, marker)
        x = np.array([float(getattr(point, view.gain)) for point in chosen])
        y = np.array([100 * float(getattr(point, view.quality)) for point in chosen])
        every.append(_Series(look, tuple(chosen), x, y))
    return every


def _published_series() -> list[_Series]:
    series = []
    for method in dict.fromkeys(point.method for point in PUBLISHED):
        chosen = [point for point in PUBLISHED if point.method == method]
        x = np.array([point.flops_reduction_published for point in chosen])
        y = np.array([100 * point.acc_gqa for point in chosen])
        series.append(_Series(LOOKS[method], (), x, y))
    return series


def _save(figure: Figure, path: Path, kind: str) -> None:
    with atomic(path) as temporary:
        figure.savefig(temporary, format=kind, metadata={"Date": None} if kind == "svg" else None)
