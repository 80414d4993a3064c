"""Draw square frames from a video at a constant rate, by the timestamps of the stream."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av.logging
import numpy as np
from av.container import InputContainer
from av.filter import Graph
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from dejavu.video.source import VideoError, attached, decoder_log, one_clear_line, open_video

MAX_GAP_S = 3600
MAX_DURATION_S = 48 * 3600
"""Beyond these a timestamp is taken for damage: it would be filled with repeated frames."""


def sample(path: Path, *, frame_px: int, rate: Fraction, view: float = 1.0) -> Iterator[VideoFrame]:
    """Yield frames of frame_px a side, yuv420p, turned upright, one every 1 / rate seconds from the first frame on.

    They show the centre square of `view` times the shorter side.

    Frame n shows what was on screen just before (n + 1/2) / rate seconds, as FFmpeg's `fps` filter chooses it;
    at least one frame comes of any video. A frame that lasts is yielded again: the same object.

    Raises:
        VideoError: The file is missing, damaged, cut short or no video, or its timestamps are absurd.
    """
    with open_video(path) as (container, stream), one_clear_line(path):
        shape = _Squarer(frame_px, view)
        shown: VideoFrame | None = None
        square: VideoFrame | None = None
        start = end = Fraction(0)
        num_drawn = 0
        for frame, time, duration in _timed(path, container, stream):
            if shown is None:
                start = time
            if time - start > MAX_DURATION_S or (shown is not None and time - end > MAX_GAP_S):
                raise VideoError(
                    f"{path.name}: got a frame at {float(time - start):.0f} s after {float(end - start):.0f} s, "
                    f"expected at most {MAX_GAP_S} s between frames and {MAX_DURATION_S} s in all; "
                    "check the file's timestamps"
                )
            due = _nearest((time - start) * rate)
            if shown is not None and num_drawn < due:
                square = shape(shown)
                for _ in range(num_drawn, due):
                    yield square
                num_drawn = due
            shown, end = frame, max(end, time + duration)
        if shown is None:
            raise VideoError(f"{path.name}: got no picture that can be decoded, expected at least one; check the file")
        _check_complete(path, container, stream, float(max(end, end - start)))
        num_frames = max(_nearest((end - start) * rate), 1)
        if num_drawn < num_frames:
            square = shape(shown)
            for _ in range(num_drawn, num_frames):
                yield square


def _nearest(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))


def _timed(
    path: Path, container: InputContainer, stream: VideoStream
) -> Iterator[tuple[VideoFrame, Fraction, Fraction]]:
    """Yield each frame with its time and duration in seconds; where the stream tells none, the average rate does."""
    usual = 1 / Fraction(stream.average_rate or 25)
    time = None
    for packet in container.demux(stream):
        with decoder_log(av.logging.INFO) as log:
            frames = packet.decode()
        concealed = next((" ".join(text.split()) for _, _, text in log if text.startswith("concealing")), None)
        if concealed or any(frame.is_corrupt for frame in frames):
            raise VideoError(
                f"{path.name}: got a damaged picture ({concealed or 'marked as corrupt'}), expected an intact video; "
                "fetch the file again or leave it out"
            )
        for frame in frames:
            time_base = frame.time_base or stream.time_base
            if frame.pts is not None and time_base is not None:
                time = frame.pts * time_base
            else:
                time = Fraction(0) if time is None else time + usual
            duration = frame.duration * time_base if frame.duration and time_base is not None else usual
            yield frame, time, duration


def _check_complete(path: Path, container: InputContainer, stream: VideoStream, decoded_s: float) -> None:
    """Compare with the duration that the file declares: players do not care, but a cut-off download shows here.

    Some containers count it from zero and others from the first frame, so decoded_s is the longer of the two.
    """
    if stream.duration is not None and stream.time_base is not None:
        declared_s = float(stream.duration * stream.time_base)
    elif len(container.streams) == 1 and container.duration is not None:
        declared_s = container.duration / 1e6
    else:
        return
    if decoded_s < declared_s - max(1.0, 0.05 * declared_s):
        raise VideoError(
            f"{path.name}: got {decoded_s:.1f} s of pictures, expected the {declared_s:.1f} s that the file declares; "
            "it seems cut short: fetch it again"
        )


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
    matrix = attached(frame).get(Type.DISPLAYMATRIX)
    if matrix is None:
        return ()
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    swapped = abs(b) + abs(c) > abs(a) + abs(d)
    across, down = (c, b) if swapped else (a, d)
    filters = ["transpose=cclock_flip"] if swapped else []  # FFmpeg's name for x and y exchanged
    filters += ["hflip"] if across < 0 else []
    filters += ["vflip"] if down < 0 else []
    return tuple(filters)
