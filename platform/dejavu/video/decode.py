"""Frames and codec grid of a video in one pass, in display order, in constant memory.

F frames of one piece, H and W pixels, P macroblocks a side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av.logging
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from dejavu.video.codec_grid import MotionBinning, SideDataBuffer
from dejavu.video.source import VideoError, attached, decoder_log, one_clear_line, open_video

_EXPORT = {
    "flags2": "+export_mvs",
    "export_side_data": "mvs+venc_params",
    "debug": "mb_type",
}
"""For H.264 alone: other decoders print tables too, which mean something else."""
_PICTURE_LETTERS = "?IPBSipb"
_H264 = "h264"
_NEW_FRAME = "New frame, type:"
_MAX_PIECE_BYTES = 2**28

_LogMessage = tuple[int, str, str]


@dataclass(frozen=True, slots=True)
class DecodedFrames:
    """Consecutive frames in display order."""

    rgb_FHWC: NDArray[np.uint8]
    codec_F4PP: NDArray[np.float32]
    """Macroblock class, motion x, motion y, quantiser."""
    seconds_F: NDArray[np.float64]
    """Presentation time as the stream gives it."""
    picture_types: str
    """One letter per frame, such as IBBBP."""
    codec_metadata: bool
    """False where the fallback (class whole, no motion, mid quantiser) stands in."""


def decode(
    path: Path,
    *,
    start: int = 0,
    count: int | None = None,
    motion_binning: MotionBinning = "destination",
    chunk_frames: int = 64,
) -> Iterator[DecodedFrames]:
    """Decode frames start .. start + count - 1 in pieces of at most `chunk_frames`.

    Safe to use from several threads, though one decodes at a time: FFmpeg's log level is process-wide, so a lock is
    held while a piece is made. It is free while the consumer works on the piece, and a reader may be left half way.

    A far segment of a transcoded file is cheap: reading starts at the key frame before it.

    Args:
        path: A transcoded mp4. Other videos are read too, as they lie in the file (not turned, not cropped).
        start: First frame wanted, counted in display order from 0.
        count: How many; None for all that follow. Fewer come where the file ends before.
        motion_binning: Which macroblock a motion vector is filed under.
        chunk_frames: Bounds the memory (very large pictures come in smaller pieces); it does not change the values.

    Raises:
        VideoError: The file is missing, damaged or no video.
        ValueError: start, count or chunk_frames is out of range.
    """
    if start < 0 or chunk_frames < 1 or (count is not None and count < 0):
        raise ValueError(
            f"segment: got start={start} count={count} chunk_frames={chunk_frames}, "
            "expected start >= 0, count >= 0 and chunk_frames >= 1; pass frame numbers"
        )
    return _pieces(path, start, count, motion_binning, chunk_frames)


def decode_all(
    path: Path, *, start: int = 0, count: int | None = None, motion_binning: MotionBinning = "destination"
) -> DecodedFrames:
    """Decode as `decode` does, into one piece; for clips that fit into memory.

    Raises:
        VideoError: As `decode`; or there is no frame in that range.
    """
    pieces = list(decode(path, start=start, count=count, motion_binning=motion_binning))
    if not pieces:
        raise VideoError(f"{path.name}: got no frame from {start} on, expected at least one; check start and count")
    return join(pieces)


def join(pieces: Sequence[DecodedFrames]) -> DecodedFrames:
    """Lay pieces, one or more, one after the other."""
    if len(pieces) == 1:
        return pieces[0]
    return DecodedFrames(
        rgb_FHWC=np.concatenate([piece.rgb_FHWC for piece in pieces]),
        codec_F4PP=np.concatenate([piece.codec_F4PP for piece in pieces]),
        seconds_F=np.concatenate([piece.seconds_F for piece in pieces]),
        picture_types="".join(piece.picture_types for piece in pieces),
        codec_metadata=all(piece.codec_metadata for piece in pieces),
    )


def _pieces(
    path: Path, start: int, count: int | None, binning: MotionBinning, chunk_frames: int
) -> Iterator[DecodedFrames]:
    with open_video(path, {"err_detect": "explode"}) as (container, stream):
        if stream.codec_context.name == _H264:
            stream.codec_context.options |= _EXPORT
        first = _seek_before(container, stream, start)
        reader = _Reader(path, container, stream, first)
        reader.skip(start - first)
        codec = stream.codec_context
        chunk = max(1, min(chunk_frames, _MAX_PIECE_BYTES // (3 * codec.width * codec.height)))
        left = count
        while left is None or left > 0:
            piece = reader.read(chunk if left is None else min(chunk, left), binning)
            if piece is None:
                return
            if left is not None:
                left -= len(piece.seconds_F)
            yield piece


def _seek_before(container: InputContainer, stream: VideoStream, start: int) -> int:
    """Move to the last key frame at or before frame `start` and return its number; 0 where that is not certain."""
    entries = stream.index_entries
    rate, time_base = stream.average_rate, stream.time_base
    if start == 0 or rate is None or time_base is None or len(entries) != stream.frames:
        return 0
    step = 1 / (rate * time_base)
    for number in range(min(start, len(entries) - 1), 0, -1):
        if entries[number].is_keyframe:
            # The index is in decoding order; a key frame's place in it is its place in display order as well, provided
            # that time runs evenly and no frame is cut away by an edit list.
            even = entries[number].timestamp - entries[0].timestamp == number * step
            if not even or stream.duration != stream.frames * step or any(entry.is_discard for entry in entries[:4]):
                return 0
            container.seek((stream.start_time or 0) + int(number * step), stream=stream)
            return number
    return 0


class _Reader:
    """One open stream, what has been decoded of it, and the log of frames not yet handed out."""

    def __init__(self, path: Path, container: InputContainer, stream: VideoStream, first: int) -> None:
        self.path = path
        self.stream = stream
        self.first = first
        self.num_decoded = 0
        self.width, self.height = stream.codec_context.width, stream.codec_context.height
        self.rows, self.cols = -(-self.height // 16), -(-self.width // 16)
        self.frames = self._decoded(container)
        self.row_texts: list[str] = []
        self.side_data = SideDataBuffer(self.rows, self.cols)

    def skip(self, count: int) -> None:
        """Decode `count` frames and drop them."""
        with one_clear_line(self.path), decoder_log(av.logging.DEBUG) as log:
            num_skipped = sum(1 for _ in islice(self.frames, count))
            self._keep_rows(log)
        del self.row_texts[: num_skipped * self.rows]

    def read(self, size: int, binning: MotionBinning) -> DecodedFrames | None:
        """Return the next frames, at most `size`; None at the end."""
        rgb_FHWC = np.empty((size, self.height, self.width, 3), np.uint8)
        seconds: list[float] = []
        letters: list[str] = []
        with one_clear_line(self.path), decoder_log(av.logging.DEBUG) as log:
            for index, frame in enumerate(islice(self.frames, size)):
                plane = frame.reformat(format="rgb24", threads=1).planes[0]
                pixels = np.frombuffer(memoryview(plane), np.uint8).reshape(self.height, plane.line_size)
                rgb_FHWC[index] = pixels[:, : 3 * self.width].reshape(self.height, self.width, 3)
                seconds.append(float("nan") if frame.time is None else frame.time)
                letters.append(_PICTURE_LETTERS[frame.pict_type])
                exported = attached(frame)
                self.side_data.add(exported.get(Type.MOTION_VECTORS), exported.get(Type.VIDEO_ENC_PARAMS))
            self._keep_rows(log)
        num_frames = len(seconds)
        if num_frames == 0:
            return None
        texts = self.row_texts[: num_frames * self.rows]
        del self.row_texts[: num_frames * self.rows]
        try:
            codec_F4PP = self.side_data.take(texts, binning)
        except ValueError as error:
            raise VideoError(f"{self.path.name}: {error}") from error
        return DecodedFrames(rgb_FHWC[:num_frames], codec_F4PP, np.array(seconds), "".join(letters), bool(texts))

    def _decoded(self, container: InputContainer) -> Iterator[VideoFrame]:
        """Decode packet by packet, so that the log never runs more than one packet ahead of the frames."""
        for packet in container.demux(self.stream):
            if packet.is_corrupt:
                raise self._damaged("a packet cut short")
            for frame in packet.decode():
                if frame.is_corrupt:
                    raise self._damaged("a picture that the decoder marks as corrupt")
                if (frame.width, frame.height) != (self.width, self.height):
                    raise VideoError(
                        f"{self.path.name}: got a picture of {frame.width}x{frame.height} after "
                        f"{self.width}x{self.height}, expected one size; transcode the file first"
                    )
                if self.num_decoded == 0 and self.first > 0:
                    self._check_landing(frame)
                self.num_decoded += 1
                yield frame
        num_expected = self.stream.frames - self.first
        if self.num_decoded < num_expected:
            num_cut = sum(entry.is_discard for entry in self.stream.index_entries)
            if self.num_decoded < num_expected - num_cut:
                raise self._damaged(f"{self.num_decoded} of {num_expected} pictures")

    def _check_landing(self, frame: VideoFrame) -> None:
        """Make sure that the frame after a seek is the one that was meant."""
        rate = self.stream.average_rate
        expected = None if rate is None else Fraction(self.first) / rate
        time_base, start = frame.time_base, self.stream.start_time or 0
        if frame.pts is None or time_base is None or (frame.pts - start) * time_base != expected:
            raise VideoError(
                f"{self.path.name}: got a frame at {frame.time} s after seeking, expected {expected} s; "
                "transcode the file first"
            )

    def _keep_rows(self, log: list[_LogMessage]) -> None:
        """Keep the macroblock rows of the log, and fail on what the decoder reports as an error."""
        for index, (level, _, text) in enumerate(log):
            if text.startswith(_NEW_FRAME):  # then a line of x positions, then the rows
                self.row_texts.extend([row for _, _, row in log[index + 2 : index + 2 + self.rows]])
            elif level <= av.logging.ERROR:
                raise self._damaged(" ".join(text.split()))

    def _damaged(self, what: str) -> VideoError:
        return VideoError(
            f"{self.path.name}: got a damaged stream ({what}), expected an intact video; make or fetch the file again"
        )
