"""Opening a video file, and saying in one line what is wrong with it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import av
import av.logging
from av.buffer import Buffer
from av.container import InputContainer
from av.packet import Packet
from av.sidedata.sidedata import SideDataContainer, Type
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

MAX_PIXELS = 8192 * 8192
"""Larger pictures are refused: a damaged header can ask for any size."""

_PLAYLISTS = frozenset({"hls", "concat", "dash", "imf", "applehttp"})
"""Text formats that name other files; following them would read outside the given file."""

_LOG_LOCK = threading.Lock()


class VideoError(ValueError):
    """A video file cannot be used. One line: `<subject>: got X, expected Y; <next step>`."""

    def __init__(self, line: str) -> None:
        """Keep it one line, whatever the name of the file holds."""
        super().__init__(" ".join(line.splitlines()))


@contextmanager
def one_clear_line(path: Path) -> Iterator[None]:
    """Turn whatever FFmpeg raises while reading `path` into a VideoError.

    Raises:
        VideoError: FFmpeg could not read or decode the file.
    """
    try:
        yield
    except av.FFmpegError as error:
        reason = (error.strerror or str(error)).splitlines()[0]
        raise VideoError(
            f"{path.name}: got a file that FFmpeg cannot read ({reason}), expected an intact video; "
            "check that the download or copy was complete"
        ) from error


@contextmanager
def open_video(
    path: Path, decoder_options: dict[str, str] | None = None
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open the first real video stream of a file; cover pictures of audio files are none.

    One decoding thread, so that frames and FFmpeg's log messages come in one order, on the calling thread. The file's
    name may hold any character.

    Raises:
        VideoError: The file is missing, empty, no video, has no video stream or a picture above MAX_PIXELS.
    """
    if not path.is_file():
        raise VideoError(f"{path.name}: got no such file, expected a video file; check the path {path}")
    if path.stat().st_size == 0:
        raise VideoError(f"{path.name}: got 0 bytes, expected a video file; fetch it again")
    # `file:` keeps a colon in a name from being read as a protocol.
    with one_clear_line(path):
        container = av.open(f"file:{path}", "r", options={"protocol_whitelist": "file"}, metadata_errors="replace")
    with container:
        if container.format.name in _PLAYLISTS:
            raise VideoError(
                f"{path.name}: got a {container.format.name} playlist, expected a video file; pass the file it names"
            )
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            raise VideoError(
                f"{path.name}: got no video stream ({len(container.streams)} other), expected one; leave the file out"
            )
        # One that nothing is known of, such as a channel that never sent a picture, is not the film.
        stream = next(filter(is_readable, streams), streams[0])
        codec = stream.codec_context
        if codec is None:
            raise VideoError(
                f"{path.name}: got a codec that this FFmpeg cannot decode, expected a known one; convert the file"
            )
        _check_size(path, codec.width, codec.height)
        codec.thread_count = 1
        codec.options = {"max_pixels": str(MAX_PIXELS), **(decoder_options or {})}
        yield container, stream


@contextmanager
def decoder_log(level: int) -> Iterator[list[tuple[int, str, str]]]:
    """Catch FFmpeg's messages (level, context, text) of this thread, on which the single-threaded decoder runs.

    The level is process-wide, so a lock is held meanwhile; keep the block short and never yield a result from within.

    Args:
        level: The most talkative level wanted, such as `av.logging.DEBUG`. The one found is put back.
    """
    with _LOG_LOCK:
        before = av.logging.get_level()
        # Else PyAV keeps back what repeats, and tells of it when the next message comes: of another file, perhaps.
        av.logging.set_skip_repeated(False)
        with av.logging.Capture(local=True) as messages:
            av.logging.set_level(level)
            try:
                yield messages
            finally:
                av.logging.set_level(before)


def demux(container: InputContainer, *streams: VideoStream) -> Iterator[Packet[Any]]:
    """Yield packets of some streams, or of all, to the end of the file.

    PyAV raises at a packet of a stream that begins in the middle of the file, which it does not know of; the packets
    behind it are read all the same.
    """
    while True:
        try:
            yield from container.demux(*streams)
        except IndexError:
            continue
        return


def is_readable(stream: VideoStream) -> bool:
    """Tell whether there is a decoder for a stream, and pictures of some size."""
    codec = stream.codec_context
    return codec is not None and codec.width > 0 and codec.height > 0


def attached(frame: VideoFrame) -> Mapping[Type, Buffer]:
    """Return what the decoder attached to a frame.

    PyAV's `frame.side_data` says the same, but frame and container then hold each other until the garbage collector
    comes by: memory grows meanwhile, and the decoder must find a fresh buffer for each picture.
    """
    return cast(Mapping[Type, Buffer], SideDataContainer(frame))  # type: ignore[call-arg]  # PyAV's stub has no __init__


def _check_size(path: Path, width: int, height: int) -> None:
    if width < 1 or height < 1 or width * height > MAX_PIXELS:
        raise VideoError(
            f"{path.name}: got pictures of {width}x{height} pixels, expected 1..{MAX_PIXELS} pixels; check the file"
        )
