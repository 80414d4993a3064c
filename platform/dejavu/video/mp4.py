"""Transcode: any video to a small H.264 mp4 whose macroblocks are the patches of the backbone.

Settings (docs/methods.md): constant frame rate, centre square of min(width, height) pixels (less where the backbone's
image processor sees less), one macroblock per patch, three B-frames in a fixed pattern, no scene-cut key frames, cheap
motion search, no sound.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import av

from dejavu.records import to_ranges
from dejavu.video.decode import decode
from dejavu.video.sample import Sampler, TranscodeConfig
from dejavu.video.source import VideoError, one_clear_line, open_video

__all__ = ["Mp4Info", "TranscodeConfig", "VideoError", "probe", "transcode"]

_X264 = "bframes=3:b-adapt=0:scenecut=0:subme=0:me=dia:ref=2:cpu-independent=1"
"""Published, except the last: without it x264's macroblock tree gives other bytes from run to run at 224 pixels."""


@dataclass(frozen=True, slots=True)
class Mp4Info:
    """What lies in a transcoded mp4; its fields are those of records.Transcoded."""

    num_frames: int
    frame_px: int
    fps: float
    duration_s: float
    codec_metadata: bool
    start_s: float = 0.0
    num_damaged: int = 0
    num_missing: int = 0
    damaged_share: float = 0.0
    concealed: str = ""
    remarks: str = ""


def transcode(source: Path, target: Path, *, frame_px: int, config: TranscodeConfig, view: float = 1.0) -> Mp4Info:
    """Write `source` as `target`, whole or not at all, and read it back before it counts.

    The crop is in coded pixels, whatever their aspect, as in the published artifact. Depth beyond 8 bits is scaled
    down, transparency dropped, high dynamic range not tone-mapped.

    Args:
        source: Any video FFmpeg reads.
        target: Replaced if it exists; its folder must exist.
        frame_px: Side of the written square, 16 times the patches a side of the backbone.
        config: Rate and quality.
        view: Share of the centre square's side that is kept, more than 0 and at most 1.

    Returns:
        What was read back.

    Raises:
        VideoError: Something is wrong with the source.
        OSError: Writing failed (a full disk, a folder without permission); nothing is left behind.
        ValueError: frame_px is not a multiple of 16, or view outside its range.
    """
    if frame_px < 16 or frame_px % 16:
        raise ValueError(f"frame_px: got {frame_px}, expected a multiple of 16; pass 16 times the patches a side")
    if not 0 < view <= 1:
        raise ValueError(f"view: got {view}, expected more than 0 and at most 1; pass the share that the tower sees")
    unfinished = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with unfinished.open("xb") as file:
            sink = _Sink(file)
            with _said_plainly(source, sink):
                sampler = Sampler(source, frame_px, config, view)
                _encode(sampler, sink, config)
            file.flush()
            os.fsync(file.fileno())
        info = probe(unfinished)
        num_frames, expected_s = sampler.num_drawn, sampler.num_drawn / config.rate
        if info.num_frames != num_frames or abs(info.duration_s - expected_s) > 0.5 / config.rate:
            raise OSError(
                f"{target.name}: got {info.num_frames} frames and {info.duration_s:.3f} s when read back, "
                f"expected {num_frames} and {float(expected_s):.3f}; check the disk and run again"
            )
        unfinished.replace(target)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    return replace(
        info,
        start_s=float(sampler.first / config.rate),
        num_damaged=sampler.num_damaged,
        num_missing=sampler.num_missing,
        damaged_share=sampler.damaged_share,
        concealed=to_ranges(sampler.concealed),
        remarks="; ".join(sampler.remarks),
    )


@contextmanager
def _said_plainly(source: Path, sink: _Sink) -> Iterator[None]:
    """Raise what went wrong as it is if it is the disk's, and as a VideoError if it is the source's."""
    try:
        yield
    except VideoError:
        raise
    except Exception as error:
        if sink.error is not None:
            raise sink.error from None
        if isinstance(error, OSError) and not isinstance(error, av.FFmpegError):
            raise
        line = (str(error).splitlines() or [""])[0]
        raise VideoError(
            f"{source.name}: got an error of the video library ({type(error).__name__}: {line}), expected a "
            "video that it can read; convert the file or leave it out"
        ) from error


def probe(path: Path) -> Mp4Info:
    """Describe a transcoded mp4, counting its packets and decoding its first frame.

    Raises:
        VideoError: The file is missing, damaged or not square.
    """
    with open_video(path) as (container, stream), one_clear_line(path):
        width, height = stream.codec_context.width, stream.codec_context.height
        rate, time_base = stream.average_rate, stream.time_base
        num_frames = sum(1 for packet in container.demux(stream) if packet.size)
        if width != height or not rate or not time_base or not stream.duration:
            raise VideoError(
                f"{path.name}: got {width}x{height} pixels at {rate} frames per second, expected a square of constant "
                "rate; transcode it first"
            )
        duration = stream.duration * time_base
    codec_metadata = all(piece.codec_metadata for piece in decode(path, count=1))
    return Mp4Info(num_frames, width, float(rate), float(duration), codec_metadata)


class _Sink:
    """The file that FFmpeg writes to; remembers the disk's error, for which FFmpeg has only a number of its own."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None
        self.seek, self.tell = file.seek, file.tell

    def write(self, data: bytes) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise


def _encode(sampler: Sampler, file: _Sink, config: TranscodeConfig) -> None:
    """Write the frames, one every 1 / rate seconds, at the times at which a player of the source shows them."""
    num_frames = 0
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=config.rate)
        stream.width = stream.height = sampler.frame_px
        stream.pix_fmt = "yuv420p"
        codec = stream.codec_context
        codec.time_base = 1 / config.rate
        codec.thread_count = 1  # the bytes depend on it
        codec.gop_size = config.key_frame_interval
        codec.options = {"preset": config.preset, "crf": str(config.crf), "a53cc": "0", "x264-params": _X264}
        for frame in sampler.frames():
            if num_frames == 0:
                codec.color_range, codec.colorspace = frame.color_range, frame.colorspace
                codec.color_primaries, codec.color_trc = frame.color_primaries, frame.color_trc
            frame.pts = sampler.first + num_frames
            frame.time_base = codec.time_base
            frame.pict_type = 0  # the source's own choice must not force ours
            container.mux(stream.encode(frame))
            num_frames += 1
        container.mux(stream.encode(None))
