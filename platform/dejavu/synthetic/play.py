"""Play a script: its frames, and when each target is to be seen."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dejavu.synthetic.script import SAMPLING_PERIOD_S, VISIBLE_SHARE, Script
from dejavu.synthetic.world import Drawing, Sprite, draw, noise_bank, own_pixels, texture, visible_fractions


def draw_frames(script: Script) -> Iterator[Drawing]:
    """Draw a clip frame by frame."""
    height, width = script.height_px, script.width_px
    rng = np.random.default_rng(script.noise_seed)
    noise = noise_bank(rng, height, width) * np.float32(script.noise)
    canvas, scenery = _canvas(script, 0), script.sceneries[0]
    for time_s in frame_times(script):
        current = [place for place in script.sceneries if place.from_s <= time_s][-1]
        if current != scenery:
            canvas, scenery = _canvas(script, script.sceneries.index(current)), current
        top = _bounce(scenery.pan_y_px_s * (time_s - scenery.from_s), canvas.shape[0] - height)
        left = _bounce(scenery.pan_x_px_s * (time_s - scenery.from_s), canvas.shape[1] - width)
        row, column = rng.integers(0, height), rng.integers(0, width)
        mean, amplitude, period_s, phase = script.light
        yield draw(
            sprites_at(script, time_s)[0],
            canvas[top : top + height, left : left + width],
            mean + amplitude * float(np.sin(2 * np.pi * time_s / period_s + phase)),
            noise[row : row + height, column : column + width],
        )


def seen_spans(script: Script) -> list[list[tuple[float, float]]]:
    """Return, per target, the spans in seconds in which at least VISIBLE_SHARE of it is seen in the centre square."""
    side = script.side_px
    top, left = (script.height_px - side) // 2, (script.width_px - side) // 2
    seen = np.zeros((len(script.targets), script.num_frames), dtype=bool)
    for frame, time_s in enumerate(frame_times(script)):
        sprites, tracks = sprites_at(script, time_s)
        owner = own_pixels(sprites, script.height_px, script.width_px)[top : top + side, left : left + side]
        share = dict(zip(tracks, visible_fractions(sprites, owner), strict=True))
        for index, target in enumerate(script.targets):
            if script.tracks[target.track].look(time_s)[0] == target.kind:
                seen[index, frame] = share.get(target.track, 0.0) >= VISIBLE_SHARE
    return [_runs(row, script.fps) for row in seen]


def sprites_at(script: Script, time_s: float) -> tuple[list[Sprite], list[int]]:
    """Return what is there at a time, from back to front, and the track of each."""
    side = script.side_px
    top, left = (script.height_px - side) / 2, (script.width_px - side) / 2
    sprites, tracks = [], []
    for index, track in enumerate(script.tracks):
        if not track.appears_s <= time_s < track.leaves_s:
            continue
        kind, rgb = track.look(time_s)
        x = left + side * float(np.interp(time_s, track.times_s, track.xs))
        y = top + side * float(np.interp(time_s, track.times_s, track.ys))
        sprites.append(Sprite("block" if kind is None else kind.shape, rgb, track.size_px, track.angle_deg, x, y))
        tracks.append(index)
    return sprites, tracks


def frame_times(script: Script) -> list[float]:
    """List the seconds of the source frames."""
    return [frame / script.fps for frame in range(script.num_frames)]


def _runs(seen: NDArray[np.bool_], fps: int) -> list[tuple[float, float]]:
    """Join frames to spans, over gaps that are shorter than one sampling period."""
    spans: list[tuple[float, float]] = []
    for frame in np.flatnonzero(seen):
        start_s, end_s = float(frame / fps), float((frame + 1) / fps)
        if spans and start_s - spans[-1][1] < SAMPLING_PERIOD_S:
            spans[-1] = (spans[-1][0], end_s)
        else:
            spans.append((start_s, end_s))
    return spans


def _canvas(script: Script, index: int) -> NDArray[np.float32]:
    """Return a background with room to pan in."""
    rng = np.random.default_rng(script.sceneries[index].seed)
    return texture(rng, script.height_px * 3 // 2, script.width_px * 3 // 2)


def _bounce(distance_px: float, room_px: int) -> int:
    """Walk to and fro between 0 and room_px."""
    return round(room_px - abs(abs(distance_px) % (2 * room_px) - room_px))
