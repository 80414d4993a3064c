"""Draw square frames from a video at a constant rate, by a player's clock."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path

import av
import numpy as np
from av.filter import Graph
from av.video.frame import VideoFrame

from dejavu.video.clock import Clock
from dejavu.video.film import Film, display_matrix, missing_seconds, num_cut_off, open_film
from dejavu.video.pictures import Picture, Pictures
from dejavu.video.source import VideoError, one_clear_line

MAX_DURATION_S = 48 * 3600
"""Beyond this a duration is taken for damage: it would be filled with repeated frames."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Leniency:
    """What is made good in a video that is not as it should be."""

    max_gap_s: float
    """The longest gap between two pictures that is filled; beyond it the clock has jumped."""
    conceals: bool
    """Whether damaged and missing pictures are used as the decoder leaves them."""
    max_damaged_share: float
    """Share of pictures, 0..1, up to which that is done."""

    def __str__(self) -> str:
        """Return what is expected of a video's pictures."""
        return f"at most {self.max_damaged_share:.3g} of them (--max-damaged-share)" if self.conceals else "none"

    def bears(self, damaged_share: float) -> bool:
        """Tell whether a video of which this share of pictures is damaged or missing is used."""
        return damaged_share <= (self.max_damaged_share if self.conceals else 0.0)


@dataclass(slots=True)
class Sampler:
    """Draws the frames of one video, and then knows what was wrong with it."""

    path: Path
    frame_px: int
    rate: Fraction
    leniency: Leniency
    view: float = 1.0
    first: int = field(init=False, default=0)
    """Number of the first frame: those before it would show nothing, for pictures begin late."""
    num_drawn: int = field(init=False, default=0)
    """Frames, those before the first one not among them."""
    num_damaged: int = field(init=False, default=0)
    num_missing: int = field(init=False, default=0)
    """Pictures at the end that the file declares and has not."""
    damaged_share: float = field(init=False, default=0.0)
    """Of pictures, missing ones among them."""
    concealed: list[int] = field(init=False, default_factory=list)
    """Frames that show what was not recorded, numbered from the first one drawn."""
    remarks: list[str] = field(init=False, default_factory=list)
    """What a person should know, a phrase each; empty for most videos."""

    def frames(self) -> Iterator[VideoFrame]:
        """Yield frames of frame_px a side, yuv420p, turned upright, one every 1 / rate seconds.

        They show the centre square of `view` times the shorter side.

        Frame n shows what was on screen just before (n + 1/2) / rate seconds from the container's start, as FFmpeg's
        `fps` filter chooses it; at least one frame comes of any video. A frame that lasts is yielded again: the same
        object.

        Raises:
            VideoError: The file is missing, too damaged, cut short or no video, or lasts absurdly long.
        """
        with open_film(self.path) as film, one_clear_line(self.path):
            if film.num_streams > 1:
                stream, codec = film.stream, film.stream.codec_context
                what = f"the one of {codec.width}x{codec.height} px, stream {stream.index}, is taken"
                self.remarks.append(f"{film.num_streams} video streams: {what}")
            pictures = Pictures(self.path, film, conceals=self.leniency.conceals)
            origin = film.container.start_time
            clock = Clock(
                None if origin is None else Fraction(origin, av.time_base),
                pictures.usual,
                Fraction(self.leniency.max_gap_s),
            )
            shape = _Squarer(self.frame_px, self.view)
            shown: Picture | None = None
            start = end = Fraction(0)
            for picture, following in pairwise(chain(pictures, [None])):
                assert picture is not None
                time = clock.place(picture.told, picture.lasts, following.told if following else None)
                if shown is None:
                    start, self.first = time, _nearest(time * self.rate)
                end = time + picture.lasts
                if end - start > MAX_DURATION_S:
                    raise VideoError(
                        f"{self.path.name}: got pictures of {float(end - start):.0f} s, expected at most "
                        f"{MAX_DURATION_S} s; check the file's timestamps"
                    )
                due = _nearest(time * self.rate) - self.first
                if shown is not None and shown.frame is not None and self.num_drawn < due:
                    yield from self._repeat(
                        shape(shown.frame), due, shown.is_sound and shown.num_lost == picture.num_lost
                    )
                if shown is None or picture.frame is not None:
                    shown = picture
            if shown is None or shown.frame is None:
                why = f" ({pictures.reason})" if pictures.reason else ""
                raise VideoError(
                    f"{self.path.name}: got no picture that can be decoded{why}, expected at least one; check the file"
                )
            self._judge(film, pictures, clock, (start, end + (pictures.num_lost - shown.num_lost) * pictures.usual))
            num_frames = max(_nearest(end * self.rate) - self.first, 1)
            if self.num_drawn < num_frames:
                yield from self._repeat(shape(shown.frame), num_frames, shown.is_sound)

    def _repeat(self, square: VideoFrame, until: int, is_sound: bool) -> Iterator[VideoFrame]:
        if not is_sound:
            self.concealed += range(self.num_drawn, until)
        while self.num_drawn < until:
            self.num_drawn += 1
            yield square

    def _judge(self, film: Film, pictures: Pictures, clock: Clock, span: tuple[Fraction, Fraction]) -> None:
        """Say what was wrong with a video, or refuse it."""
        # FFmpeg reckons the duration from the first and last timestamps, where the container tells none.
        start, end = span[0], span[1] + pictures.delay_s  # which containers count in
        missing_s = 0.0 if clock.breaks else missing_seconds(self.path, film, clock.origin, (start, end))
        self.num_damaged = pictures.num_damaged
        self.num_missing = max(num_cut_off(self.path, film, pictures.end), math.ceil(missing_s / pictures.usual))
        num_pictures = pictures.num_pictures + self.num_missing
        self.damaged_share = (self.num_damaged + self.num_missing) / num_pictures
        if not self.leniency.bears(self.damaged_share):
            missing = "; it seems cut short" if self.num_missing else ""
            reason = f" ({pictures.reason})" if pictures.reason else ""
            raise VideoError(
                f"{self.path.name}: got {self.num_damaged} damaged{reason} and {self.num_missing} missing of "
                f"{num_pictures} pictures{missing}, expected {self.leniency}; fetch the file again or leave it out"
            )
        self.remarks += clock.remarks


