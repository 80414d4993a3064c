"""The film in a source file: which of its streams that is, how long the file says it lasts, how its pictures lie."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av.buffer import Buffer
from av.container import InputContainer
from av.filter import Graph
from av.sidedata.sidedata import Type
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from dejavu.video.source import MAX_PIXELS, VideoError, attached, demux, is_readable, open_video

SHORT_S = 1.0
"""Declared durations are not exact: what is missing beyond this is missing."""
SAME_S = 0.001
"""Durations of two streams that differ by less are one for all."""
_UNNAMED = tuple(sorted(set(range(64)) - {kind.value for kind in Type}))
"""Kinds of side data that PyAV has no name for, FFmpeg's numbers."""


@dataclass(frozen=True, slots=True)
class Film:
    """An open file and its film."""

    container: InputContainer
    stream: VideoStream
    num_streams: int
    """Of video, cover pictures left out."""


@contextmanager
def open_film(path: Path) -> Iterator[Film]:
    """Open the video stream that FFmpeg itself takes for the best one: previews and thumbnails come along as others.

    Raises:
        VideoError: As `open_video`; or a picture of the film is above MAX_PIXELS.
    """
    with open_video(path) as (container, first):
        streams = [one for one in container.streams.video if not one.disposition & Disposition.attached_pic]
        best = container.streams.best("video")
        film = next((one for one in streams if best is not None and one.index == best.index), first)
        if not is_readable(film):
            film = first
        codec = film.codec_context
        if not 0 < codec.width * codec.height <= MAX_PIXELS:
            raise VideoError(
                f"{path.name}: got pictures of {codec.width}x{codec.height} pixels, expected 1..{MAX_PIXELS} pixels; "
                "check the file"
            )
        codec.thread_count = 1
        codec.options = {"max_pixels": str(MAX_PIXELS)}
        yield Film(container, film, len(streams))


def num_cut_off(path: Path, film: Film, end: int) -> int:
    """Return how many of the packets that the film's index or header names lie behind the end of the file.

    The end is when the last packet was that could be read, by when it is decoded, in the film's time base.
    """
    num_bytes = path.stat().st_size
    behind = sum(entry.pos >= num_bytes for entry in film.stream.index_entries)
    # Of an AVI that is cut off, FFmpeg reckons the duration from what is left; its header says how many there were. Its
    # time base is a picture, so that those count that were left out because they are as the one before.
    declared = film.stream.frames if film.container.format.name == "avi" and _is_cut_riff(path, num_bytes) else 0
    return max(behind, declared - end)


def _is_cut_riff(path: Path, num_bytes: int) -> bool:
    with path.open("rb") as file:
        head = file.read(8)
    return head[:4] == b"RIFF" and int.from_bytes(head[4:], "little") + len(head) > num_bytes


def missing_seconds(path: Path, film: Film, origin: Fraction | None, span: tuple[Fraction, Fraction]) -> float:
    """Return how much is missing at the film's end: players do not care, but a cut-off download shows here.

    Some containers count their duration from zero and others from the first picture; the longer one of both counts.
    Where one duration stands for all streams, the film may end before the sound does; then it is whole if any stream
    reaches the end. The span is of the first picture and the end of the last one, in seconds from the container's
    start, which is `origin` where it tells one.
    """
    start, end = span
    seen_s = float(max(end + (origin or 0), end, end - start))
    own_s = _own_duration(film)
    total_s = None if film.container.duration is None else film.container.duration / av.time_base
    if own_s is not None:
        missing_s = own_s - seen_s
    elif total_s is not None and total_s - seen_s > SHORT_S:
        missing_s = total_s - max(seen_s, _last_packet_end(path))
    else:
        return 0.0
    return missing_s if missing_s > SHORT_S else 0.0


def _own_duration(film: Film) -> float | None:
    """Return what the container declares of the film alone; None where it has one duration for all streams."""
    stream = film.stream
    if stream.duration is None or stream.time_base is None:
        return _tagged_duration(film)
    own_s = float(stream.duration * stream.time_base)
    others = [
        float(one.duration * one.time_base)
        for one in film.container.streams
        if one.index != stream.index and one.duration is not None and one.time_base is not None
    ]
    return None if others and all(abs(own_s - other_s) < SAME_S for other_s in others) else own_s


def _tagged_duration(film: Film) -> float | None:
    """Return what Matroska's muxers write of each stream in a tag, unless the file has been shortened since."""
    tag = re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", film.stream.metadata.get("DURATION", ""))
    if tag is None or film.container.duration is None:
        return None
    hours, minutes, seconds = map(float, tag.groups())
    tagged_s = 3600 * hours + 60 * minutes + seconds
    return tagged_s if tagged_s <= film.container.duration / av.time_base + SHORT_S else None


def _last_packet_end(path: Path) -> float:
    """Return when the last packet of any stream ends, in seconds as the container counts them."""
    end_s = 0.0
    with open_video(path) as (container, _), suppress(av.FFmpegError):
        for packet in demux(container):
            time = packet.dts if packet.pts is None else packet.pts
            if time is not None and packet.time_base is not None:
                end_s = max(end_s, float((time + (packet.duration or 0)) * packet.time_base))
    return end_s


def declared_seconds(path: Path) -> float | None:
    """Return how long a file says that it lasts; None where it says nothing that can be, or is no video."""
    with suppress(VideoError), open_video(path) as (container, _):
        seconds = float((container.duration or 0) / av.time_base)
        return seconds if seconds > 0 else None
    return None


def display_matrix(frame: VideoFrame) -> Buffer | None:
    """Return how a picture is to be turned, whatever else is attached to it."""
    try:
        return attached(frame).get(Type.DISPLAYMATRIX)
    except ValueError:  # PyAV refuses all side data where it has no name for one of them
        return attached(_with_named_alone(frame)).get(Type.DISPLAYMATRIX)


def filter_graph(frame: VideoFrame, filters: Iterable[str]) -> Graph:
    """Chain filters, each as FFmpeg writes it (`name=arguments`), for pictures that are laid out like this one."""
    graph = Graph()
    graph.threads = 1
    source = graph.add(
        "buffer",
        f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base=1/1000:pixel_aspect=1/1"
        f":colorspace={int(frame.colorspace)}:range={int(frame.color_range)}",
    )
    graph.link_nodes(source, *(graph.add(*one.split("=", 1)) for one in filters), graph.add("buffersink")).configure()
    return graph


def _with_named_alone(frame: VideoFrame) -> VideoFrame:
    graph = filter_graph(frame, [f"sidedata=mode=delete:type={kind}" for kind in _UNNAMED])
    graph.vpush(frame)
    return graph.vpull()
