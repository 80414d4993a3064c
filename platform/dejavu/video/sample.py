"""Draw square frames from a video at a constant rate, by a player's clock."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import av
import numpy as np
import tyro
from av.filter import Graph
from av.video.frame import VideoFrame

from dejavu.video.clock import Clock
from dejavu.video.film import Film, display_matrix, filter_graph, missing_seconds, num_cut_off, open_film
from dejavu.video.pictures import Picture, Pictures
from dejavu.video.source import VideoError, one_clear_line

MAX_GAP_S = 60.0
"""Unless another bound is given."""
Damaged = Literal["refuse", "conceal"]
_PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")
MAX_DURATION_S = 48 * 3600
"""Beyond this a duration is taken for damage: it would be filled with repeated frames."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TranscodeConfig:
    """How videos are transcoded. With the backbone's patches, this decides the bytes of a transcoded video."""

    fps: float = 2.0
    """Constant frame rate in frames per second, at most 120."""
    crf: float = 22.0
    """Quality of x264 (CRF), 0 (lossless) to 51 (worst)."""
    preset: str = "slow"
    """Preset of x264: how much effort it puts into compression."""
    key_frame_interval: int = 250
    """Number of frames between key frames: the most that is decoded before a segment far into a clip."""
    max_gap_s: float = MAX_GAP_S
    """Maximum gap between two pictures, in seconds, that is filled with the first; longer ones count as clock jumps."""
    damaged: Annotated[Damaged, tyro.conf.arg(aliases=["--damaged"])] = "conceal"
    """What is done with a damaged video: `refuse` it, or use it as the decoder repairs it (`conceal`)."""
    max_damaged_share: Annotated[float, tyro.conf.arg(aliases=["--max-damaged-share"])] = 0.02
    """Maximum share of damaged or missing pictures, 0..1; a video with more is refused in any case."""

    def __post_init__(self) -> None:
        if not 0 < self.fps <= 120:
            raise ValueError(f"fps: got {self.fps}, expected more than 0 and at most 120; the published value is 2")
        if not 0 <= self.crf <= 51:
            raise ValueError(f"crf: got {self.crf}, expected 0..51; the published value is 22")
        if self.preset not in _PRESETS:
            raise ValueError(f"preset: got {self.preset!r}, expected one of {', '.join(_PRESETS)}; pass one of them")
        if self.key_frame_interval < 1:
            raise ValueError(f"key_frame_interval: got {self.key_frame_interval}, expected at least 1; pass 250")
        if not 0 < self.max_gap_s < math.inf:
            raise ValueError(f"max_gap_s: got {self.max_gap_s}, expected more than 0 s; 60 is the default")
        if self.damaged not in get_args(Damaged):
            raise ValueError(f"damaged: got {self.damaged!r}, expected refuse or conceal; pass one of them")
        if not 0 <= self.max_damaged_share <= 1:
            raise ValueError(f"max_damaged_share: got {self.max_damaged_share}, expected 0..1; 0.02 is the default")

    @property
    def rate(self) -> Fraction:
        """Frames per second as the container stores them."""
        return Fraction(self.fps).limit_denominator(1001)

    def bears(self, damaged_share: float) -> bool:
        """Tell whether a video of which this share of pictures is damaged or missing is used."""
        return damaged_share <= (self.max_damaged_share if self.damaged == "conceal" else 0.0)

    def shaping(self) -> dict[str, Any]:
        """Return what decides the bytes of a video that can be used, for its identity.

        Whether a damaged one can be used is asked whenever its record is read. A gap's bound goes without saying where
        it is the default, so that stores from before it was a setting keep their names.
        """
        named = {name: value for name, value in asdict(self).items() if name not in ("damaged", "max_damaged_share")}
        if self.max_gap_s == MAX_GAP_S:
            del named["max_gap_s"]
        return named


@dataclass(slots=True)
class Sampler:
    """Draws the frames of one video, and then knows what was wrong with it."""

    path: Path
    frame_px: int
    config: TranscodeConfig
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
        rate = self.config.rate
        with open_film(self.path) as film, one_clear_line(self.path):
            if film.num_streams > 1:
                stream, codec = film.stream, film.stream.codec_context
                what = f"the one of {codec.width}x{codec.height} px, stream {stream.index}, is taken"
                self.remarks.append(f"{film.num_streams} video streams: {what}")
            pictures = Pictures(self.path, film, conceals=self.config.damaged == "conceal")
            origin = film.container.start_time
            clock = Clock(
                None if origin is None else Fraction(origin, av.time_base),
                pictures.usual,
                Fraction(self.config.max_gap_s),
            )
            shape = _Squarer(self.frame_px, self.view)
            shown: Picture | None = None
            start = end = Fraction(0)
            for picture, following in pairwise(chain(pictures, [None])):
                assert picture is not None
                time = clock.place(picture.told, picture.lasts, following.told if following else None)
                if shown is None:
                    start, self.first = time, _nearest(time * rate)
                end = time + picture.lasts
                if end - start > MAX_DURATION_S:
                    raise VideoError(
                        f"{self.path.name}: got pictures of {float(end - start):.0f} s, expected at most "
                        f"{MAX_DURATION_S} s; check the file's timestamps"
                    )
                due = _nearest(time * rate) - self.first
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
            num_frames = max(_nearest(end * rate) - self.first, 1)
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
        if not self.config.bears(self.damaged_share):
            share = f"at most {self.config.max_damaged_share:.3g} of them (--max-damaged-share)"
            borne = share if self.config.damaged == "conceal" else "none"
            missing = "; it seems cut short" if self.num_missing else ""
            reason = f" ({pictures.reason})" if pictures.reason else ""
            raise VideoError(
                f"{self.path.name}: got {self.num_damaged} damaged{reason} and {self.num_missing} missing of "
                f"{num_pictures} pictures{missing}, expected {borne}; fetch the file again or leave it out"
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
        shorter = min(frame.width, frame.height)
        side = max(round(self.view * shorter), min(shorter, 2))  # chroma has no half pixels
        scale = f"scale={self.frame_px}:{self.frame_px}:flags=bicubic:out_range=limited"
        return filter_graph(frame, (*turn, f"crop={side}:{side}", scale, "format=yuv420p"))


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