def _nearest(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))


class _Squarer:
    """Turns, crops and scales; builds its filters anew when the pictures change."""

    def __init__(self, frame_px: int, view: float) -> None:
        self.frame_px, self.view = frame_px, view
        self.key: tuple[object, ...] | None = None
        self.graph: Graph | None = None

    def __call__(self, frame: VideoFrame) -> VideoFrame:
        turn = _turning(frame)
        key = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range, turn)
        if self.graph is None or key != self.key:
            self.key, self.graph = key, self._build(frame, turn)
        self.graph.vpush(frame)
        return self.graph.vpull()

    def _build(self, frame: VideoFrame, turn: tuple[str, ...]) -> Graph:
        graph = Graph()
        graph.threads = 1
        source = graph.add(
            "buffer",
            f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base=1/1000:pixel_aspect=1/1"
            f":colorspace={int(frame.colorspace)}:range={int(frame.color_range)}",
        )
        shorter = min(frame.width, frame.height)
        side = max(round(self.view * shorter), min(shorter, 2))  # chroma has no half pixels
        chain = [source, *(graph.add(*f.split("=")) for f in turn)]
        chain.append(graph.add("crop", f"{side}:{side}"))
        chain.append(graph.add("scale", f"{self.frame_px}:{self.frame_px}:flags=bicubic:out_range=limited"))
        chain.append(graph.add("format", "yuv420p"))
        chain.append(graph.add("buffersink"))
        graph.link_nodes(*chain)
        graph.configure()
        return graph


def _turning(frame: VideoFrame) -> tuple[str, ...]:
    """Return the filters that set a picture upright, from its display matrix (to the nearest quarter turn).

    The matrix takes a stored (x, y) to the shown (a x + c y, b x + d y).
    """
    matrix = display_matrix(frame)
    if matrix is None:
        return ()
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    swapped = abs(b) + abs(c) > abs(a) + abs(d)
    across, down = (c, b) if swapped else (a, d)
    filters = ["transpose=cclock_flip"] if swapped else []  # FFmpeg's name for x and y exchanged
    filters += ["hflip"] if across < 0 else []
    filters += ["vflip"] if down < 0 else []
    return tuple(filters)
