"""What happens in one synthetic clip; play.py draws it and says what of it can really be seen.

A clip has a cast that stays, a cut or two, and targets that are there for two to six frames of half a second: they
enter and leave, are what another object changes into, or hide another one. Kinds are never repeated within a clip,
so that an answer is right at its own time only.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from dejavu.synthetic.labelled_frames import grey_block, object_rgb
from dejavu.synthetic.world import ANGLE_STEP_DEG, KINDS, Kind

FRAME_SIZES = ((128, 128), (160, 128), (128, 160), (192, 144))
"""Width and height in pixels of the source videos."""
FRAMES_PER_SECOND = (6, 8)
SAMPLING_PERIOD_S = 0.5
"""Visible lengths are counted in frames of this period, which is what the platform samples by default."""
VISIBLE_FRAMES = (2, 6)
"""Fewest and most sampled frames that show a target."""
VISIBLE_SHARE = 0.3
"""A target counts as seen from this share of its area on."""
FULL_COVER_SHAPES = ("circle", "square")
"""Shapes that hide what is behind them."""

How = Literal["appears", "changes", "hides"]


@dataclass(frozen=True, slots=True)
class Track:
    """One object through a clip."""

    looks: tuple[tuple[float, Kind | None, tuple[float, float, float]], ...]
    """(from second, kind, colour as painted) in order; a kind of None is a grey block."""
    size_px: int
    angle_deg: int
    times_s: tuple[float, ...]
    xs: tuple[float, ...]
    """Centre at those times, as a share of the centre square; may lie outside 0..1."""
    ys: tuple[float, ...]
    appears_s: float
    leaves_s: float

    def look(self, time_s: float) -> tuple[Kind | None, tuple[float, float, float]]:
        """Return kind and colour at a time."""
        _, kind, rgb = [look for look in self.looks if look[0] <= time_s][-1]
        return kind, rgb


@dataclass(frozen=True, slots=True)
class Target:
    """What a question asks for."""

    track: int
    kind: Kind
    start_s: float
    end_s: float
    how: How
    other: Kind | None
    """What it changed from, or what it hides."""


@dataclass(frozen=True, slots=True)
class Scenery:
    """Background from one cut to the next."""

    from_s: float
    seed: int
    pan_x_px_s: float
    pan_y_px_s: float


@dataclass(frozen=True, slots=True)
class Script:
    """Everything that decides a clip."""

    width_px: int
    height_px: int
    fps: int
    duration_s: int
    tracks: tuple[Track, ...]
    """From back to front."""
    targets: tuple[Target, ...]
    sceneries: tuple[Scenery, ...]
    light: tuple[float, float, float, float]
    """Mean, amplitude, period in seconds, phase."""
    noise: float
    noise_seed: int

    @property
    def num_frames(self) -> int:
        """Frames of the source video."""
        return self.duration_s * self.fps

    @property
    def side_px(self) -> int:
        """Side of the centre square, which is all that a transcoded clip keeps."""
        return min(self.width_px, self.height_px)

    def kinds(self) -> set[Kind]:
        """List every kind that is ever there."""
        return {kind for track in self.tracks for _, kind, _ in track.looks if kind is not None}


def write_script(rng: np.random.Generator, num_targets: int, duration_s: tuple[int, int]) -> Script:
    """Invent a clip with so many things to ask about; its length lies between two numbers of whole seconds."""
    width_px, height_px = FRAME_SIZES[rng.integers(len(FRAME_SIZES))]
    length_s = int(rng.integers(duration_s[0], duration_s[1] + 1))
    side_px = min(width_px, height_px)
    cuts_s = _cuts(rng, length_s)
    num_cast = int(rng.integers(3, 5))
    kinds = [KINDS[index] for index in rng.permutation(len(KINDS))]
    cast_kinds, free_kinds = kinds[:num_cast], kinds[num_cast:]
    scenes = list(zip((0.0, *cuts_s), (*cuts_s, float(length_s)), strict=True))
    places = [rng.permutation(9)[:num_cast] for _ in scenes]
    tracks = [
        _cast_track(
            rng, kind, side_px, [(*scene, int(cells[member])) for scene, cells in zip(scenes, places, strict=True)]
        )
        for member, kind in enumerate(cast_kinds)
    ]
    if rng.random() < 0.3:
        tracks.append(_block_track(rng, side_px, length_s))
    plot = _Plot(tracks, cast_kinds, free_kinds, side_px, length_s)
    plot.add_targets(rng, num_targets)
    return Script(
        width_px=width_px,
        height_px=height_px,
        fps=FRAMES_PER_SECOND[rng.integers(len(FRAMES_PER_SECOND))],
        duration_s=length_s,
        tracks=tuple(tracks + plot.fronts),
        targets=tuple(plot.targets),
        sceneries=tuple(_scenery(rng, from_s) for from_s in (0.0, *cuts_s)),
        light=(rng.uniform(0.88, 1.05), rng.uniform(0, 0.13), rng.uniform(4, 20), rng.uniform(0, 6.28)),
        noise=rng.uniform(2, 9),
        noise_seed=int(rng.integers(2**31)),
    )


@dataclass(slots=True)
class _Plot:
    """What happens among the cast of a clip, as far as it is invented."""

    tracks: list[Track]
    """The cast and what stands about; those that change are replaced."""
    cast_kinds: list[Kind]
    free_kinds: list[Kind]
    """Kinds that nothing has been yet, in the order in which they are taken."""
    side_px: int
    length_s: int
    fronts: list[Track] = field(default_factory=list)
    """What comes before all others."""
    targets: list[Target] = field(default_factory=list)

    def add_targets(self, rng: np.random.Generator, num_targets: int) -> None:
        """Invent things to ask about, one after the other."""
        slots_s = np.linspace(0.5, self.length_s - 0.5, num_targets + 1)
        changed: set[int] = set()
        tracks, cast_kinds, free_kinds = self.tracks, self.cast_kinds, self.free_kinds
        for slot in range(num_targets):
            visible_s = SAMPLING_PERIOD_S * rng.integers(VISIBLE_FRAMES[0], VISIBLE_FRAMES[1] + 1)
            earliest, latest = slots_s[slot], max(slots_s[slot], slots_s[slot + 1] - visible_s)
            start_s = float(min(rng.uniform(earliest, latest), self.length_s - visible_s))
            end_s = float(start_s + visible_s)
            how: How = ("appears", "appears", "appears", "changes", "hides")[rng.integers(5)]
            member = int(rng.integers(len(cast_kinds)))
            if how == "changes" and member not in changed:
                kind = next((k for k in free_kinds if k.shape == cast_kinds[member].shape), None)
                if kind is not None:
                    free_kinds.remove(kind)
                    changed.add(member)
                    tracks[member] = _recoloured(tracks[member], kind, start_s, end_s, rng)
                    self.targets.append(Target(member, kind, start_s, end_s, "changes", cast_kinds[member]))
                    continue
            if how == "hides" and member not in changed:
                kind = next(k for k in free_kinds if k.shape in FULL_COVER_SHAPES)
                self.fronts.append(_hiding_track(rng, kind, tracks[member], start_s, end_s))
                self.targets.append(
                    Target(len(tracks) + len(self.fronts) - 1, kind, start_s, end_s, "hides", cast_kinds[member])
                )
            else:
                kind = free_kinds[0]
                self.fronts.append(_passing_track(rng, kind, self.side_px, start_s, end_s))
                self.targets.append(Target(len(tracks) + len(self.fronts) - 1, kind, start_s, end_s, "appears", None))
            free_kinds.remove(kind)


def _cuts(rng: np.random.Generator, length_s: int) -> tuple[float, ...]:
    num_cuts = rng.choice([0, 1, 2], p=[0.6, 0.3, 0.1])
    return tuple(sorted(float(time_s) for time_s in rng.uniform(0.2 * length_s, 0.8 * length_s, size=num_cuts)))


def _scenery(rng: np.random.Generator, from_s: float) -> Scenery:
    pans = rng.random() < 0.5
    speed_x, speed_y = rng.uniform(-14, 14, size=2) if pans else (0.0, 0.0)
    return Scenery(from_s, int(rng.integers(2**31)), float(speed_x), float(speed_y))


def _size_px(rng: np.random.Generator, side_px: int) -> int:
    return round(side_px * rng.uniform(0.22, 0.31))


def _angle_deg(rng: np.random.Generator) -> int:
    return int(rng.integers(-3, 4)) * ANGLE_STEP_DEG


def _cast_track(rng: np.random.Generator, kind: Kind, side_px: int, scenes: list[tuple[float, float, int]]) -> Track:
    """Return an object that stays, still or strolling, and is elsewhere after a cut; one in four comes or goes.

    A scene is its start and end in seconds and the ninth of the square to start in, so that the cast does not stand in
    a heap.
    """
    times, xs, ys = [], [], []
    length_s = scenes[-1][1]
    for from_s, until_s, cell in scenes:
        jitter_x, jitter_y = rng.uniform(-0.07, 0.07, size=2)
        x, y = 0.18 + 0.32 * (cell % 3) + jitter_x, 0.18 + 0.32 * (cell // 3) + jitter_y
        strolls = rng.random() < 0.5
        steps = max(2, round((until_s - from_s) / 3)) if strolls else 2
        for time_s in np.linspace(from_s, until_s - 1e-3, steps):
            times.append(float(time_s))
            xs.append(float(x))
            ys.append(float(y))
            if strolls:
                shift_x, shift_y = rng.uniform(-0.15, 0.15, size=2)
                x, y = np.clip([x + shift_x, y + shift_y], 0.08, 0.92)
    appears_s, leaves_s = 0.0, float(length_s)
    fate = rng.random()
    if fate < 0.12:
        appears_s = float(rng.uniform(0.2, 0.4) * length_s)
    elif fate < 0.24:
        leaves_s = float(rng.uniform(0.6, 0.8) * length_s)
    look = (0.0, kind, object_rgb(kind, rng))
    size_px, angle_deg = _size_px(rng, side_px), _angle_deg(rng)
    return Track((look,), size_px, angle_deg, tuple(times), tuple(xs), tuple(ys), appears_s, leaves_s)


def _block_track(rng: np.random.Generator, side_px: int, length_s: int) -> Track:
    """Return a grey block that drifts over the cast."""
    block = grey_block(rng, side_px, side_px / 128)
    xs, ys = rng.uniform(0, 1, size=3), rng.uniform(0, 1, size=3)
    times = (0.0, length_s / 2, float(length_s))
    look = (0.0, None, block.rgb)
    return Track((look,), block.size_px, 0, times, tuple(xs.tolist()), tuple(ys.tolist()), 0.0, float(length_s))


def _passing_track(rng: np.random.Generator, kind: Kind, side_px: int, start_s: float, end_s: float) -> Track:
    """Return an object that pops up, or slides in over an edge and out again."""
    size_px = _size_px(rng, side_px)
    x, y = rng.uniform(0.14, 0.86, size=2)
    drift_x, drift_y = rng.uniform(-0.12, 0.12, size=2)
    times = [start_s, end_s]
    xs, ys = [x, float(np.clip(x + drift_x, 0.1, 0.9))], [y, float(np.clip(y + drift_y, 0.1, 0.9))]
    appears_s, leaves_s = start_s, end_s
    if rng.random() < 0.5:
        # Half way over the edge at the start and at the end: from there on a third of it or more is seen.
        slide_s, outside = 0.2, 0.6 * size_px / side_px
        edge = -outside if x < 0.5 else 1 + outside
        times = [start_s - slide_s, start_s + slide_s, end_s - slide_s, end_s + slide_s]
        xs, ys = [edge, x, xs[1], edge], [y, y, ys[1], ys[1]]
        appears_s, leaves_s = times[0], times[-1]
    look = (0.0, kind, object_rgb(kind, rng))
    return Track((look,), size_px, _angle_deg(rng), tuple(times), tuple(xs), tuple(ys), appears_s, leaves_s)


def _hiding_track(rng: np.random.Generator, kind: Kind, hidden: Track, start_s: float, end_s: float) -> Track:
    """Return an object that stands before another one and goes with it."""
    times = np.linspace(start_s, end_s, 8)
    shift_x, shift_y = rng.uniform(-0.03, 0.03, size=2)
    xs = np.interp(times, hidden.times_s, hidden.xs) + shift_x
    ys = np.interp(times, hidden.times_s, hidden.ys) + shift_y
    look = (0.0, kind, object_rgb(kind, rng))
    size_px = round(hidden.size_px * rng.uniform(1.0, 1.15))
    return Track((look,), size_px, 0, tuple(times.tolist()), tuple(xs.tolist()), tuple(ys.tolist()), start_s, end_s)


def _recoloured(track: Track, kind: Kind, start_s: float, end_s: float, rng: np.random.Generator) -> Track:
    (first,) = track.looks
    return replace(track, looks=(first, (start_s, kind, object_rgb(kind, rng)), (end_s, *first[1:])))


def wrong_answers(rng: np.random.Generator, script: Script, target: Target) -> list[Kind]:
    """Choose four kinds that are nowhere in the clip, most of them near the answer.

    Two share the answer's colour or shape, one has the colour of one thing in the clip and the shape of another.
    """
    present = script.kinds()
    absent = [KINDS[index] for index in rng.permutation(len(KINDS)) if KINDS[index] not in present]
    colours, shapes = {kind.colour for kind in present}, {kind.shape for kind in present}
    wishes = (
        [kind for kind in absent if kind.colour == target.kind.colour],
        [kind for kind in absent if kind.shape == target.kind.shape],
        [kind for kind in absent if kind.colour in colours and kind.shape in shapes],
        absent,
    )
    chosen: list[Kind] = []
    for wish in wishes:
        chosen.append(next(kind for kind in (*wish, *absent) if kind not in chosen))
    return chosen
